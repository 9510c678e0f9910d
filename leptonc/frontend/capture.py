"""Capture: a source becomes a graph in the IR dialect for each part of its model, with no weight in memory.

The model is built on the meta device, each part of it run once eagerly so that the probes learn its forms, and then
exported once with symbolic batch and length. Attention, rotary embedding, cache and norms are single operators of the
trace already (`patches`), so nothing has to be recognised afterwards; what was captured is counted, and a model whose
attention was not captured is refused.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import transformers

from leptonc.errors import CaptureError, InputError
from leptonc.frontend import ties
from leptonc.frontend import weights as bindings
from leptonc.frontend.aten import TABLE, convert_size
from leptonc.frontend.builder import Builder
from leptonc.frontend.captured import Captured as Captured
from leptonc.frontend.export import check_tables, export
from leptonc.frontend.interface import PartForm
from leptonc.frontend.limits import by_length, check_sizes
from leptonc.frontend.patches import Recorder, patched
from leptonc.frontend.probe import RotaryForm, half_table
from leptonc.frontend.tasks import Traced, build_model, task_of
from leptonc.ir import dialect, ports
from leptonc.ir.edit import cleanup
from leptonc.ir.weights import SOURCE_KEY
from leptonc.sources.base import Source
from runtime_edge import part_record as roles
from runtime_edge.part_record import Port

FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
_TYPES = {"int64": INT64, "float32": FLOAT}


def position_limit(config: Any) -> int | None:
    """Returns the number of positions that the model was made for, or None where its config has none."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            # RoBERTa's family counts positions from behind the padding index.
            offset = (config.pad_token_id or 0) + 1 if config.model_type in _OFFSET_FAMILIES else 0
            return value - offset
    return None


_OFFSET_FAMILIES = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "data2vec-text", "longformer"}


def capture(source: Source, *, max_seq_len: int) -> Captured:
    """Traces the source's model, or reads the graph of a source that is an emitted one.

    Args:
        source: Where config and weights come from.
        max_seq_len: Longest sequence that the artifact serves; a model made for fewer positions gets fewer.

    Raises:
        CaptureError: the architecture cannot be captured whole.
        InputError: config and weights do not belong together.
    """
    if source.emitted is not None:
        from leptonc.frontend import emitted

        return emitted.read(source, source.emitted, max_seq_len=max_seq_len)
    check_sizes(source.config, len(source.weights))
    task = task_of(source.config, source.modules)
    model = build_model(task, source.config, "eager")
    task.check_padding(model, source.tokenizer_config.get("padding_side"))
    limit = position_limit(model.config)
    bounds = (max_seq_len, limit, task.text_limit(source))
    positions = min(bound for bound in bounds if bound)
    warnings = [*ties.separate(model, source.weights), *by_length(model.config, positions)]
    bound = bindings.bind(model, source.weights)
    _check_nesting(source.config, model, bound)
    if 2 * len(bound) < len(list(model.parameters())):  # another model's: refuse it before the trace, which takes long
        bindings.require_weights((name for name, _ in model.named_parameters()), bound)
    values = bindings.buffers(model, source.weights)
    warnings += task.warnings(source.config)
    known, unknown = ties.unused(model, source.weights, source.config)
    if unknown and source.complete:
        raise InputError(
            f"expected a use for every tensor in a {type(model).__name__}, found none for {ties.summary(unknown)}",
            hint="give the original Hugging Face model instead",
        )
    if unknown:
        warnings.append(
            f"{len(unknown)} tensors of the checkpoint are no part of {type(model).__name__} and are left out, as "
            f"transformers leaves them out: {ties.summary(unknown)}"
        )
    interface = task.interface(model.config)
    with patched(model, max_positions=positions) as recorder:
        traced = {
            name: (form, Traced(task, name, tuple(port.name for port in form.traced), model, recorder))
            for name, form in interface.parts.items()
        }
        programs = export(traced, model, recorder, limit)
    check_tables(recorder)
    read = [
        program.graph_signature.inputs_to_parameters[node.name].removeprefix("model.")
        for program in programs.values() for node in program.graph.nodes
        if node.op == "placeholder" and node.users and node.name in program.graph_signature.inputs_to_parameters
    ]  # fmt: skip
    bindings.require_weights(dict.fromkeys(read), bound)
    graphs = {}
    for name, program in programs.items():
        form, module = traced[name]
        graphs[name] = graph = _Converter(form, module, recorder, program, bound, values).run()
        cleanup(graph)
        dialect.verify(graph, after="capture")
    parameters = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    return Captured(
        graphs, task, interface, model.config, parameters, positions, tuple(warnings), tuple(known)
    )  # fmt: skip


