"""Fidelity: differences between two models' outputs on the same input, accumulated block by block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from leptonc.report.quality import Fidelity

Floats = NDArray[np.float32]


def significant(value: float, digits: int = 6) -> float:
    """Rounds to significant digits: a report leaves out the last bits, which depend on kernels."""
    return float(f"{value:.{digits}g}")


def log_softmax(logits: Floats) -> Floats:
    """Returns log-probabilities over the last axis, float32 as given; the sum is accumulated in float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
    result: Floats = shifted - np.log(total).astype(np.float32)
    return result


def compare_logits(
    reference: Iterable[tuple[int, Floats]], artifact: Iterable[tuple[int, Floats]], token_ids: list[int]
) -> Fidelity:
    """Compares two causal models on one text.

    Args:
        reference: The original's blocks (position, logits float32 [n, vocab]), in order.
        artifact: The artifact's blocks, likewise; they may be cut at other positions.
        token_ids: The text.

    Returns:
        Differences of logits, their divergence and agreement, and the perplexity of both.
    """
    worst, total, count = 0.0, 0.0, 0
    kl, agree, nll_reference, nll_artifact = 0.0, 0, 0.0, 0.0
    for start, expected, actual in _aligned(reference, artifact):
        # Torch, because it computes these with all cores.
        left, right = torch.from_numpy(expected), torch.from_numpy(actual)
        diff = (left - right).abs_()
        worst = max(worst, float(diff.max()))
        total, count = total + float(diff.sum(dtype=torch.float64)), count + diff.numel()
        agree += int((left.argmax(-1) == right.argmax(-1)).sum())
        p, q = left.log_softmax(-1), torch.log_softmax(right, -1, out=diff)
        following = torch.tensor(token_ids[start + 1 : start + 1 + len(expected)], dtype=torch.int64)
        at = torch.arange(len(following))
        nll_reference -= float(p[at, following].sum(dtype=torch.float64))
        nll_artifact -= float(q[at, following].sum(dtype=torch.float64))
        kl += float(torch.sub(p, q, out=q).mul_(p.exp_()).sum(dtype=torch.float64))
    positions, predicted = len(token_ids), max(1, len(token_ids) - 1)
    return Fidelity(
        tokens=positions,
        max_abs_diff=significant(worst),
        mean_abs_diff=significant(total / max(1, count)),
        kl_divergence=significant(max(0.0, kl / positions)),
        top1_agreement=significant(agree / positions),
        perplexity_reference=significant(math.exp(nll_reference / predicted)),
        perplexity=significant(math.exp(nll_artifact / predicted)),
    )


def _aligned(
    left: Iterable[tuple[int, Floats]], right: Iterable[tuple[int, Floats]]
) -> Iterator[tuple[int, Floats, Floats]]:
    """Yields the blocks of both sequences, cut at the same positions; the left one is loaded first."""
    others = iter(right)
    other_start, other = 0, np.empty((0, 0), np.float32)
    for start, block in left:
        at = 0
        while at < len(block):
            if start + at >= other_start + len(other):
                other_start, other = next(others)
            offset = start + at - other_start
            n = min(len(block) - at, len(other) - offset)
            yield start + at, block[at : at + n], other[offset : offset + n]
            at += n


def scores(logits: Floats, function: str) -> Floats:
    """Returns scores of logits: "softmax" over the last axis, "sigmoid" of each label, or "none", the logits."""
    if function == "softmax":
        return np.exp(log_softmax(logits))
    if function == "none":
        return logits
    sigmoid: Floats = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    return sigmoid


def compare_rows(reference: Floats, artifact: Floats, *, function: str | None) -> Fidelity:
    """Compares an encoder's outputs, float32 [n, dim].

    Args:
        reference: Embeddings or scores of the original.
        artifact: Those of the artifact.
        function: The function from logits to scores, "softmax", "sigmoid" or "none". None: the rows are embeddings.

    Returns:
        Differences and cosine similarities. Several labels add top1_agreement. A single label or a regression, where
        the greatest score says nothing, adds score_error: the mean difference, divided by the mean size of scores where
        these have no bound.
    """
    diff = np.abs(reference - artifact)
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(artifact, axis=1)
    cosine = (reference * artifact).sum(1) / np.maximum(norms, 1e-12)
    compared = Fidelity(
        texts=len(reference),
        max_abs_diff=significant(float(diff.max())),
        mean_abs_diff=significant(float(diff.mean(dtype=np.float64))),
        cosine_min=significant(float(cosine.min()), 8),
        cosine_mean=significant(float(cosine.mean(dtype=np.float64)), 8),
    )
    if function == "none" or (function is not None and reference.shape[1] == 1):
        size = float(np.abs(reference).mean(dtype=np.float64)) if function == "none" else 1.0
        compared.score_error = significant(float(diff.mean(dtype=np.float64)) / max(size, 1e-12))
    elif function is not None:
        compared.top1_agreement = significant(float((reference.argmax(1) == artifact.argmax(1)).mean()))
    return compared
