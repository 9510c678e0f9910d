"""Builds an artifact: the one function behind `leptonc build`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leptonc.artifact.sizes import sizes_of
from leptonc.build.context import BuildContext
from leptonc.build.engine import Ending, run
from leptonc.build.manifest import manifest_of
from leptonc.build.plan import artifact_plan
from leptonc.build.steps import TO_ARTIFACT
from leptonc.options import BuildOptions
from leptonc.pages.artifact import report_page
from leptonc.progress import Progress
from leptonc.report import Report, report_of, to_json
from runtime_edge.manifest import PAGE_NAME, REPORT_NAME, Manifest


@dataclass(frozen=True)
class BuildResult:
    """A built artifact.

    Attributes:
        path: Where it is.
        manifest: Its manifest.
        report: Its report.
        seconds: Of each stage, and of each `pass …` in it.
        estimated_seconds: What was foreseen for stages, those of all variants together.
        total_seconds: Of the whole build, stages inside others counted once.
    """

    path: Path
    manifest: Manifest
    report: Report
    seconds: dict[str, float] = field(default_factory=dict)
    estimated_seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0


def build(options: BuildOptions, progress: Progress | None = None, texts: dict[Any, Any] | None = None) -> BuildResult:
    """Builds an artifact.

    Args:
        options: What to build.
        progress: What shows how far it is. Default: nothing does.
        texts: What earlier builds of the same source had the model write, and this one's too afterwards.

    Returns:
        The artifact that is at `options.out` then.

    Raises:
        LeptonError: Whatever was wrong; nothing is left at `options.out` then.

    Example:
        from pathlib import Path

        from leptonc.build.to_artifact import build
        from leptonc.options import BuildOptions

        result = build(BuildOptions("sample:smollm2-135m", target="cpu", weights="int4", out=Path("int4.lepton")))
        print(result.path, result.report.fidelity)
    """
    result = run(options, ENDING, progress, texts)
    return BuildResult(
        result.path, result.about, result.report, result.seconds, result.estimated_seconds, result.total_seconds
    )  # fmt: skip


def _finish(context: BuildContext) -> tuple[Manifest, Report]:
    """Writes the report, the same as a page, and the manifest."""
    writer = context.writer
    _add_variants(context)
    context.report.bytes = sizes_of(writer)
    report = report_of(context.report)
    records = tuple(variant.record for variant in context.variants if variant.record is not None)
    writer.add(PAGE_NAME, report_page(manifest_of(context, records), report))
    writer.add(REPORT_NAME, to_json(report))
    manifest = manifest_of(context, records)
    writer.write_manifest(manifest)
    return manifest, report


def _add_variants(context: BuildContext) -> None:
    """Gives the report its variants; the first one's fidelity is the report's."""
    context.report.variants = {variant.plan.name: variant.report for variant in context.variants}
    context.report.fidelity = context.variants[0].report.fidelity


ENDING = Ending(artifact_plan, TO_ARTIFACT, "{}.lepton", _finish)
