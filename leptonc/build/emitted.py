"""What describes an emitted graph."""

from __future__ import annotations

from leptonc.build.context import BuildContext
from leptonc.sources.emitted import About


def about_of(context: BuildContext, files: tuple[str, ...] = ()) -> About:
    """Returns what describes the graph; `files` are those of the directory, once all are written."""
    captured, source, report = context.captured, context.source, context.report
    before = source.emitted
    pruned = (report.pruning,) if context.plan.prune is not None and report.pruning is not None else ()
    return About(
        task=captured.task.name, parameters=captured.parameters, max_seq_len=captured.max_seq_len,
        origin=dict(before.origin if before is not None else source.origin), passes=tuple(context.records),
        pruning=(*(before.pruning if before is not None else ()), *pruned),
        fidelity=report.fidelity, files=files,
    )  # fmt: skip
