"""Runs a build: the steps of an order, one after the other, on the model and then on each variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from leptonc.artifact.writer import ArtifactWriter, check_out
from leptonc.build.begin import captured_model, first_report, opened, variants_of
from leptonc.build.calibration_text import Calibration, check_text
from leptonc.build.context import BuildContext
from leptonc.build.estimate import Estimate
from leptonc.build.memory_bound import ModelSizes, room_for_activations
from leptonc.build.plan import BuildPlan, of_several_parts
from leptonc.build.rates import Rates
from leptonc.build.recipe import check_values
from leptonc.build.resume import check_resume, open_step_cache
from leptonc.build.step import CalibratedStep, ModelStep, Step, VariantStep
from leptonc.errors import InputError
from leptonc.evaluate.measure import sample_of
from leptonc.frontend.captured import Captured
from leptonc.memory import return_freed_memory
from leptonc.options import BuildOptions
from leptonc.passes.base import Manager
from leptonc.progress import Progress, Silent, Timed
from leptonc.report import Report
from leptonc.variant import VariantBuild, joined

T = TypeVar("T")


@dataclass(frozen=True)
class Ending(Generic[T]):
    """What a build makes.

    Attributes:
        plan_of: Reads the options.
        steps: The build's steps, in order.
        out: The name of what is written where none is asked for, `{}` being the source's.
        finish: Writes what comes last, before all of it moves to its place; returns what describes it, and the report.
    """

    plan_of: Callable[[BuildOptions], BuildPlan]
    steps: tuple[Step, ...]
    out: str
    finish: Callable[[BuildContext], tuple[T, Report]]


@dataclass(frozen=True)
class Result(Generic[T]):
    """What was built.

    Attributes:
        path: Its place.
        about: What describes it.
        report: The report.
        seconds: Of each stage, and of each `pass …` in it.
        estimated_seconds: What was foreseen for stages, those of all variants together.
        total_seconds: Of the whole build, stages inside others counted once.
    """

    path: Path
    about: T
    report: Report
    seconds: dict[str, float]
    estimated_seconds: dict[str, float]
    total_seconds: float


def text_readers(plan: BuildPlan, steps: Sequence[Step]) -> dict[str, bool]:
    """Returns the options that make a step read a calibration text, each with whether it is asked for."""
    readers: dict[str, bool] = {}
    for step in steps:
        if step.text_option:
            readers[step.text_option] = readers.get(step.text_option, False) or step.texts(plan) > 0
    return readers


def checked_plan(options: BuildOptions, ending: Ending[Any]) -> BuildPlan:
    """Reads options, and refuses what cannot be built before anything is opened (raises `LeptonError`)."""
    check_values(options)
    plan = ending.plan_of(options)
    check_text(options, text_readers(plan, ending.steps))
    for step in ending.steps:
        step.check(plan)
    plan = _with_texts(plan, ending.steps)
    check_resume(plan)
    return plan


def _with_texts(plan: BuildPlan, steps: Sequence[Step]) -> BuildPlan:
    """Returns the plan with how many texts its steps read, and for which variants."""
    calibrating = [step for step in steps if isinstance(step, CalibratedStep)]
    calibrated = [variant for variant in plan.variants if any(step.applies(variant) for step in calibrating)]
    return dataclasses.replace(
        plan, texts=max(step.texts(plan) for step in steps if step.wanted(plan)),
        calibrated=frozenset(variant.name for variant in calibrated),
    )  # fmt: skip


def run(
    options: BuildOptions, ending: Ending[T], progress: Progress | None = None, texts: dict[Any, Any] | None = None
) -> Result[T]:
    """Builds what is asked for.

    Args:
        options: What to build.
        ending: What is made of the model.
        progress: What shows how far it is. Default: nothing does.
        texts: What earlier builds of the same source had the model write, and this one's too afterwards.

    Raises:
        LeptonError: Whatever was wrong; nothing is left at `options.out` then.
    """
    return_freed_memory()
    clock = Timed(progress or Silent())
    plan = checked_plan(options, ending)
    steps = [step for step in ending.steps if step.wanted(plan)]
    with opened(plan, clock) as (source, text):
        out = options.out or Path(ending.out.format(source.name))
        check_out(out, replace=options.force)
        estimate = Estimate(Rates.here())
        estimate.capture(source.config)
        captured = captured_model(plan, source, clock)
        if len(captured.graphs) > 1:
            plan = _with_texts(of_several_parts(plan), ending.steps)
            steps = [step for step in ending.steps if step.wanted(plan)]
            check_parts(captured, steps)
        sizes = ModelSizes(captured, emitted=source.emitted is not None)
        memory = room_for_activations(options.memory_gb, [need for step in steps for need in step.needs(plan, sizes)])
        report = first_report(plan, source, captured, clock)
        manager = Manager(options.dump_ir)
        for graph in captured.graphs.values():
            manager.write(graph, "capture")
        for step in steps:
            step.preflight(plan, captured)
        estimate.steps(plan, steps, sizes, written=bool(texts))
        with clock.forecast(estimate.ahead), ArtifactWriter(out, replace=options.force) as writer:
            name = options.eval_text.name if options.eval_text else "built-in"
            sample = sample_of(source, captured, text, name, writer.scratch)
            variants = variants_of(plan, captured, sample, clock)
            cache = open_step_cache(plan, captured, ending.steps)
            calibration = Calibration(
                captured, sample, options.calibration, options.seed, memory, writer.scratch, clock, options.chat,
                plan.texts, {} if texts is None else texts, cache,
            )  # fmt: skip
            context = BuildContext(
                plan, source, captured, sample, calibration, writer, clock, variants, manager, report,
                list(source.emitted.passes) if source.emitted is not None else [],
            )  # fmt: skip
            context = _run_steps(context, steps)
            about, whole = ending.finish(context)
            path = writer.commit()
            cache.finish()
    estimated = estimate.seconds
    if options.resume is None:  # else parts of stages may have been there
        estimate.rates.learn(estimate.works, clock.own)
    return Result(path, about, whole, dict(clock.seconds), estimated, clock.total)


def _run_steps(context: BuildContext, steps: Sequence[Step]) -> BuildContext:
    for step in steps:
        if isinstance(step, ModelStep):
            context = step.run(context)
    done: list[VariantBuild] = []
    for variant in context.variants:
        last = variant is context.variants[-1]
        parts = [_begun(context, variant, part, last=last) for part in context.captured.graphs]
        done.append(_built(parts, context, steps))
    return dataclasses.replace(context, variants=tuple(done))


def _begun(context: BuildContext, variant: VariantBuild, part: str, *, last: bool) -> VariantBuild:
    """Returns a variant with a graph of its own of a part; the last one may change the captured graph itself."""
    folder, several, graphs = context.plan.options.dump_ir, context.plan.several, context.captured.graphs
    if folder and len(graphs) > 1:
        folder = folder / part
    manager = Manager(folder / variant.plan.name) if folder and several else Manager(folder, context.manager.start)
    model = graphs[part] if last else graphs[part].clone()
    prefix = variant.prefix if len(graphs) == 1 else f"{variant.prefix}{part}: "
    return dataclasses.replace(variant, part=part, prefix=prefix, model=model, manager=manager)


def _built(parts: Sequence[VariantBuild], context: BuildContext, steps: Sequence[Step]) -> VariantBuild:
    """Runs the steps of a variant, those of parts on each; what is in memory of it is gone afterwards."""
    for step in steps:
        if isinstance(step, VariantStep) and step.applies(parts[0].plan):
            units = parts if step.is_of_parts else [joined(parts)]
            parts = [step.run(context, unit) for unit in units]
    return joined(parts).written()


def check_parts(captured: Captured, steps: Sequence[Step]) -> None:
    """Refuses steps that know one graph alone, for a model of several parts.

    Raises:
        InputError: There is such a step.
    """
    unable = [step for step in steps if not step.several_parts]
    if not unable:
        return
    options = ", ".join(f"--{name.replace('_', '-')}" for step in unable for name in step.options)
    raise InputError(
        f"expected a model of one part for {', '.join(step.name for step in unable)}, found one for "
        f"{captured.task.name} of {len(captured.graphs)}: {', '.join(captured.graphs)}",
        hint=f"leave out {options}" if options else "models of several parts are built, and not emitted",
    )
