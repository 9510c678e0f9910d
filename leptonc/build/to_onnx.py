"""`leptonc build --emit onnx`: the captured graph, pruned where that is asked for, as a directory that is a source."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from leptonc.artifact.sizes import sizes_of
from leptonc.build.context import BuildContext
from leptonc.build.emitted import about_of
from leptonc.build.engine import Ending, run
from leptonc.build.plan import BuildPlan, emission_plan
from leptonc.build.steps import LOWERED_OPTIONS, TO_ONNX
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from leptonc.progress import Progress
from leptonc.report import Report, report_of, to_json
from leptonc.sources.emitted import About, encode
from runtime_edge.files import listing
from runtime_edge.manifest import EMITTED_NAME, REPORT_NAME


@dataclass(frozen=True)
class EmitResult:
    """An emitted graph.

    Attributes:
        path: Where it is.
        about: What describes it.
        report: Its report.
        seconds: Of each stage.
        estimated_seconds: What was foreseen for stages.
        total_seconds: Of the whole build, stages inside others counted once.
    """

    path: Path
    about: About
    report: Report
    seconds: dict[str, float] = field(default_factory=dict)
    estimated_seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0


def emit(options: BuildOptions, progress: Progress | None = None) -> EmitResult:
    """Writes the captured model in float32, pruned and healed where that is asked for; see `leptonc.sources.emitted`.

    Args:
        options: As of a build; those of steps that an emission does not have are refused.
        progress: What shows how far it is. Default: nothing does.

    Returns:
        The directory that is at `options.out` then.

    Raises:
        LeptonError: Whatever was wrong; nothing is left at `options.out` then.
    """
    result = run(options, ENDING, progress)
    return EmitResult(
        result.path, result.about, result.report, result.seconds, result.estimated_seconds, result.total_seconds
    )  # fmt: skip


def _plan(options: BuildOptions) -> BuildPlan:
    given = [
        option.name for option in dataclasses.fields(options)
        if option.name in LOWERED_OPTIONS and getattr(options, option.name) != option.default
    ]  # fmt: skip
    if given:
        raise InputError(
            f"expected nothing that says how a graph is lowered with --emit onnx, found {', '.join(given)}",
            hint="emit it first, then build the directory: leptonc build DIR --weights int8",
        )
    return emission_plan(options)


def _finish(context: BuildContext) -> tuple[About, Report]:
    """Writes what describes the graph, its fidelity now among it, and the report."""
    writer = context.writer
    about = about_of(context, tuple(sorted(listing(writer.path))))
    writer.add(EMITTED_NAME, encode(about))
    context.report.bytes = sizes_of(writer)
    report = report_of(context.report)
    writer.add(REPORT_NAME, to_json(report))
    return about, report


ENDING = Ending(_plan, TO_ONNX, "{}-onnx", _finish)