def _check_nesting(config: Mapping[str, Any], model: Any, bound: Mapping[str, tuple[str, object]]) -> None:
    """Refuses a multimodal model's names of weights beside the config of a language model alone.

    transformers finds none of them then, and starts with random numbers.
    """
    if type(model.config) is not transformers.CONFIG_MAPPING[config["model_type"]]:  # its `get` finds nothing
        return  # the language model of a multimodal config
    for name, (stored, _) in bound.items():
        if "language_model." in stored and "language_model." not in name:
            raise InputError(
                f"expected weights of a {type(model).__name__} alone, found a multimodal model's: `{stored}` in the "
                f"place of `{name}`",
                hint="take the multimodal model's config.json, or rename the weights",
            )


class _Converter:
    """Walks an exported program once and builds the graph."""

    def __init__(
        self, form: PartForm, traced: Traced, recorder: Recorder, program: torch.export.ExportedProgram,
        bound: dict[str, Any], values: dict[str, np.ndarray[Any, Any]],
    ) -> None:  # fmt: skip
        self.form, self.b, self.traced, self.recorder, self.program = form, Builder(), traced, recorder, program
        self.bound, self.buffers = bound, values
        self.special: dict[str, Callable[..., Any]] = {
            "lepton.attention.default": self.attention, "lepton.rotary.default": self.rotary,
            "lepton.rotary_tables.default": self.rotary_tables, "lepton.rms_norm.default": self.rms_norm,
            "lepton.linear.default": lambda node, *args: TABLE["linear"](self.b, node, *args),
        }  # fmt: skip
        self.presents: list[ir.Value] = []
        self.mask: ir.Value | None = None
        self.tables: dict[torch.fx.Node, str] = {}

    def run(self) -> ir.Model:
        b, signature = self.b, self.program.graph_signature
        self._inputs()
        for node in self.program.graph.nodes:
            stack = node.meta.get("nn_module_stack") or {}
            path = next(reversed(list(stack.values())))[0] if stack else ""
            b.module = "" if path == "model" else path.removeprefix("model.")  # `Traced` holds the model as "model"
            if node.op == "placeholder":
                self._placeholder(node, signature)
            elif node.op == "call_function":
                b.values[node] = self._call(node)
            elif node.op == "output":
                results = [b.value(output) for output in node.args[0]]
                for result, port in zip(results, self.form.outputs, strict=True):
                    result.name = port.name
                b.graph.outputs.extend([*results, *self.presents])
        model = b.finish()
        ports.describe(model, self.traced.part, self.form.inputs, self.form.outputs)
        return model

    def _inputs(self) -> None:
        b = self.b
        program_inputs = [
            n for n in self.program.graph.nodes
            if n.op == "placeholder" and n.name in self.program.graph_signature.user_inputs
        ]  # fmt: skip
        examples = {port.name: node.meta["val"] for port, node in zip(self.form.traced, program_inputs, strict=True)}
        self.users: dict[str, ir.Value] = {}
        input_names = {port.name for port in self.form.inputs}
        for port in self.form.traced:
            for size, name in zip(examples[port.name].shape, port.dims, strict=True):
                if isinstance(name, str):
                    b.dims.setdefault(str(size), name)
            if port.name in input_names:
                self.users[port.name] = b.input(port.name, _TYPES[port.dtype], port.dims)
        sizes: dict[str, ir.Value] = {}  # by name, read from the first input that has it
        for expression, name in b.dims.items():
            port = next(p for p in self.form.traced if p.name in input_names and name in p.dims)
            axis = port.dims.index(name)
            sizes[name] = b.sizes[expression] = b.op("Shape", [self.users[port.name]], {"start": axis, "end": axis + 1})
        if (past := self._port(roles.PAST_LENGTH)) is not None:
            self.past = b.input(past.name, INT64, past.dims)
        for port in self.form.traced:
            if port.role == roles.POSITIONS and port.name not in input_names:
                length = b.op("Reshape", [sizes[roles.LENGTH], b.const([])])
                new = b.op("Range", [b.const(0), length, b.const(1)])
                start = b.op("Unsqueeze", [self.past, b.const([1])])
                self.users[port.name] = b.op("Add", [start, new], like=examples[port.name])
        if (mask := self._port(roles.ATTENTION_MASK)) is not None:
            real = b.op("Cast", [self.users[mask.name]], {"to": int(BOOL)})
            rows = b.op("Unsqueeze", [real, b.const([1, 2])])
            batch, length = (sizes[str(name)] for name in mask.dims)
            self.mask = b.op("Expand", [rows, b.op("Concat", [batch, b.const([1]), length, length], {"axis": 0})])
            self.mask.type = ir.TensorType(BOOL)

    def _positions(self) -> ir.Value:
        port = next((port for port in self.form.traced if port.role == roles.POSITIONS), None)
        if port is None:
            raise CaptureError(
                f"{self.b.module}: expected positions among what the task gives, found none",
                hint="this architecture is not supported yet",
            )
        return self.users[port.name]

    def _port(self, role: str) -> Port | None:
        return next((port for port in self.form.inputs if port.role == role), None)

    def _placeholder(self, node: torch.fx.Node, signature: Any) -> None:
        b = self.b
        if node.name in signature.inputs_to_parameters:
            name = signature.inputs_to_parameters[node.name].removeprefix("model.")
            if node.users:
                stored, handle = self.bound[name]
                read = bindings.checked(stored, handle)
                b.values[node] = b.initializer(bindings.lazy(name, node.meta["val"].shape, read, stored), name)
        elif node.name in signature.inputs_to_buffers:
            name = signature.inputs_to_buffers[node.name].removeprefix("model.")
            if node.users:
                array = bindings.require_buffer(self.buffers, name)
                dtype = b.dtype(node.meta["val"].dtype)
                tensor = ir.tensor(np.ascontiguousarray(array).astype(dtype.numpy()), name=name)
                b.values[node] = b.initializer(tensor, name)
        elif node.name in signature.user_inputs:
            at = list(signature.user_inputs).index(node.name)
            b.values[node] = self.users[self.traced.names[at]]
        elif node.users:
            raise CaptureError(f"{node.name}: the model makes a constant inside its forward, whose value is not known")

    def _call(self, node: torch.fx.Node) -> Any:
        if node.target is operator.getitem:
            item = self.b.values[node.args[0]][node.args[1]]  # type: ignore[index]
            if node.args[0] in self.tables:
                self.tables[node] = self.tables[node.args[0]]  # type: ignore[index]
            return item
        target = str(node.target)
        if target in self.special:
            return self.special[target](node, *node.args)
        if not isinstance(node.target, torch._ops.OpOverload):
            return convert_size(self.b, node)
        if target.startswith("aten._assert") or not node.users:
            return None
        match = re.match(r"aten\.(\w+?)_?\.", target)
        handler = TABLE.get(match[1]) if match else None
        if handler is None:
            place = self.b.module or type(self.traced.model).__name__
            raise CaptureError(
                f"{place}: expected operators of the table in leptonc/frontend/aten.py, found {target}",
                hint="this architecture is not supported yet",
            )
        return handler(self.b, node, *node.args, **node.kwargs)

    # Our own operators

    def attention(
        self, node: torch.fx.Node, q: Any, k: Any, v: Any, module: str, layer: int, scale: float, softcap: float,
        window: int, cached: bool,
    ) -> ir.Value:  # fmt: skip
        b = self.b
        tensors = [b.value(x) for x in (q, k, v)]
        shape = node.meta["val"].shape
        heads_first = torch.empty((2, shape[2], 7, shape[3]), device="meta")
        if not cached:
            mask = [self.mask] if self.mask is not None else []
            y = b.op("Attention", [*tensors, *mask], {"scale": scale, "softcap": softcap})
        else:
            i = len(self.presents) // 2
            pasts = []
            for x, kind in ((k, "key"), (v, "value")):
                size = x.meta["val"].shape
                pasts.append(
                    b.input(f"past_key_values.{i}.{kind}", FLOAT, ("batch", int(size[1]), "capacity", int(size[3])))
                )
            y, *presents = b.ops(
                "CachedAttention", [*tensors, *pasts, self.past],
                {"scale": scale, "softcap": softcap, "window": window}, outputs=3, domain=dialect.DOMAIN,
            )  # fmt: skip
            for present, past, kind in zip(presents, pasts, ("key", "value"), strict=True):
                present.name, present.shape, present.type = f"present.{i}.{kind}", past.shape, past.type
            self.presents.extend(presents)
        b.describe(y, heads_first)
        y.shape = ir.Shape(["batch", int(shape[2]), "length", int(shape[3])])
        return b.op("Transpose", [y], {"perm": [0, 2, 1, 3]}, like=node.meta["val"])

    def rotary_tables(self, node: torch.fx.Node, positions: Any, table: str, width: int) -> list[ir.Value]:
        """Gathers rows of the model's own tables, for functions that rotate in their own way."""
        b = self.b
        self.tables[node] = table
        both = zip(("cos", "sin"), self.recorder.tables[table], strict=True)
        named = [b.initializer(ir.tensor(t.numpy(), name=f"{table}.{kind}"), f"{table}.{kind}") for kind, t in both]
        return [
            b.op("Gather", [t, b.value(positions)], {"axis": 0}, like=like)
            for t, like in zip(named, node.meta["val"], strict=True)
        ]

    def rotary(self, node: torch.fx.Node, x: Any, cos: Any, sin: Any, interleaved: bool, layout: str) -> ir.Value:
        b, table = self.b, self.tables[cos]
        halves, width = [], 0
        for kind, full in zip(("cos", "sin"), self.recorder.tables[table], strict=True):
            name = f"{table}.{kind}_cache"
            half = half_table(full, RotaryForm(interleaved, layout)).contiguous().numpy()
            halves.append(b.initializer(ir.tensor(half, name=name), name))
            width = 2 * half.shape[-1]
        attributes: dict[str, Any] = {"interleaved": int(interleaved)}
        if width != x.meta["val"].shape[-1]:
            attributes["rotary_embedding_dim"] = width
        return b.op("RotaryEmbedding", [b.value(x), *halves, self._positions()], attributes, like=node.meta["val"])

    def rms_norm(self, node: torch.fx.Node, x: Any, weight: Any, eps: float, offset: float) -> ir.Value:
        b = self.b
        if weight is None:
            scale = b.const([1.0] * int(node.meta["val"].shape[-1]), FLOAT)
        else:
            scale = b.value(weight)
            if offset:
                # Gemma's norms scale by 1 + w: folded, so that a pass sees one kind of norm.
                name, inner = f"{scale.name}.plus_one", scale.const_value
                stored = str(inner.metadata_props[SOURCE_KEY])  # type: ignore[union-attr]
                read = lambda: inner.numpy() + np.float32(offset)  # type: ignore[union-attr]  # noqa: E731
                scale = b.initializer(bindings.lazy(name, inner.shape.numpy(), read, stored), name)  # type: ignore[union-attr]
        return b.op("RMSNormalization", [b.value(x), scale], {"axis": -1, "epsilon": eps}, like=node.meta["val"])
