"""Lets a compressed model learn from the original, and says in the report what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.backends.traits import traits_of
from leptonc.build import calibration_text
from leptonc.build.calibration_text import WINDOWS, Calibration
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import CALIBRATING, ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import Need, VariantStep
from leptonc.build.work import Work, work
from leptonc.errors import InputError, require
from leptonc.frontend.captured import Captured
from leptonc.heal.budget import parse_budget
from leptonc.heal.objective import Measured
from leptonc.ir.groups import groups
from leptonc.ir.structure import linears
from leptonc.memory import keep_freed_memory, return_freed_memory
from leptonc.passes.heal import Heal, HealConfig
from leptonc.report.quality import Judged, Recovery
from leptonc.variant import VariantBuild, VariantPlan

HEALING = 4.5  # times the weights in float32: the student, its gradients, moments and what it reads
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


class HealVariant(VariantStep):
    """Does what `--heal` asks for: the compressed variant learns from the original, as the first pass after it is.

    Raises:
        InputError: The model has an operator that has no gradients here, or the text is too short.
    """

    name: ClassVar[str] = "heal"
    options: ClassVar[tuple[str, ...]] = ("heal", "heal_rank")
    text_option: ClassVar[str] = "--heal"

    def wanted(self, plan: BuildPlan) -> bool:
        return plan.options.heal is not None

    def texts(self, plan: BuildPlan) -> int:
        return WINDOWS if self.wanted(plan) else 0

    def check(self, plan: BuildPlan) -> None:
        options, pruned = plan.options, plan.prune is not None
        parse_rank(options.heal_rank)
        learns_float = pruned and all(variant.scheme == "fp32" for variant in plan.variants)
        if options.heal_rank is not None and (options.heal is None or not learns_float):
            raise InputError(
                "expected --heal and --prune of a model in float32 with --heal-rank, found other options: of quantized "
                "weights the scales learn",
                hint="--prune 20% --heal 30min --emit onnx gives a model that is quantized later",
            )
        if options.heal is None:
            return
        parse_budget(options.heal)
        require("torch", extra="compiler", needed_by="--heal")
        for variant in plan.variants:
            _check_variant(variant, pruned=pruned)

    def preflight(self, plan: BuildPlan, captured: Captured) -> None:
        from leptonc.heal.graph import check_operators

        check_operators(captured.model)

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        yield Need("healing", CALIBRATING + int(HEALING * sizes.whole), keeps_activations=True)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        if plan.options.heal is not None:
            budget = parse_budget(plan.options.heal)
            learnt = budget.steps * min(calibration_text.WINDOW, sizes.captured.max_seq_len) * sizes.multiplications
            yield work("heal", seconds=budget.seconds, learnt=learnt)

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        from leptonc.heal.distill import require_enough

        options = context.plan.options
        if options.heal is None or context.original is None:
            return variant
        require_enough(context.calibration.lessons)
        prune = context.plan.prune
        # Layers of a pruned model can be fitted to the original's where both have one residual stream.
        one_stream = prune is not None and not (prune.width or prune.sparse or options.rotate)
        healing = Healing(options.heal, options.resume, options.seed, context.calibration, context.original,
                          fits=one_stream, rank=parse_rank(options.heal_rank))  # fmt: skip
        config = HealConfig(options.heal, options.seed)
        return variant.choosing(recovery=Heal(config, lambda student: healing.recover(variant, student)))


class HealGraph(HealVariant):
    """Lets the captured graph learn at once, for an emission, which lowers nothing."""

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        variant = super().run(context, variant)
        if variant.choices.recovery is not None:
            variant.manager.run(variant.graph, [variant.choices.recovery])
            context.records.extend(variant.manager.records)
            context.report.recovery = variant.report.recovery
        return variant


def _check_variant(plan: VariantPlan, *, pruned: bool) -> None:
    """Refuses a variant that has lost nothing, or whose form cannot learn."""
    if not traits_of(plan.target).heals:
        raise InputError(
            f"expected no --heal for target {plan.target.name}, found one",
            hint="--heal is for ONNX Runtime's targets, cpu among them",
        )
    if (plan.scheme == "fp32" and not pruned) or plan.activations != "none":
        lost = "activations int8" if plan.activations != "none" else "fp32, which has lost nothing"
        raise InputError(
            f"expected --prune, or weights of integers, activations none, with --heal, found {lost}",
            hint="--weights int4 --heal 10min",
        )


@dataclass(frozen=True)
class Healing:
    """The healing of one build.

    Attributes:
        budget: How long it learns, as it was asked for.
        resume: Directory that keeps how far it has come. Default: none does.
        seed: Of the order of the texts.
        calibration: Has the texts, and the pruned model.
        original: The model as it was captured.
        fits: Whether layers of the pruned model can be fitted to the original's.
        rank: Rank of what is added to weights in float32; None for whole weights.
    """

    budget: str
    resume: Path | None
    seed: int
    calibration: Calibration
    original: ir.Model
    fits: bool = False
    rank: int | None = RANK

    def recover(self, variant: VariantBuild, student: ir.Model) -> int:
        """Lets a variant's quantized or pruned graph learn, in place; returns how many initializers it changed."""
        from leptonc.heal.distill import Settings, heal
        from leptonc.heal.trainable import low_rank, put, recoverable, whole

        calibration, clock = self.calibration, self.calibration.clock
        windows = calibration.lessons
        state = self.resume / f"heal-{variant.plan.name}.safetensors" if self.resume is not None else None
        # Float weights lost something only where their neighbours were cut out.
        pruned = variant.plan.scheme == "fp32"
        rank = self.rank
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
        recovery = Recovery(
            text=calibration.name,
            rank=(FULL if rank is None else rank) if pruned else None,
            fitted_on=fit.windows if fit is not None and healed.fitted else None,
            steps=healed.steps,
            seconds=healed.seconds,
            learned_from=healed.windows,
            held_out=healed.held_out,
            before=_judged(healed.before),
            after=_judged(healed.after),
        )
        variant.report.recovery = recovery
        variant.report.choices().recovery = msgspec.structs.replace(recovery, losses=healed.losses)
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
        self.windows = int(self.calibration.step_cache.json("heal-fitted-on", lambda: most))
        return self.windows

    def __call__(self, windows: Sequence[NDArray[np.int64]]) -> Mapping[str, NDArray[np.float32]]:
        """Returns the weights, by initializer."""
        from leptonc.calibrate.compensate import compensate

        calibration, shapes = self.calibration, {linear.path: linear.shape for linear in linears(self.original)}
        consumers = [
            linear
            for linear in groups(self.student).consumers
            if linear.dequantize is None and shapes.get(linear.path, (0, 0))[0] == linear.shape[0]
        ]

        def make() -> Mapping[str, NDArray[np.float32]]:
            with calibration.clock.stage("heal fit", len(consumers) + 1) as advance:
                return compensate(
                    self.original, windows, consumers, {}, calibration.scratch, student=self.student,
                    memory=calibration.memory, advance=advance,
                )[0]  # fmt: skip

        return calibration.step_cache.arrays("heal-fit", make)


def _judged(measured: Measured) -> Judged:
    """Returns the figures of the held-out windows, to six digits; those that do not apply are left out."""

    def rounded(value: float) -> float:
        return float(f"{value:.6g}")

    if not measured.perplexity:
        return Judged(error=rounded(measured.loss))
    return Judged(
        kl_divergence=rounded(measured.loss), perplexity=rounded(measured.perplexity),
        perplexity_reference=rounded(measured.perplexity_teacher),
    )  # fmt: skip
