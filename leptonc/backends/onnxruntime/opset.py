"""Declares the oldest operator set that has all operators of a lowered graph, in the form that the graph uses.

ONNX Runtime refuses a graph of an operator set that is newer than itself, whatever the graph uses of it: 1.23, the last
for Python 3.10, stops at 23. The dialect is of a newer one, for TensorScatter alone, which the lowering replaces.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx import defs, helper

from leptonc.backends.onnxruntime.attention import MS
from leptonc.ir.dialect import OPSET

# From here on, up to the dialect's, ONNX only adds types, inputs and attributes to the operators of the dialect: a form
# that both versions take means the same in both. ONNX Runtime has it since 1.14.
OLDEST = 18
# ONNX Runtime 1.23 has no kernel for these at 23, where their own domain's operator of the same name is that kernel.
OWN = frozenset({"QuantizeLinear"})


def declare(model: ir.Model) -> None:
    """Declares the oldest operator set and version of the format that the graph needs, and only domains that it uses.

    It reads the types of values, so it comes before they are removed.
    """
    nodes = list(_nodes(model))
    for node in nodes:
        if not node.domain and node.op_type in OWN:
            node.domain = MS
    used = {node.domain for node in nodes}
    imports = model.graph.opset_imports
    for domain in [domain for domain in imports if domain and domain not in used]:
        del imports[domain]
    imports[""] = max((_needed(node) for node in nodes if not node.domain), default=OLDEST)
    standard = [helper.make_opsetid("", imports[""])]
    model.ir_version = max(helper.find_min_ir_version_for(standard), _ir_version_of_types(model))


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        yield from ir.traversal.RecursiveGraphIterator(graph)


def _needed(node: ir.Node) -> int:
    """Returns the oldest operator set whose schema has the node's inputs, outputs, attributes and types."""
    oldest = OPSET
    for version in range(OPSET, OLDEST - 1, -1):
        try:
            schema = defs.get_schema(node.op_type, version, "")
        except defs.SchemaError:  # the operator is newer
            break
        if not _takes(schema, node):
            break
        oldest = version
    return oldest


def _takes(schema: defs.OpSchema, node: ir.Node) -> bool:
    present = [at for at, value in enumerate(node.inputs) if value is not None]
    if (present and present[-1] >= schema.max_input) or len(node.outputs) > schema.max_output:
        return False
    if not set(node.attributes) <= set(schema.attributes):
        return False
    constraints = {types.type_param_str: set(types.allowed_type_strs) for types in schema.type_constraints}
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for at, value in enumerate(values):
            formal = formals[min(at, len(formals) - 1)]  # the last may take any number
            allowed = constraints.get(formal.type_str, {formal.type_str})
            if value is not None and value.dtype is not None and _type_text(value.dtype) not in allowed:
                return False
    return True


def _type_text(dtype: ir.DataType) -> str:
    """Returns a dtype as the specification writes it: `tensor(float)`."""
    return f"tensor({helper.tensor_dtype_to_string(int(dtype)).removeprefix('TensorProto.').lower()})"


def _ir_version_of_types(model: ir.Model) -> int:
    """Returns the version of the format that has the weights' types: four bits came with the tenth."""
    four = {ir.DataType.INT4, ir.DataType.UINT4}
    return 10 if any(value.dtype in four for value in model.graph.initializers.values()) else 8
