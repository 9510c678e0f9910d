"""How long a build will take: the work of its steps, at the rates of this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.rates import Rates
from leptonc.build.step import ModelStep, Step, VariantStep
from leptonc.build.work import FIRST_LAYERS, Work, work

CAPTURE, WRITTEN = "capture", "calibration text"  # stages
LAYERS = 12  # of a model whose config has no number of them
_NESTED = ("text_config", "llm_config", "language_config")
_NAMES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass
class Estimate:
    """What a build will do, and how long that takes here.

    Attributes:
        rates: This machine's.
        works: What is foreseen, in order.
    """

    rates: Rates
    works: list[Work] = field(default_factory=list)

    def capture(self, config: Mapping[str, Any]) -> None:
        """Foresees the capture of a model with such a config."""
        self.works.append(work(CAPTURE, captured=_layers(config) + FIRST_LAYERS))

    def steps(self, plan: BuildPlan, steps: Sequence[Step], sizes: ModelSizes, *, written: bool) -> None:
        """Foresees the steps of a build, in the order that they are run in.

        Args:
            plan: What is asked for.
            steps: The steps that the build has.
            sizes: The model's.
            written: Whether the text that the model writes is there already.
        """
        found: list[Work] = []
        for step in steps:
            if isinstance(step, ModelStep):
                found += step.work(plan, sizes)
        for variant in plan.variants:
            alone = dataclasses.replace(plan, variants=(variant,))
            for step in steps:
                if isinstance(step, VariantStep) and step.applies(variant):
                    found += step.work(alone, sizes)
        self.works += [each for each in found if not (written and each.stage == WRITTEN)]

    @property
    def ahead(self) -> list[tuple[str, float]]:
        """Stages that come after the capture, with their seconds."""
        return [(each.stage, self.rates.seconds(each)) for each in self.works if each.stage != CAPTURE]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, by its plain name: those of all variants together."""
        return summed((each.stage, self.rates.seconds(each)) for each in self.works)


def summed(stages: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Returns the seconds of stages by name, those of one name together."""
    total: dict[str, float] = {}
    for name, seconds in stages:
        total[name] = total.get(name, 0.0) + seconds
    return total


def _layers(config: Mapping[str, Any]) -> int:
    for part in (config, *(config[name] for name in _NESTED if isinstance(config.get(name), Mapping))):
        counts = [part[name] for name in _NAMES if isinstance(part.get(name), int)]
        if counts and counts[0] > 0:
            return int(counts[0])
    return LAYERS
