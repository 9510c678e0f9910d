"""The IR dialect, written down as code: what a graph between the frontend and a lowering may contain.

Values are float32 (weights and activations), int64 (ids, positions, shapes), bool (masks) or, before DequantizeLinear,
codes of 8 or 4 bits. Ops are standard ONNX at opset 24, and the functions of our own domain below, whose bodies are
standard ONNX: any ONNX runtime executes the graph as it stands, and a lowering may replace a call whole.

Rules that passes rely on, each checked by `verify`:

1. Every initializer is named by the parameter, buffer or table that it came from, and has a known shape.
2. A linear layer is `MatMul(x, Transpose(W))` with W [out, in], or `MatMul(x, W)` with W [in, out], then maybe `Add`. W
   may be codes behind DequantizeLinear, and x may come through QuantizeLinear and DequantizeLinear with one scale.
3. Attention over a cache is `lepton.CachedAttention`, one a layer, whose caches are the graph inputs
   `past_key_values.{i}.key` and `.value` and the outputs `present.{i}.key` and `.value`, i counting from zero.
4. Every node carries the module path that it came from in `metadata_props["lepton.module"]`, where it has one.
5. The graph's inputs and outputs are those of its task, in order.
"""

from __future__ import annotations

import functools

import onnx
import onnx.parser
import onnx_ir as ir

from leptonc.errors import LeptonError

OPSET = 24
DOMAIN = "lepton"
MODULE_KEY = "lepton.module"
STORAGE_KEY = "lepton.storage"  # of initializers: those with one mark are the same bytes, and are stored once

# ONNX operators that a captured graph may use. A lowering knows this set and no other.
STANDARD_OPS = frozenset(  # as text: one word an op
    """
    Abs Add And Attention Cast Clip Concat Constant ConstantOfShape Cos CumSum DequantizeLinear Div Equal Erf
    Exp Expand Floor Gather GatherElements Gelu Greater GreaterOrEqual Identity LayerNormalization Less
    LessOrEqual Log MatMul Max Min Mod Mul Neg Not Or Pow QuantizeLinear RMSNormalization Range Reciprocal ReduceL2
    ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape RotaryEmbedding Round Shape Sigmoid Sign Sin Slice Softmax
    Softplus Split Sqrt Squeeze Sub Swish Tanh TensorScatter Tile TopK Transpose Trilu Unsqueeze Where
    """.split()  # noqa: SIM905
)

# Attention of new tokens over a key/value cache that holds `past_length` tokens, causal, with an optional window of
# the last `window` positions (0: none) and logit soft cap (0: none). q [batch, heads, length, key_dim]; k, v
# [batch, kv_heads, length, dim]; caches [batch, kv_heads, capacity, dim]; past_length int64 [batch]. The new keys and
# values are written at past_length; y is [batch, heads, length, value_dim].
_CACHED_ATTENTION = """
<domain: "lepton", opset_import: ["" : 24]>
CachedAttention <scale: float, softcap: float, window: int>
  (q, k, v, past_key, past_value, past_length) => (y, present_key, present_value)
{
  present_key = TensorScatter <axis = 2> (past_key, k, past_length)
  present_value = TensorScatter <axis = 2> (past_value, v, past_length)
  zero = Constant <value_int: int = 0> ()
  one = Constant <value_int: int = 1> ()
  scalar = Constant <value_ints: ints = []> ()
  new_shape = Shape <start = 2, end = 3> (q)
  new = Reshape (new_shape, scalar)
  capacity_shape = Shape <start = 2, end = 3> (past_key)
  capacity = Reshape (capacity_shape, scalar)
  key_at = Range (zero, capacity, one)
  new_at = Range (zero, new, one)
  rows = Constant <value_ints: ints = [-1, 1, 1, 1]> ()
  columns = Constant <value_ints: ints = [1, 1, -1, 1]> ()
  start = Reshape (past_length, rows)
  offset = Reshape (new_at, columns)
  query_at = Add (start, offset)
  causal = LessOrEqual (key_at, query_at)
  span = Constant <value_int: int = @window> ()
  distance = Sub (query_at, key_at)
  near = Less (distance, span)
  no_window = Equal (span, zero)
  in_window = Or (near, no_window)
  mask = And (causal, in_window)
  y = Attention <scale: float = @scale, softcap: float = @softcap> (q, present_key, present_value, mask)
}
"""


