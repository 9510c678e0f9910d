"""A decoder as TensorRT takes it: one sequence, a cache of fixed size, logits of the positions that are asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from leptonc.ir import edit
from leptonc.ir.dialect import DOMAIN, attribute
from leptonc.ir.ports import add_input
from leptonc.passes.base import Config, Pass
from leptonc.passes.last_logits import head_of, keep_rows
from runtime_edge.part_record import CHOSEN_POSITIONS, Port

AT = Port(name="logits_at", role=CHOSEN_POSITIONS, dtype="int64", dims=("kept",))


class LogitsAt(Pass):
    """Adds the graph input `logits_at` (int64 [n]): the last layer and the head run for these positions only.

    TensorRT would need the bounds of a slice on the host; this is data on the device.
    """

    name = "tensorrt-logits-at"
    version = 3  # the last layer too; logits have a size for the positions

    def run(self, model: ir.Model) -> int:
        head = head_of(model.graph)
        if head is None:
            return 0
        at = add_input(model.graph, AT)

        def select(value: ir.Value, before: ir.Node) -> ir.Value:
            return edit.insert(before, "Gather", [value, at], {"axis": 1}, name=f"{value.name}/kept")[0]

        return keep_rows(model.graph, head, select)


@dataclasses.dataclass(frozen=True)
class FixedShapesConfig(Config):
    """`capacity`: tokens that the cache holds."""

    capacity: int = 4096


class FixedShapes(Pass):
    """Makes the batch of a decoder 1 and its cache's length a number: TensorScatter's kernel needs both."""

    name = "tensorrt-fixed-shapes"
    config: FixedShapesConfig

    def run(self, model: ir.Model) -> int:
        sizes = {"batch": 1, "capacity": self.config.capacity}
        graph = model.graph
        values = [*graph.inputs, *(v for node in graph for v in node.outputs)]
        for value in values:
            if value.shape is not None:
                value.shape = ir.Shape([sizes.get(str(getattr(d, "value", d)), d) for d in value.shape])
        return len(values)


# Initializers that have an element for each row of the cache, with their shapes.
ROWS = {"key_positions": (1, 1, 1, -1), "cache_rows": (-1,)}


def with_capacity(model: ir.Model, capacity: int) -> ir.Model:
    """Returns a copy of a lowered decoder with a cache of `capacity` rows and the same weights.

    It is for runs of a short text on the CPU, where attention over thousands of masked rows would cost most.
    """
    copy = model.clone()
    graph = copy.graph
    for node in graph:
        for value in node.outputs:
            value.shape = value.shape if value.is_graph_output() else None
    for value in (*graph.inputs, *graph.outputs):
        if str(value.name).startswith(("past_key_values.", "present.")) and value.shape is not None:
            value.shape = value.shape.copy()
            value.shape[2] = capacity
    for name in ROWS.keys() & graph.initializers.keys():
        positions = np.arange(capacity, dtype=np.int64).reshape(ROWS[name])
        graph.initializers[name].const_value = ir.tensor(positions, name=name)
        graph.initializers[name].shape = ir.Shape(positions.shape)
    return copy


class CachedAttentionToScatter(Pass):
    """Replaces `lepton.CachedAttention` by `TensorScatter` into the cache and `Attention` with an explicit mask.

    1. The mask is made once for every window that occurs, not once a layer: positions up to the query's own, and
       within the window. It hides the rows of the cache that nothing was written to yet.
    2. `softmax_precision` is left out: TensorRT's parser refuses it.
    """

    name = "tensorrt-cached-attention"

    def run(self, model: ir.Model) -> int:
        calls = [n for n in model.graph if n.op_type == "CachedAttention" and n.domain == DOMAIN]
        self._masks: dict[int, ir.Value] = {}
        for node in calls:
            self._lower(model.graph, node)
        return len(calls)

    def _lower(self, graph: ir.Graph, node: ir.Node) -> None:
        query, key, value, past_key, past_value, past = node.inputs
        presents = [
            edit.insert(node, "TensorScatter", [cache, new, past], {"axis": 2}, name=f"{node.name}/{kind}")[0]
            for kind, cache, new in (("key", past_key, key), ("value", past_value, value))
        ]
        for new, old in zip(presents, node.outputs[1:], strict=True):
            edit.replace(old, new)
        attributes = {"scale": float(attribute(node, "scale"))}
        if cap := float(attribute(node, "softcap", 0.0)):
            attributes["softcap"] = cap
        assert past is not None  # the dialect's rule 3
        assert past_key is not None
        assert past_key.shape is not None
        mask = self._mask(graph, past, int(past_key.shape[2]), int(attribute(node, "window", 0)))  # type: ignore[arg-type]
        (out,) = edit.insert(node, "Attention", [query, *presents, mask], attributes)
        edit.replace(node.outputs[0], out)
        graph.remove(node, safe=True)

    def _mask(self, graph: ir.Graph, past: ir.Value, capacity: int, window: int) -> ir.Value:
        """Returns the mask, bool [1, 1, length, capacity]: whether a row's query attends to a column's key."""
        if window not in self._masks:
            first = graph[0]

            def add(op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
                name = f"mask.{window}/{op}"
                outputs = edit.insert(first, op, inputs, attributes, name=name, module="")
                return outputs[0]

            positions = np.arange(capacity, dtype=np.int64)
            column = ir.tensor(positions.reshape(ROWS["key_positions"]), name="key_positions")
            keys = edit.initializer(graph, "key_positions", column)
            length = add("Squeeze", add("Shape", graph.inputs[0], start=1, end=2))
            new = add("Range", edit.ints(graph, 0), length, edit.ints(graph, 1))
            rows = add("Reshape", add("Add", new, past), edit.ints(graph, [1, 1, -1, 1]))
            mask = add("LessOrEqual", keys, rows)
            if window:
                distance = add("Sub", rows, keys)
                mask = add("And", mask, add("Less", distance, edit.ints(graph, window)))
            self._masks[window] = mask
        return self._masks[window]
