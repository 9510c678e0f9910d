"""Codes behind channels that were scaled (AWQ, arXiv:2306.00978): ranges are clipped where outputs gain by it.

The scales themselves are `leptonc.calibrate.scaling`'s, folded in before.
"""

from __future__ import annotations

import numpy as np

from leptonc.calibrate.methods import Chosen, Layers
from leptonc.passes.quantize.gptq import clip_search, output_error

WITH_EXACT = HOLDS_OUT = False


def choose(layers: Layers) -> list[Chosen]:
    """Rounds to nearest within the range that loses least for the second moments of the inputs."""
    hessian = layers.moments.hessian()
    squares, chosen = np.diag(hessian), []
    for weight, form in zip(layers.weights, layers.forms, strict=True):
        codes = clip_search(weight, form, squares)
        chosen.append(Chosen(codes, output_error(weight, codes, form, hessian, None)))
    return chosen
