"""Describes the model that variants are made from."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from leptonc.artifact.matrices import shapes_of
from leptonc.build.context import BuildContext
from leptonc.build.step import ModelStep
from leptonc.ir.structure import structure


class DescribeModel(ModelStep):
    """Reads off the graph what the report says of its structure, and the matrices that its tables have a row for."""

    name: ClassVar[str] = "describe"

    def run(self, context: BuildContext) -> BuildContext:
        model = context.captured.model
        context.report["structure"] = structure(model).summary()
        return dataclasses.replace(context, shapes=shapes_of(model))
