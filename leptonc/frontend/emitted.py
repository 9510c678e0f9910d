"""Reads a graph that was captured and emitted before: no model is traced, no torch runs, and no weight is read."""

from __future__ import annotations

from typing import Any, NoReturn

import onnx
import onnx_ir as ir

from leptonc.errors import InputError
from leptonc.frontend import weights as bindings
from leptonc.frontend.captured import Captured
from leptonc.frontend.interface import Interface, PartForm
from leptonc.frontend.tasks import config_of, task_of
from leptonc.ir import dialect, ports
from leptonc.ir.weights import SOURCE_KEY
from leptonc.sources.base import Emitted, Source
from runtime_edge import part_record as roles

_UNREADABLE = (ir.serde.SerdeError, ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError)


def read(source: Source, emitted: Emitted, *, max_seq_len: int) -> Captured:
    """Returns the graph of an emitted source in the form that a capture has.

    Args:
        source: Config and weights.
        emitted: The graph, and facts about it.
        max_seq_len: Longest sequence that the artifact serves; a graph with fewer positions gets fewer.

    Raises:
        InputError: It is no graph of the dialect, its shapes contradict each other, or it is for another task than the
            config says.
    """
    task = task_of(source.config, source.modules)
    if task.name != emitted.task:
        _fail(emitted, f"a graph for {task.name}, as its config says", f"one for {emitted.task}")
    config = config_of(task, source.config)
    model = _model(emitted)
    for name, value in model.graph.initializers.items():
        value.const_value = _tensor(source, emitted, name, value.const_value)
    try:
        dialect.verify(model, after="reading")
    except dialect.DialectError as error:
        _fail(emitted, "a graph of the dialect", error.message)
    interface = task.interface(config)
    form = _one_part(interface, emitted)
    _check_interface(model, emitted, form, vocab=getattr(config, "vocab_size", 0))
    ports.describe(model, next(iter(interface.parts)), form.inputs, form.outputs)
    rows = [int(node.inputs[1].shape[0]) for node in model.graph if node.op_type == "RotaryEmbedding"]  # type: ignore[index, union-attr, arg-type]
    if min(rows, default=emitted.max_seq_len) < emitted.max_seq_len:
        _fail(emitted, f"tables for {emitted.max_seq_len} positions", f"ones for {min(rows)}")
    positions = min(max_seq_len, emitted.max_seq_len)
    graphs = dict.fromkeys(interface.parts, model)
    return Captured(graphs, task, interface, config, emitted.parameters, positions)


def _fail(emitted: Emitted, expected: str, found: object) -> NoReturn:
    raise InputError(
        f"{emitted.label}: expected {expected}, found: {found}",
        hint="it is damaged, or was changed: write it again with `leptonc build MODEL --emit onnx`",
    )


def _model(emitted: Emitted) -> ir.Model:
    """Parses the graph and checks its shapes. The bodies of our functions are our own, not those of the file."""
    proto = onnx.ModelProto.FromString(emitted.graph)
    proto.ClearField("functions")
    called = {node.op_type for node in proto.graph.node if node.domain == dialect.DOMAIN}
    proto.functions.extend(ir.serde.serialize_function(f) for f in dialect.functions() if f.name in called)
    _check_shapes(proto, emitted)
    try:
        return ir.serde.deserialize_model(proto)
    except _UNREADABLE as error:
        _fail(emitted, "an ONNX graph", error)


def _check_shapes(proto: onnx.ModelProto, emitted: Emitted) -> None:
    """Infers all shapes anew: those of weights, inputs and inner values have to agree."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.initializer[:]
    for tensor in proto.graph.initializer:  # external data is not read
        if tensor.external_data:
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            bare.graph.initializer.append(tensor)
    try:
        onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, *_UNREADABLE) as error:
        _fail(emitted, "shapes that go together", " ".join(str(error).split())[:300])


def _tensor(source: Source, emitted: Emitted, name: str, stored: Any) -> Any:
    """Returns a weight as a lazy tensor, and a constant, which nodes share, as a tensor in memory."""
    handle = source.weights.get(name)
    if handle is not None and SOURCE_KEY in stored.metadata_props and handle.dtype == "F32":
        stands_for = stored.metadata_props[SOURCE_KEY] or name  # a tensor without a source is its own reference
        return bindings.lazy(name, handle.shape, bindings.checked(name, handle), stands_for)
    try:
        return ir.tensor(handle.read() if handle is not None else stored.numpy().copy(), name=name)
    except _UNREADABLE as error:
        _fail(emitted, f"data of the shape of `{name}`", error)


def _one_part(interface: Interface, emitted: Emitted) -> PartForm:
    if len(interface.parts) != 1:
        _fail(emitted, "a graph of a model of one part", f"one for {emitted.task}, of {len(interface.parts)}")
    return next(iter(interface.parts.values()))


def _check_interface(model: ir.Model, emitted: Emitted, form: PartForm, *, vocab: int) -> None:
    """Checks that inputs and outputs are those of the part, in order."""
    inputs, outputs = ([str(v.name) for v in values] for values in (model.graph.inputs, model.graph.outputs))
    layers = (len(outputs) - len(form.outputs)) // 2 if form.keeps == roles.KEY_VALUE else 0
    kinds = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    pasts, presents = ([f"{stem}.{kind}" for kind in kinds] for stem in ("past_key_values", "present"))
    expected_inputs = [*(port.name for port in form.inputs), *pasts]
    expected_outputs = [*(port.name for port in form.outputs), *presents]
    if inputs != expected_inputs or outputs != expected_outputs:
        expected = f"inputs {', '.join(expected_inputs)} and outputs {', '.join(expected_outputs)}"
        _fail(emitted, expected, f"{inputs} and {outputs}")
    shapes = {str(v.name): tuple(v.shape or ()) for v in (*model.graph.inputs, *model.graph.outputs)}
    fixed = dict.fromkeys([*pasts, *presents], (1, 3)) | {port.name: (-1,) for port in form.outputs}
    ranks = {port.name: len(port.dims) for port in (*form.inputs, *form.outputs)}
    for name, shape in shapes.items():
        if len(shape) != ranks.get(name, 4) or not all(_known(shape[at]) for at in fixed.get(name, ())):
            _fail(emitted, f"a shape of `{name}` with known heads and widths", list(map(str, shape)))
    for port in form.outputs:
        if port.role == roles.NEXT_TOKEN_LOGITS and shapes[port.name][-1] != vocab:
            _fail(emitted, f"logits of the {vocab} tokens that the config has", shapes[port.name][-1])


def _known(size: object) -> bool:
    return isinstance(size, int) and size > 0
