"""Holds the captured model against the original, before anything is done to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import CHECKING, ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import ModelStep, Need
from leptonc.build.work import Work, work
from leptonc.evaluate import capture_check


class CheckCapture(ModelStep):
    """Runs the captured graph and the original on a few tokens. Every build does, `--no-check` or not.

    Raises:
        WrongCaptureError: They differ by more than rounding.
    """

    name: ClassVar[str] = "check of the capture"
    several_parts: ClassVar[bool] = True

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        if not sizes.emitted:
            yield Need("the check of the capture", CHECKING + sizes.largest + sizes.original)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        # The original and the graph read all weights once; the tokens are few.
        if not sizes.emitted:
            yield work("capture check", written=2 * sizes.whole)

    def run(self, context: BuildContext) -> BuildContext:
        if context.source.emitted is None:
            with context.clock.stage("capture check"):
                capture_check.check_capture(context.sample)
        return context