@functools.lru_cache(maxsize=1)
def _parsed() -> onnx.FunctionProto:
    return onnx.parser.parse_function(_CACHED_ATTENTION)


def functions() -> list[ir.Function]:
    """Returns fresh copies of our domain's functions."""
    return [ir.serde.deserialize_function(_parsed())]


class DialectError(LeptonError):
    """A graph breaks a rule of the dialect: a bug in the frontend or in the pass that ran last."""

    exit_code = 70


def module_of(node: ir.Node) -> str:
    """Returns the path of the module that the node came from, or ""."""
    return node.metadata_props.get(MODULE_KEY, "")


def attribute(node: ir.Node, name: str, default: float | int | None = None) -> float | int:
    """Returns a number among the node's attributes, or the default."""
    stored = node.attributes.get(name)
    if stored is None:
        if default is None:
            raise KeyError(f"{node.op_type} has no attribute {name}")
        return default
    value: float | int = stored.value
    return value


def verify(model: ir.Model, *, after: str = "capture") -> None:
    """Checks every rule of the dialect.

    Args:
        model: The graph.
        after: What ran last, for the message.

    Raises:
        DialectError: names the rule's violation, the node, its module, and `after`.
    """

    def fail(text: str, node: ir.Node | None = None) -> None:
        place = f" at {node.op_type} `{node.name}` of {module_of(node) or 'the graph'}" if node else ""
        raise DialectError(f"after {after}: {text}{place}", hint="this is a bug in Lepton; please report it")

    graph = model.graph
    if model.opset_imports.get("") != OPSET:
        fail(f"expected opset {OPSET}, found {model.opset_imports.get('')}")
    for name, value in graph.initializers.items():
        if value.const_value is None or any(not isinstance(d, int) for d in value.const_value.shape):
            fail(f"initializer `{name}` has no data or an unknown shape")
    known = {(f.domain, f.name) for f in model.functions.values()}
    made: set[int] = {id(v) for v in (*graph.inputs, *graph.initializers.values())}
    caches: list[ir.Node] = []
    for node in graph:
        if node.domain == DOMAIN:
            if (node.domain, node.op_type) not in known:
                fail(f"expected a function of the model, found {node.domain}.{node.op_type}", node)
            if node.op_type == "CachedAttention":
                caches.append(node)
        elif node.op_type == "QuantizeLinear" and not node.domain:
            readers = [use.node.op_type for use in node.outputs[0].uses()]
            if any(op != "DequantizeLinear" for op in readers):
                fail(f"expected codes that DequantizeLinear alone reads, found {', '.join(sorted(set(readers)))}", node)
        elif node.domain != "" or node.op_type not in STANDARD_OPS:
            fail(f"expected an op of the dialect, found {node.domain or 'ai.onnx'}.{node.op_type}", node)
        for read in node.inputs:
            if read is not None and id(read) not in made:
                fail(f"input `{read.name}` is used before it is made", node)
        made.update(id(v) for v in node.outputs)
    for output in graph.outputs:
        if id(output) not in made:
            fail(f"output `{output.name}` is made by nobody")
    inputs, outputs = [v.name for v in graph.inputs], [v.name for v in graph.outputs]
    for i, node in enumerate(caches):
        for slot, kind in ((3, "key"), (4, "value")):
            source = node.inputs[slot]
            if source is None or source.name not in inputs or not str(source.name).endswith(f".{kind}"):
                fail(
                    f"expected a cache input past_key_values.*.{kind}, found `{source.name if source else None}`", node
                )
        for value in node.outputs[1:]:
            if value.name not in outputs:
                fail(f"expected the cache `{value.name}` of layer {i} among the outputs", node)


def count_ops(*graphs: ir.Model) -> dict[str, int]:
    """Returns how often each op occurs, most frequent first, ops of other domains with their domain's name."""
    counts: dict[str, int] = {}
    for node in (node for graph in graphs for node in graph.graph):
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
