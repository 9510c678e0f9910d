"""The beginning of every build: the source is opened, the model captured, and what it cannot have is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from leptonc.backends import backend_of
from leptonc.build.plan import BuildPlan
from leptonc.build.recipe import as_record
from leptonc.errors import InputError
from leptonc.evaluate.measure import Sample
from leptonc.evaluate.text import load_text
from leptonc.frontend.captured import Captured
from leptonc.ir.dialect import count_ops
from leptonc.progress import Timed
from leptonc.report import Emitted, Report
from leptonc.report.quality import Fidelity
from leptonc.sources import Source, open_source
from leptonc.variant import VariantBuild


@contextmanager
def opened(plan: BuildPlan, clock: Timed) -> Iterator[tuple[Source, str]]:
    """Opens the source, and reads the text that quality is measured on, where there is room for the result.

    Raises:
        LeptonError: One of them is not to be had.
    """
    from leptonc.artifact.writer import check_out

    options = plan.options
    if options.out is not None:
        check_out(options.out, replace=options.force)
    text = load_text(options.eval_text)
    with clock.stage("open"):
        source = open_source(options.source)
    with source:
        yield source, text


def captured_model(plan: BuildPlan, source: Source, clock: Timed) -> Captured:
    """Captures the model, for the longest sequence that is asked for or that a target has.

    Raises:
        CaptureError: as `leptonc.frontend.capture.capture` says.
        InputError: likewise, or an emitted graph has fewer positions than are asked for.
    """
    from leptonc.frontend.capture import capture

    asked, emitted = plan.options.max_seq_len, source.emitted
    if emitted is not None and (asked or 0) > emitted.max_seq_len:
        raise InputError(
            f"expected at most the {emitted.max_seq_len} tokens that the graph was emitted with, found "
            f"--max-seq-len {asked}",
            hint=f"emit it with --max-seq-len {asked}, if the model itself has as many",
        )
    with clock.stage("capture"):
        return capture(source, max_seq_len=asked or max(variant.target.max_seq_len for variant in plan.variants))


def variants_of(plan: BuildPlan, captured: Captured, sample: Sample, clock: Timed) -> tuple[VariantBuild, ...]:
    """Returns the variants, each with the formats of layers that its rules name (raises `LeptonError`)."""
    part = next(iter(captured.graphs))
    prefixes = [f"{variant.name}: " if plan.several else "" for variant in plan.variants]
    variants = tuple(
        VariantBuild(variant, captured, sample, clock, part=part, prefix=prefix)
        for variant, prefix in zip(plan.variants, prefixes, strict=True)
    )
    if not plan.lowered:
        return variants
    return tuple(
        variant.choosing(layers=backend_of(variant.plan.target).preflight(variant)) for variant in variants
    )  # fmt: skip


def first_report(plan: BuildPlan, source: Source, captured: Captured, clock: Timed) -> Report:
    """Returns the report's first sections; the user is shown the warnings among them."""
    report = Report(operations={"captured": count_ops(*captured.graphs.values())}, recipe=as_record(plan.options))
    warnings = _warnings(plan, source, captured)
    for warning in warnings:
        clock.note(f"warning: {warning}")
    report.warnings = warnings or None
    report.parameters = captured.parameters
    report.unused = list(captured.unused) or None
    if (emitted := source.emitted) is not None:
        report.emitted = Emitted(pruning=list(emitted.pruning), fidelity=emitted.fidelity or Fidelity())
        if emitted.pruning:
            report.pruning = msgspec.structs.replace(emitted.pruning[-1])  # what this build adds is not the source's
    return report


def _warnings(plan: BuildPlan, source: Source, captured: Captured) -> list[str]:
    """Returns what is otherwise than the checkpoint's own files say."""
    from leptonc.sources.generation import warnings_of

    warnings = [*source.warnings, *captured.warnings]
    if captured.interface.writes_text:
        return warnings + warnings_of(source.generation_config, source.config)
    return warnings + (_shortened(source, captured) if plan.options.max_seq_len is None else [])


def _shortened(source: Source, captured: Captured) -> list[str]:
    """Says that the target's length cuts texts that an encoder could read."""
    from leptonc.frontend.capture import position_limit

    length = captured.max_seq_len
    bounds = [position_limit(captured.config), captured.task.text_limit(source)]
    own = min((bound for bound in bounds if bound), default=length)
    if own <= length:
        return []
    return [
        f"texts are cut at {length} tokens, the target's length, where the model reads {own}: --max-seq-len {own} "
        "reads as many"
    ]
