"""Chooses the scales of a cache of 8-bit integers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from leptonc.build.calibration_text import LOOKS
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import CalibratedStep
from leptonc.build.work import Work, reading, work
from leptonc.calibrate.caches import cache_scales
from leptonc.variant import VariantBuild, VariantPlan


class QuantizeCache(CalibratedStep):
    """Does what `--kv-cache int8` asks for: a scale a channel, from the keys and values that the text gives."""

    name: ClassVar[str] = "cache"
    options: ClassVar[tuple[str, ...]] = ("kv_cache",)
    text_option: ClassVar[str] = "--kv-cache"

    def applies(self, plan: VariantPlan) -> bool:
        return plan.kv_cache is not None

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        yield work("cache ranges", **reading(plan, sizes, LOOKS))

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        model, calibration = variant.graph, context.calibration
        caches = [name for value in model.graph.inputs if (name := str(value.name)).startswith("past_key_values.")]
        scales = calibration.cached_walk(
            f"cache-{variant.plan.name}", "cache ranges", model, dict[str, NDArray[np.float32]],
            partial(cache_scales, model, calibration.texts_for(LOOKS)),
            lambda scales: {name: scales[name] for name in caches},
        )  # fmt: skip
        return variant.choosing(cache_scales=scales)
