"""What `build` prints when it is done: sizes, what was measured, and how long it took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from leptonc.report import Report
from leptonc.report.quality import Fidelity
from leptonc.report.section import Section
from leptonc.report.variant import VariantReport

if TYPE_CHECKING:
    from leptonc.build.to_artifact import BuildResult

# What a backend reports of a variant besides its fidelity, in the order that it is shown.
_ABOUT = ("left_out", "preflight", "engine", "rehearsal", "kept_in_half_precision", "recovery", "sparsity")
# The figures of a graph for prompts that are shown.
_OF_PROMPTS = ("kl_divergence", "top1_agreement", "perplexity")


def facts(value: object) -> str:
    """Returns a part of the report in one line."""
    if isinstance(value, Section):
        return facts(msgspec.to_builtins(value))
    if isinstance(value, dict):  # without tables, which are for the page
        plain = {name: item for name, item in value.items() if not _is_table(item)}
        return ", ".join(f"{name.replace('_', ' ')} {facts(item)}" for name, item in plain.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def figures(fidelity: Fidelity | None) -> list[tuple[str, str]]:
    """Returns a row for each figure that was measured."""
    known = msgspec.to_builtins(fidelity) if fidelity is not None else {}
    return [(f"  {name.replace('_', ' ')}", str(value)) for name, value in known.items()]


def _is_table(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(row, dict) for row in value)


def summary(result: BuildResult) -> list[tuple[str, str]]:
    """Returns the rows for a `leptonc.build.to_artifact.BuildResult`: names and texts."""
    from runtime_edge.cli.console import megabytes
    from runtime_edge.process import most_resident

    size = sum(file.size for file in result.manifest.files)
    rows = [("artifact", str(result.path)), ("size", megabytes(size))]
    rows += pruned(result.report)
    for variant in result.manifest.variants:
        report = result.report.variants.get(variant.name, VariantReport())
        rows += [("target", f"{variant.target}, {variant.backend}, weights {variant.weights}"), *_bounded(report)]
        rows += [(name.replace("_", " "), facts(value)) for name in _ABOUT if (value := getattr(report, name))]
        rows += figures(report.fidelity)
        prompts = report.prefill.fidelity if report.prefill is not None else None
        measured = [(name, getattr(prompts, name)) for name in _OF_PROMPTS if prompts is not None]
        rows += [(f"  prompts: {name.replace('_', ' ')}", str(value)) for name, value in measured if value is not None]
    memory = [("memory", f"{megabytes(most)} at most")] if (most := most_resident()) else []
    return [*rows, ("time", f"{result.total_seconds:.1f} s"), *memory]


def _bounded(report: VariantReport) -> list[tuple[str, str]]:
    """What a variant takes of the size that was asked for, and what it loses: the two that a budget trades."""
    budget = report.quantization.budget if report.quantization is not None else None
    if budget is None:
        return _lost(report.fidelity)
    taken, whole = budget.least + budget.spent, budget.bytes
    row = ("  budget", f"{taken / whole:.1%} of the {whole:,} bytes asked for: {taken:,} of weights and graph")
    return [row, *_lost(report.fidelity)]


def _lost(fidelity: Fidelity | None) -> list[tuple[str, str]]:
    """Returns the row for the loss in percent, which `--max-loss` bounds, where it was measured."""
    from leptonc.evaluate.bounds import told

    if fidelity is None:
        return []
    try:
        return [("  loss", told(fidelity))]
    except ValueError:
        return []


def pruned(report: Report) -> list[tuple[str, str]]:
    """Returns the row for what pruning removed, if it did."""
    pruning = report.pruning
    if pruning is None:
        return []
    return [("pruned", f"{pruning.removed_percent:g} % of the layers' weights, {pruning.weights.after:,} left")]
