"""Gives a variant's report its tables of linear layers and embeddings."""

from __future__ import annotations

from typing import ClassVar

from leptonc.artifact.matrices import rounded_of
from leptonc.build.advice import add_rows
from leptonc.build.context import BuildContext
from leptonc.build.step import VariantStep
from leptonc.variant import VariantBuild


class DescribeWeights(VariantStep):
    """Adds a row for each matrix: its format, its bytes and, where it was measured, its signal-to-noise ratio."""

    name: ClassVar[str] = "tables"
    several_parts: ClassVar[bool] = True

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        if context.shapes is None:
            raise ValueError("the model was not described")
        add_rows(variant, context.shapes, rounded_of(variant.passes))
        return variant
