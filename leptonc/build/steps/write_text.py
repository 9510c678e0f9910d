"""Gets the calibration text, before anything is cut out of the model that writes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from leptonc.build import calibration_text
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import CALIBRATING, ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import ModelStep, Need
from leptonc.build.work import Work, work
from leptonc.calibrate.generate import rounds
from leptonc.report.quantization import Quantization


class WriteText(ModelStep):
    """Reads the user's text, or lets a decoder write one; the report of each calibrated variant says which."""

    name: ClassVar[str] = "calibration text"
    version: ClassVar[int] = 2
    options: ClassVar[tuple[str, ...]] = ("calibration", "chat")

    def wanted(self, plan: BuildPlan) -> bool:
        return plan.texts > 0

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        if _written(plan, sizes):
            yield Need("the model that writes", CALIBRATING + sizes.whole // 2, keeps_activations=True)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        if texts := _written(plan, sizes):
            length = min(calibration_text.WINDOW, sizes.captured.max_seq_len)
            yield work("calibration text", drawn=texts * length * sizes.multiplications, runs=rounds(texts) * length)

    def run(self, context: BuildContext) -> BuildContext:
        about = context.calibration.describe()
        for variant in context.variants:
            if variant.plan.name in context.plan.calibrated:
                variant.report.quantization = Quantization(method=variant.plan.method, calibration=about)
        return context


def _written(plan: BuildPlan, sizes: ModelSizes) -> int:
    """How many texts a model writes itself."""
    writes = plan.options.calibration is None and sizes.captured.interface.writes_text
    return calibration_text.written(plan.texts) if writes else 0
