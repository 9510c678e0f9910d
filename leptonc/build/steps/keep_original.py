"""Keeps the model as it was captured, for the steps that compare with it or learn from it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from leptonc.build.context import BuildContext
from leptonc.build.plan import BuildPlan
from leptonc.build.step import ModelStep


class KeepOriginal(ModelStep):
    """Copies the captured graph before anything is cut out of it. Weights are read when they are used, not copied."""

    name: ClassVar[str] = "keep original"

    def wanted(self, plan: BuildPlan) -> bool:
        """Returns whether the model changes: where it is pruned, or learns."""
        return plan.prune is not None or plan.options.heal is not None

    def run(self, context: BuildContext) -> BuildContext:
        return dataclasses.replace(context, original=context.captured.model.clone())
