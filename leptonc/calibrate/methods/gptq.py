"""GPTQ (Frantar et al., arXiv:2210.17323): codes of later inputs make up for the rounding of earlier ones.

Weights also move to make up for the error in their inputs; the damping is chosen on held-out texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonc.calibrate.methods import Chosen, Layers, awq
from leptonc.calibrate.moments import Moments
from leptonc.passes.columns import DAMPING, Factor, factorize, shift_of
from leptonc.passes.quantize.blocks import CHUNK, Codes, Format
from leptonc.passes.quantize.gptq import damping_of, gptq_with_errors

WITH_EXACT = HOLDS_OUT = True
# Weights make up for half of the error in their inputs, and for less where there are fewer than 8 tokens a feature.
MADE_UP, TOKENS = 0.5, 8
TRIED = 64  # outputs of a layer that its damping is chosen by
LOOKED_UP = 0.1  # part of the mean second moment that is added for a head whose rows are embeddings too


def choose(layers: Layers) -> list[Chosen]:
    """Chooses codes input by input; see `leptonc.passes.quantize.gptq`.

    A head with fewer tokens than inputs gets a clipping search: a classifier has one token a text, and features that no
    text shows would be changed at random.
    """
    moments = layers.moments
    if layers.outside and moments.tokens < moments.width:
        return awq.choose(layers)
    more = LOOKED_UP if layers.looked_up else 0.0
    damping = _damping(moments, layers.weights, layers.forms, more)
    hessian = moments.hessian()
    # The damping that suits codes would leave much of the inputs' error in place.
    factor = factorize(hessian, DAMPING + more, rough=True)
    shift = None if factor is None or more else _shift(moments, factor)
    if damping not in (None, DAMPING):
        del factor
        factor = factorize(hessian, damping + more, rough=True)
    return list(
        chain.from_iterable(
            _chosen(layers.weights[part], layers.forms[part.start], hessian, factor, shift, damping)
            for part in _alike(layers)
        )
    )


def _alike(layers: Layers) -> Iterator[slice]:
    """Yields runs of layers of one format that are quantized as one, because each step of a small one takes as long."""
    start = size = 0
    for at, (weight, form) in enumerate(zip(layers.weights, layers.forms, strict=True)):
        size += weight.size
        if at > start and (form != layers.forms[start] or size > CHUNK):
            yield slice(start, at)
            start, size = at, weight.size
    yield slice(start, len(layers.weights))


def _chosen(
    weights: Sequence[NDArray[Any]], form: Format, hessian: NDArray[Any], factor: Factor | None,
    shift: NDArray[Any] | None, damping: float | None,
) -> Iterator[Chosen]:  # fmt: skip
    """Quantizes layers as one; yields the codes of each."""
    joined = weights[0] if len(weights) == 1 else np.concatenate(weights)
    codes, off, whole = gptq_with_errors(joined, form, hessian, factor, shift)
    stop = 0
    for weight in weights:
        rows = slice(stop, stop := stop + len(weight))
        energy, own = float(whole[rows].sum(dtype=np.float64)), (None if part is None else part[rows] for part in codes)
        error = float(off[rows].sum(dtype=np.float64)) / energy if energy > 0 else 0.0
        yield Chosen(Codes(*own), error, damping)  # type: ignore[arg-type]


def _damping(
    moments: Moments, weights: Sequence[NDArray[Any]], forms: Sequence[Format], more: float
) -> float | None:  # fmt: skip
    """Chooses the damping for all layers that read one value.

    Returns None where the text is too short to choose by. With 8 bits the error is small at any damping: None too.
    """
    few = [(weight, form) for weight, form in zip(weights, forms, strict=True) if form.bits < 8]
    parts = moments.held_out() if few else None
    if parts is None:
        return None
    return damping_of([(weight[:: max(1, len(weight) // TRIED)], form) for weight, form in few], *parts, more)


def _shift(moments: Moments, factor: Factor) -> NDArray[np.float32] | None:
    """Returns how far weights move to make up for the error in their inputs; None where exact inputs are not known."""
    off, part = moments.off(), MADE_UP * min(1, moments.tokens / (TOKENS * moments.width))
    return None if off is None else shift_of(off, factor, part)
