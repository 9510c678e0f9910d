"""What would make a build better: rules on what was asked for and what was measured, and the machine's own."""

from __future__ import annotations

from dataclasses import dataclass

from leptonc.build.to_artifact import BuildResult
from leptonc.evaluate.bounds import loss
from leptonc.options import BuildOptions
from leptonc.passes.quantize.methods import METHODS, ROUNDING
from leptonc.report.variant import VariantReport
from runtime_edge.cli.better import Machine, Rule, told
from runtime_edge.cli.better import better as of_machine

MUCH = 3.0  # percent of quality: what calibration wins back is worth its time from here on


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    Attributes:
        wrote: Whether codes of fewer than 8 bits were chosen by a text that the model wrote, or that Lepton carries.
        lost: Percent of quality that the worst variant lost whose codes were rounded; 0 where nothing was measured, or
            pruning may have lost it.
    """

    wrote: bool
    lost: float


RULES: tuple[Rule[Facts], ...] = (
    Rule(lambda facts: facts.wrote, "for one kind of text only, --calibration FILE with such text loses less there"),
    Rule(
        lambda facts: facts.lost > MUCH,
        "rounding to nearest lost {lost:.0f} %: codes that a text chooses lose less, with --method gptq, not --fast",
    ),
)


def better(result: BuildResult, options: BuildOptions) -> list[str]:
    """Returns what would make a build better, a line each; nothing where all is well."""
    return told(RULES, _facts(result, options)) + of_machine(Machine.here())


def _facts(result: BuildResult, options: BuildOptions) -> Facts:
    choices = [report.quantization for report in result.report.variants.values()]
    few = any(not record.weights.startswith(("fp", "int8")) for record in result.manifest.variants)
    read = few and any(about is not None and about.calibration is not None for about in choices)
    quantized = {record.name for record in result.manifest.variants if not record.weights.startswith("fp")}
    lost = [
        loss(report.fidelity)[1]
        for name, report in result.report.variants.items()
        if name in quantized and report.fidelity is not None and _rounded(report) and options.prune is None
    ]
    return Facts(read and options.calibration is None, max(lost, default=0.0))


def _rounded(report: VariantReport) -> bool:
    method = report.quantization.method if report.quantization is not None else None
    return not METHODS[method or ROUNDING].module
