"""What the steps of a build share: the captured model, the text that it is calibrated on, and where results go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from leptonc.artifact.matrices import Shapes
from leptonc.artifact.writer import ArtifactWriter
from leptonc.build.calibration_text import Calibration
from leptonc.build.plan import BuildPlan
from leptonc.evaluate.measure import Sample
from leptonc.frontend.captured import Captured
from leptonc.passes.base import Manager, Pass
from leptonc.progress import Timed
from leptonc.report import Report
from leptonc.sources import Source
from leptonc.variant import VariantBuild
from runtime_edge.manifest import PassRecord


@dataclass(frozen=True)
class BuildContext:
    """One build, from its captured model on. No step sets a field of it: a step returns another context.

    Attributes:
        plan: What is asked for.
        source: The model's files.
        captured: The model, which steps on the model change in place.
        sample: The text that quality is measured on.
        calibration: The text that statistics are gathered on.
        writer: Writes the artifact; its `scratch` directory is for temporary files.
        clock: Shows and times stages.
        variants: The variants, in the order of the targets.
        manager: Runs passes on the captured model.
        report: The report so far; a step adds its section.
        records: Passes that changed a graph so far, for the manifest.
        original: The model as it was captured, for steps that compare with it. Default: no step does.
        shapes: Matrices of the model that variants are made from. Default: the model is still being changed.
    """

    plan: BuildPlan
    source: Source
    captured: Captured
    sample: Sample
    calibration: Calibration
    writer: ArtifactWriter
    clock: Timed
    variants: tuple[VariantBuild, ...]
    manager: Manager
    report: Report = field(default_factory=Report)
    records: list[PassRecord] = field(default_factory=list)
    original: ir.Model | None = None
    shapes: Shapes | None = None

    def run_passes(self, passes: Sequence[Pass]) -> None:
        """Runs passes on the captured model, and records them."""
        before = len(self.manager.records)
        self.manager.run(self.captured.model, passes)
        self.records.extend(self.manager.records[before:])

    def record_once(self, records: Sequence[PassRecord]) -> None:
        """Records passes of a variant; variants that have the same ones are recorded once."""
        self.records.extend(record for record in records if record not in self.records)
