"""`report.json`: what a build did and measured, as a schema. `docs/reference/report.md` lists all of it.

A step returns its section; a `Report` is whole when it is written. Sections import nothing of the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from leptonc.report.pruning import Pruning
from leptonc.report.quality import Fidelity, Recovery
from leptonc.report.section import Section
from leptonc.report.variant import VariantReport

SCHEMA_VERSION = 1  # counts up when a field changes its meaning or goes


class Emitted(Section, kw_only=True):
    """What was reported of the graph that a model was read from.

    Attributes:
        pruning: What was pruned, the first time first.
        fidelity: The graph beside the model that it was captured from; empty where that was not measured.
    """

    pruning: list[Pruning]
    fidelity: Fidelity


class Shape(Section, kw_only=True):
    """Sizes of the captured model, after pruning.

    Attributes:
        layers: Layers.
        residual: Features of the residual stream.
        heads: Query heads of each layer.
        kv_heads: Key/value heads of each layer.
        mlp_channels: Channels of each layer's MLP.
    """

    layers: int
    residual: int
    heads: list[int]
    kv_heads: list[int]
    mlp_channels: list[int]


class Sizes(Section, kw_only=True):
    """Bytes of an artifact's parts.

    Attributes:
        weights: Files of weights.
        graph: Graphs, without weights.
        tokenizer: The tokenizer.
        plans: Engines.
    """

    weights: int
    graph: int
    tokenizer: int
    plans: int | None = None

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return self.weights + self.graph + self.tokenizer + (self.plans or 0)


class Report(Section, kw_only=True):
    """A whole report.

    Attributes:
        schema_version: Version of this schema.
        recipe: The options that repeat the build, as a recipe has them.
        warnings: What is otherwise than the checkpoint's own files say.
        parameters: Weights of the model as it was read, before pruning; tied ones are counted once.
        unused: Tensors of the checkpoint that the model does not read.
        emitted: What was reported of an emitted graph that was the source.
        structure: Sizes of the model.
        pruning: What was pruned.
        recovery: What healing did, where a graph is emitted.
        operations: Operators of the captured graph (`captured`) and of each variant, by name with their number.
        fidelity: The first variant beside the original.
        variants: The variants, by name.
        bytes: Bytes of the artifact's parts.
    """

    schema_version: int | msgspec.UnsetType = msgspec.UNSET
    recipe: dict[str, Any] | None = None
    warnings: list[str] | None = None
    parameters: int | None = None
    unused: list[str] | None = None
    emitted: Emitted | None = None
    structure: Shape | None = None
    pruning: Pruning | None = None
    recovery: Recovery | None = None
    operations: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    fidelity: Fidelity | None = None
    variants: dict[str, VariantReport] = msgspec.field(default_factory=dict)
    bytes: Sizes | None = None


def report_of(record: Report | Mapping[str, Any]) -> Report:
    """Returns a whole report of what steps recorded, with the schema's version.

    Args:
        record: A report, or the sections by name, each as it is or as JSON has it.

    Raises:
        msgspec.ValidationError: A section does not fit the schema, which is a bug of the step that made it.
    """
    return msgspec.convert(msgspec.to_builtins(record) | {"schema_version": SCHEMA_VERSION}, Report)


def to_json(report: Report) -> bytes:
    """Returns the bytes of `report.json`: equal reports give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(report, order="sorted"), indent=2) + b"\n"


def read_report(path: Path) -> Report:
    """Reads a report that an artifact of this version has.

    Raises:
        msgspec.ValidationError: It does not fit the schema.
    """
    return msgspec.json.decode(path.read_bytes(), type=Report)


def as_plain(section: Section) -> dict[str, Any]:
    """Returns a section as JSON has it, its names sorted."""
    record: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(section, order="sorted"))
    return record
