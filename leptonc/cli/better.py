"""What would make a build better: rules on what was asked for and what was measured, and the machine's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leptonc.build.to_artifact import BuildResult
from leptonc.evaluate.bounds import loss
from leptonc.options import BuildOptions
from leptonc.passes.quantize.methods import METHODS, ROUNDING
from leptonc.report.variant import VariantReport
from runtime_edge.cli.better import Machine
from runtime_edge.cli.better import better as of_machine

MUCH = 3.0  # percent of quality: what calibration wins back is worth its time from here on


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    Attributes:
        options: What was asked for.
        variants: What is reported of each variant.
        wrote: Whether the model wrote its calibration text itself, or read one that Lepton carries.
        lost: Percent of quality that the worst variant lost whose codes were rounded; 0 where nothing was measured.
    """

    options: BuildOptions
    variants: list[VariantReport]
    wrote: bool
    lost: float


@dataclass(frozen=True)
class Rule:
    """One thing that would be better.

    Attributes:
        holds: Whether it is so.
        text: What to do, with fields of the facts in braces.
    """

    holds: Callable[[Facts], bool]
    text: str


RULES = (
    Rule(lambda facts: facts.wrote, "calibrated on text of your own kind it loses less: --calibration FILE"),
    Rule(
        lambda facts: facts.lost > MUCH,
        "rounding to nearest lost {lost:.0f} %: codes that a text chooses lose less, with --method gptq, not --fast",
    ),
)


def better(result: BuildResult, options: BuildOptions) -> list[str]:
    """Returns what would make a build better, a line each; nothing where all is well."""
    facts = _facts(result, options)
    named = {"lost": facts.lost}
    return [rule.text.format(**named) for rule in RULES if rule.holds(facts)] + of_machine(Machine.here())


def _facts(result: BuildResult, options: BuildOptions) -> Facts:
    variants = list(result.report.variants.values())
    read = any(each.quantization is not None and each.quantization.calibration is not None for each in variants)
    quantized = {record.name for record in result.manifest.variants if not record.weights.startswith("fp")}
    lost = [
        loss(report.fidelity)[1]
        for name, report in result.report.variants.items()
        if name in quantized and report.fidelity is not None and _rounded(report)
    ]
    return Facts(options, variants, read and options.calibration is None, max(lost, default=0.0))


def _rounded(report: VariantReport) -> bool:
    method = report.quantization.method if report.quantization is not None else None
    return not METHODS[method or ROUNDING].module
