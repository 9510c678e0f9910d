"""What `build` prints when it is done: sizes, what was measured, and how long it took."""

from __future__ import annotations

from typing import Any

# What a backend reports of a variant besides its fidelity, in the order that it is shown.
_ABOUT = ("left_out", "preflight", "engine", "rehearsal", "kept_in_half_precision", "recovery", "sparsity")
# What is said of a graph for prompts, of all that was measured.
_OF_PROMPTS = ("kl_divergence", "top1_agreement", "perplexity")


def facts(found: object) -> str:
    """Returns a part of the report in one line."""
    if isinstance(found, dict):  # without tables, which are for the page
        plain = {name: value for name, value in found.items() if not _is_table(value)}
        return ", ".join(f"{name.replace('_', ' ')} {facts(value)}" for name, value in plain.items())
    return " ".join(map(str, found)) if isinstance(found, list) else str(found)


def _is_table(found: object) -> bool:
    return isinstance(found, list) and any(isinstance(row, dict) for row in found)


def summary(result: Any) -> list[tuple[str, str]]:
    """Returns the rows for a `leptonc.build.to_artifact.BuildResult`: names and texts."""
    from runtime_edge.cli.console import megabytes
    from runtime_edge.process import most_resident

    size = sum(file.size for file in result.manifest.files)
    rows = [("artifact", str(result.path)), ("size", megabytes(size))]
    rows += pruned(result.report)
    for variant in result.manifest.variants:
        found = result.report["variants"][variant.name]
        rows += [("target", f"{variant.target}, {variant.backend}, weights {variant.weights}"), *_bounded(found)]
        rows += [(each.replace("_", " "), facts(found[each])) for each in _ABOUT if found.get(each)]
        prompts = found.get("prefill", {}).get("fidelity", {})
        other = {f"prompts: {name}": prompts[name] for name in _OF_PROMPTS if name in prompts}
        measured = found.get("fidelity", {}) | other
        rows += [(f"  {name.replace('_', ' ')}", str(value)) for name, value in measured.items()]
    stages = [seconds for name, seconds in result.seconds.items() if not name.startswith("pass ")]
    memory = [("memory", f"{megabytes(most)} at most")] if (most := most_resident()) else []
    return [*rows, ("time", f"{sum(stages):.1f} s"), *memory]


def _bounded(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What a variant takes of the size that was asked for, and what it loses: the two that a budget trades."""
    from leptonc.evaluate.measure import loss

    budget, measured = found.get("quantization", {}).get("budget"), found.get("fidelity")
    if not budget:
        return []
    taken, whole = budget["least"] + budget["spent"], budget["bytes"]
    rows = [("  budget", f"{taken / whole:.1%} of the {whole:,} bytes asked for: {taken:,} of weights and graph")]
    if measured:
        what, lost = loss(measured)
        rows.append(("  loss", f"{what} by {lost:.2f} %"))
    return rows


def pruned(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the row for what pruning removed, if it did."""
    found = report.get("pruning")
    if not found:
        return []
    left = found["weights"]["after"]
    return [("pruned", f"{found['removed_percent']:g} % of the layers' weights, {left:,} left")]
