"""Describes the model that variants are made from."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from leptonc.artifact.matrices import shapes_of
from leptonc.build.context import BuildContext
from leptonc.build.step import ModelStep
from leptonc.ir.structure import Structure, structure
from leptonc.report import Shape


class DescribeModel(ModelStep):
    """Reads off the graph what the report says of its structure, and the matrices that its tables have a row for."""

    name: ClassVar[str] = "describe"
    several_parts: ClassVar[bool] = True

    def run(self, context: BuildContext) -> BuildContext:
        graphs = tuple(context.captured.graphs.values())
        context.report.structure = _shape(structure(*graphs))
        return dataclasses.replace(context, shapes=shapes_of(*graphs))


def _shape(model: Structure) -> Shape:
    layers = model.layers
    return Shape(
        layers=len(layers), residual=model.residual, heads=[layer.heads for layer in layers],
        kv_heads=[layer.kv_heads for layer in layers], mlp_channels=[layer.mlp_channels for layer in layers],
    )  # fmt: skip
