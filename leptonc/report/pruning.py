"""Sections on pruning: what was cut, why, and what it cost."""

from __future__ import annotations

from leptonc.report.quality import Fidelity
from leptonc.report.section import CalibrationText, Change, Section


class FittedLayer(Section, kw_only=True):
    """A linear layer whose weights make up for inputs that went.

    Attributes:
        path: Its module path.
        kept: Inputs that stay.
        ridge: Regularization that was chosen, as a part of the mean energy of an input.
        before: Error of its outputs without the fit, as a part of their energy.
        after: The same error with the fit.
    """

    path: str
    kept: int
    ridge: float | None = None
    before: float
    after: float


class DenseLayer(Section, kw_only=True):
    """A linear layer that a pattern of zeros leaves out.

    Attributes:
        path: Its module path.
        why: The reason.
    """

    path: str
    why: str


class SparseError(Section, kw_only=True):
    """A linear layer of which half of the weights are zero.

    Attributes:
        path: Its module path.
        error: Error of its outputs, as a part of their energy.
        by_magnitude: The same error with the smallest weights zero.
    """

    path: str
    error: float
    by_magnitude: float


class PrunedQuality(Section, kw_only=True):
    """The pruned graph in float32 beside the original.

    Attributes:
        cut: After the cuts alone.
        compensated: With what makes up for them.
    """

    cut: Fidelity
    compensated: Fidelity | None = None


class LatencyGoal(Section, kw_only=True):
    """How a share of the time became a share of the weights.

    Attributes:
        asked_percent: Percent of the time that were asked for.
        whole_ms: Milliseconds that the whole model takes.
        trial_ms: Milliseconds that the model of the trial takes.
        trial_percent: Percent of the layers' weights that the trial cut.
        share_percent: Percent of the layers' weights that were cut for it.
    """

    asked_percent: float
    whole_ms: float
    trial_ms: float
    trial_percent: float
    share_percent: float


class Speed(Section, kw_only=True):
    """Times on the machine that built the artifact.

    Attributes:
        of: What was timed.
        weights: The number format of the weights meanwhile.
        before_ms: Milliseconds before pruning.
        after_ms: Milliseconds after pruning.
        times_as_fast: The first divided by the second.
    """

    of: str
    weights: str
    before_ms: float
    after_ms: float
    times_as_fast: float


class CutReasons(Section, kw_only=True):
    """What decided the cuts; `Pruning` has the same fields.

    Attributes:
        allocation: Whether blocks lose the same share (`uniform`) or what matters least anywhere (`global`).
        influence: How far each layer turns the residual stream, one minus the cosine similarity.
        divergence: What cutting a block alone does to the model's output, nats.
        divergence_expected: What all cuts together were expected to do to it, nats.
    """

    allocation: str | None = None
    influence: dict[str, float] | None = None
    divergence: dict[str, float] | None = None
    divergence_expected: float | None = None


class Pruning(Section, kw_only=True):
    """What was pruned.

    Attributes:
        asked: What `--prune` said.
        method: How what goes was chosen.
        compensation: How the weights that stay make up for it.
        allocation: Whether blocks lose the same share (`uniform`) or what matters least anywhere (`global`).
        calibration: The text that decided.
        blocks: What is left of each block that was cut.
        influence: How far each layer turns the residual stream, one minus the cosine similarity.
        divergence: What cutting a block alone does to the model's output, nats.
        divergence_expected: What all cuts together were expected to do to it, nats.
        fitted: The layers whose weights make up for cuts.
        width: Features of the residual stream.
        left_dense: Layers that a pattern of zeros leaves out.
        linears: Layers that have the pattern.
        quality: The pruned graph beside the original, where that was measured.
        latency: How a share of the time became a share of the weights, where a time was asked for.
        speed: Times before and after, where there is a variant for this machine.
        weights: Weights of the layers that are not cut, or not zero.
        removed_percent: Percent of the layers' weights that are gone, or zero.
        multiplications_a_token: Multiplications of the linear layers for a token.
    """

    asked: str
    method: str
    compensation: str | None = None
    allocation: str | None = None
    calibration: CalibrationText | None = None
    blocks: dict[str, str] | None = None
    influence: dict[str, float] | None = None
    divergence: dict[str, float] | None = None
    divergence_expected: float | None = None
    fitted: list[FittedLayer] | None = None
    width: Change | None = None
    left_dense: list[DenseLayer] | None = None
    linears: list[SparseError] | None = None
    quality: PrunedQuality | None = None
    latency: LatencyGoal | None = None
    speed: Speed | None = None
    weights: Change
    removed_percent: float
    multiplications_a_token: Change | None = None
