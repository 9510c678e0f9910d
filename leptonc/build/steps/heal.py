"""What a build asks of healing: the original to learn from, the text, and what the report says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.backends.traits import traits_of
from leptonc.errors import InputError, require
from leptonc.heal.budget import parse_budget
from leptonc.ir.groups import groups
from leptonc.ir.structure import linears
from leptonc.memory import keep_freed_memory, return_freed_memory
from leptonc.passes.heal import Heal, HealConfig
from leptonc.variant import VariantBuild, VariantPlan

if TYPE_CHECKING:
    from leptonc.build.calibration_text import Calibration


RANK = 16  # of what is added to each weight of a pruned model in float32
FULL = "full"  # in place of a rank: every weight learns
# Largest learning rates: what was rounded is near its best, what lost its neighbours has a way to go.
QUANTIZED_RATE, PRUNED_RATE, FULL_RATE = 7e-4, 1.2e-4, 2e-4


def parse_rank(text: str | None) -> int | None:
    """Reads the rank of what is added to weights; None for whole weights.

    Raises:
        InputError: It is neither a number from 1 to 1024 nor `full`.
    """
    if text == FULL:
        return None
    rank = RANK if text is None else int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0
    if not 1 <= rank <= 1024:
        raise InputError(
            f"expected of --heal-rank a number from 1 to 1024, or {FULL}, found {text!r}",
            hint=f"{RANK} is what there is without it",
        )
    return rank


def check(heal: str | None, plans: Sequence[VariantPlan], *, pruned: bool, rank: str | None = None) -> None:
    """Refuses what cannot be done, before anything is opened.

    Args:
        heal: The budget, as it was asked for.
        plans: What is built.
        pruned: Whether something is cut out of the model.
        rank: Of what is added to weights, as it was asked for.

    Raises:
        InputError: The budget is none, a model has lost nothing, or a target's form of it cannot learn.
        MissingExtraError: torch is not installed.
    """
    parse_rank(rank)
    if rank is not None and (heal is None or not pruned or any(plan.scheme != "fp32" for plan in plans)):
        raise InputError(
            "expected --heal and --prune of a model in float32 with --heal-rank, found other options: of quantized "
            "weights the scales learn",
            hint="--prune 20% --heal 30min --emit onnx gives a model that is quantized later",
        )
    if heal is None:
        return
    parse_budget(heal)
    require("torch", extra="compiler", needed_by="--heal")
    for plan in plans:
        if not traits_of(plan.target).heals:
            raise InputError(
                f"expected no --heal for target {plan.target.name}, found one",
                hint="--heal is for ONNX Runtime's targets, cpu among them",
            )
        if (plan.scheme == "fp32" and not pruned) or plan.activations != "none":
            found = "activations int8" if plan.activations != "none" else "fp32, which has lost nothing"
            raise InputError(
                f"expected --prune, or weights of integers, activations none, with --heal, found {found}",
                hint="--weights int4 --heal 10min",
            )


@dataclass
class Healing:
    """The healing of one build.

    Attributes:
        budget: How long, as it was asked for; None for not at all.
        resume: Directory that keeps how far it has come, or None.
        seed: Of the order of the texts.
        calibration: Has the texts, and the model.
        fits: Whether layers of the pruned model can be fitted to the original's: both have one residual stream.
        rank: Of what is added to weights in float32, as it was asked for; None for the usual.

    Raises:
        InputError: The model has an operator that has no gradients here.
    """

    budget: str | None
    resume: Path | None
    seed: int
    calibration: Calibration
    fits: bool = False
    rank: str | None = None
    original: ir.Model | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.budget is not None:
            from leptonc.heal.graph import check_operators

            check_operators(self.calibration.captured.model)
            self.original = self.calibration.captured.model.clone()  # before anything is cut out

    def recovery(self, variant: VariantBuild) -> Heal | None:
        """Returns the pass that a variant recovers by, where healing is asked for.

        Raises:
            InputError: The text is too short.
        """
        if self.budget is None:
            return None
        from leptonc.heal.distill import require_enough

        require_enough(self.calibration.lessons)
        return Heal(HealConfig(self.budget, self.seed), lambda student: self._recover(variant, student))

    def _recover(self, variant: VariantBuild, student: ir.Model) -> int:
        from leptonc.heal.distill import Settings, heal
        from leptonc.heal.trainable import low_rank, put, recoverable, whole

        assert self.budget is not None
        assert self.original is not None
        calibration, clock = self.calibration, self.calibration.clock
        windows = calibration.lessons
        state = self.resume / f"heal-{variant.plan.name}.safetensors" if self.resume is not None else None
        # Float weights lost something only where their neighbours were cut out.
        pruned = variant.plan.scheme == "fp32"
        rank = parse_rank(self.rank)
        if pruned:
            trainable = whole(student) if rank is None else low_rank(student, rank)
            rate = FULL_RATE if rank is None else PRUNED_RATE
        else:
            trainable, rate = recoverable(student), QUANTIZED_RATE
        fit = _Fit(student, self.original, calibration) if pruned and self.fits else None
        settings = Settings(rate=rate, seed=self.seed)
        keep_freed_memory()
        try:
            healed = heal(
                student, self.original, windows, trainable, parse_budget(self.budget), folder=calibration.scratch,
                memory=calibration.memory, settings=settings, resume=state, stage=clock.stage, say=clock.note,
                fit=fit,
            )  # fmt: skip
        finally:
            return_freed_memory()
        put(student, healed.arrays)
        about: dict[str, Any] = {
            "text": calibration.name,
            **({"rank": FULL if rank is None else rank} if pruned else {}),
            **({"fitted_on": fit.windows} if fit is not None and healed.fitted else {}),
            "steps": healed.steps,
            "seconds": healed.seconds,
            "learned_from": healed.windows,
            "held_out": healed.held_out,
            "before": _facts(healed.before),
            "after": _facts(healed.after),
        }
        variant.report["recovery"] = about
        variant.report.setdefault("quantization", {})["recovery"] = {**about, "losses": healed.losses}
        return len(healed.arrays)


@dataclass
class _Fit:
    """Layers that sum over what was cut, fitted to what the original's stream has after them; see `compensate`.

    Attributes:
        student: The pruned graph; `original` what it was made from.
        calibration: Where files go, and what is kept of an interrupted run.
        windows: On how many it was.
    """

    student: ir.Model
    original: ir.Model
    calibration: Calibration
    windows: int = 0

    def count(self, most: int) -> int:
        """Returns on how many windows."""
        self.windows = int(self.calibration.kept.json("heal-fitted-on", lambda: most))
        return self.windows

    def __call__(self, windows: Sequence[NDArray[np.int64]]) -> Mapping[str, NDArray[np.float32]]:
        """Returns the weights, by initializer."""
        from leptonc.calibrate.compensate import compensate

        each, shapes = self.calibration, {linear.path: linear.shape for linear in linears(self.original)}
        consumers = [
            linear
            for linear in groups(self.student).consumers
            if linear.dequantize is None and shapes.get(linear.path, (0, 0))[0] == linear.shape[0]
        ]

        def make() -> Mapping[str, NDArray[np.float32]]:
            with each.clock.stage("heal fit", len(consumers) + 1) as advance:
                return compensate(
                    self.original, windows, consumers, {}, each.scratch, student=self.student, memory=each.memory,
                    advance=advance,
                )[0]  # fmt: skip

        return each.kept.arrays("heal-fit", make)


def _facts(measured: Any) -> dict[str, float]:
    """Figures of the held-out windows; those that do not apply are left out."""
    logits = bool(measured.perplexity)
    found = {"kl_divergence" if logits else "error": measured.loss}
    if logits:
        found |= {"perplexity": measured.perplexity, "perplexity_reference": measured.perplexity_teacher}
    return {name: float(f"{value:.6g}") for name, value in found.items()}
