"""The loss of quality, and bounds on it: `--max-loss`, and float32's own rounding."""

from __future__ import annotations

import math

from leptonc.errors import OVERFLOWS, BoundError, CaptureError, InputError
from leptonc.report.quality import Fidelity

_ROUNDING = 1e-3  # nats of divergence, or percent; float32's own order of sums costs less than a thousandth of that


def measured(fidelity: Fidelity | None) -> Fidelity:
    """Returns the measurements (raises `ValueError` where there are none)."""
    if fidelity is None:
        raise ValueError("nothing was measured yet")
    return fidelity


def judge(fidelity: Fidelity, bound: float | None, whom: str, hint: str) -> None:
    """Compares the loss with a bound.

    Args:
        fidelity: The measurements.
        bound: Largest loss in percent. None bounds nothing.
        whom: Name of the measured artifact or variant in messages.
        hint: Hint of the error.

    Raises:
        BoundError: The loss is larger.
        InputError: The loss is not finite: outputs, most often the original's, are NaN or infinite.
    """
    change, lost = loss(fidelity)
    if bound is not None and lost > bound:
        raise BoundError(
            f"expected a loss of at most {bound:g} % for {whom}, found that {change} by {lost:.2f} %; nothing was "
            "written",
            hint=hint,
        )
    if not math.isfinite(lost):
        raise InputError(
            f"expected finite outputs on the text that is measured, found that {change} by {lost} % for {whom}",
            hint=OVERFLOWS,
        )


def require_same(fidelity: Fidelity, whom: str) -> None:
    """Refuses a float32 artifact, which loses nothing on purpose, whose answers differ from the original's.

    Args:
        fidelity: The measurements.
        whom: Name of the measured artifact in messages.

    Raises:
        CaptureError: It differs from the original by more than float32's rounding.
    """
    if fidelity.kl_divergence is not None:
        how, lost = "divergence of the next token is", fidelity.kl_divergence
    else:
        how, lost = loss(fidelity)
    if lost > _ROUNDING:
        raise CaptureError(
            f"expected {whom} in float32 to answer as transformers' own forward pass does, found that the {how} "
            f"{lost:.3g}, more than rounding explains",
            hint="this architecture, or an option of its config.json, is not supported yet",
        )


def told(fidelity: Fidelity) -> str:
    """Returns the loss of quality in words, as in "perplexity rises by 7.50 %" (raises `ValueError`: see `loss`)."""
    change, lost = loss(fidelity)
    if lost < 0:  # of perplexity alone
        change, lost = change.replace("rises", "falls"), -lost
    return f"{change} by {lost:.2f} %"


def loss(fidelity: Fidelity) -> tuple[str, float]:
    """Returns the loss of quality: words for the change of a measure, and its size in percent."""
    if fidelity.perplexity is not None and fidelity.perplexity_reference is not None:
        return "perplexity rises", 100 * (fidelity.perplexity / fidelity.perplexity_reference - 1)
    if fidelity.score_error is not None:
        return "scores move", 100 * fidelity.score_error
    if fidelity.top1_agreement is not None:
        return "agreement of labels falls", 100 * (1 - fidelity.top1_agreement)
    if fidelity.cosine_mean is None:
        raise ValueError("nothing was measured that tells a loss")
    return "cosine similarity falls", 100 * (1 - fidelity.cosine_mean)
