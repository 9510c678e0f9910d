"""What can be cut out of a model: heads, groups, channels, blocks and layers, with the weights that go with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from leptonc.errors import InputError
from leptonc.ir.dialect import DOMAIN, module_of
from leptonc.ir.edit import only_user
from leptonc.ir.spread import ATTENTION, Span, Spread, heads_and_groups, place
from leptonc.ir.structure import Linear, embeddings, layer_of, linear_of, linears


@dataclass
class Block:
    """An attention or an MLP, which reads the residual stream and adds to it.

    Attributes:
        name: "model.layers.3/mlp" or "model.layers.3/attention".
        layer: Module path of its layer.
        kind: "attention" or "mlp".
        spread: The values and nodes that have its units: an attention's "heads" and "groups" of query heads, or an
            MLP's "channels".
        consumers: The linear layers that sum over the units.
        attentions: The attention operators.
        add: The Add to the residual stream, and the place of the block among its inputs. None: there is no such Add.
    """

    name: str
    layer: str
    kind: str
    spread: Spread
    consumers: list[Linear]
    attentions: list[ir.Node] = field(default_factory=list)
    add: tuple[ir.Node, int] | None = None

    @property
    def units(self) -> int:
        """Channels, or key/value groups."""
        return self.spread.counts["channels" if self.kind == "mlp" else "groups"]

    @property
    def heads_per_group(self) -> int:
        """Query heads of a group; 1 in an MLP."""
        return self.spread.counts["heads"] // self.units if self.kind == "attention" else 1

    def cost(self, space: str) -> int:
        """Returns the number of weights that one unit of a space has."""
        return sum(
            span.width * _size(value) // int(value.shape[span.axis])  # type: ignore[index, arg-type, misc]
            for value, spans in self.spread.initializers().items()
            for span in spans
            if span.space == space
        )

    def weights(self) -> int:
        """Returns the number of weights that go with the whole block, without norms before and after it."""
        sizes = {id(value): _size(value) for value in self.spread.initializers()}
        biases = [linear.bias for linear in self.consumers if linear.bias is not None]
        return sum({**sizes, **{id(value): _size(value) for value in biases}}.values())


@dataclass
class Groups:
    """All that can be cut.

    Attributes:
        blocks: Blocks of all layers, in graph order.
        layers: Module paths of the layers.
        width: The residual stream, with what reads and writes it.
        total: Number of weights of all layers; shares are parts of it. Embeddings, head and last norm do not count.
        missing: Reasons why blocks of a layer are missing, by layer.
    """

    blocks: list[Block]
    layers: list[str]
    width: Spread
    total: int
    missing: dict[str, list[str]] = field(default_factory=dict)

    @property
    def consumers(self) -> list[Linear]:
        """The linear layers that sum over the units of a block, in graph order."""
        return [linear for block in self.blocks for linear in block.consumers]

    def block(self, name: str) -> Block:
        """Returns the block of that name.

        Raises:
            InputError: There is no such block; the hint names some.
        """
        match = next((block for block in self.blocks if block.name == name), None)
        if match is None:
            raise InputError(
                f"expected a block of the model, found {name!r}",
                hint="its blocks are " + ", ".join(block.name for block in self.blocks[:4]) + ", …",
            )
        return match

    def require(self) -> None:
        """Refuses a model in which an attention or an MLP of some layer was not recognized.

        Raises:
            InputError: The message counts blocks, and names the first layer with its reasons.
        """
        if self.blocks and not self.missing:
            return
        counts = [f"{sum(b.kind == kind for b in self.blocks)} {kind} blocks" for kind in ("attention", "mlp")]
        layer, reasons = next(iter(self.missing.items()), ("the model", ["it has no layers"]))
        raise InputError(
            f"expected an attention and an MLP to cut in every layer, found {' and '.join(counts)} in "
            f"{len(self.layers)} layers; {len(self.missing)} are not understood, first {layer}: {'; '.join(reasons)}",
            hint="`leptonc inspect --structure` shows what was found",
        )


def _size(value: ir.Value) -> int:
    size = 1
    for dim in value.shape or ():
        size *= int(dim)  # type: ignore[arg-type]
    return size


def layer_weights(model: ir.Model) -> int:
    """Returns the number of weights of all layers."""
    return sum(
        _size(value)
        for name, value in model.graph.initializers.items()
        if layer_of(name) and isinstance(value.const_value, ir.LazyTensor)
    )


def groups(model: ir.Model) -> Groups:
    """Returns what can be cut in a graph of the dialect. Operators alone decide, not the name of an architecture.

    1. The residual stream has the embedding's columns.
    2. Query heads and key/value heads of an attention are followed to the linear layers before and after it.
    3. Any other linear layer that does not read the residual stream reads the channels of an MLP.
    """
    width = residual_stream(model)
    layers = list(dict.fromkeys(path for node in model.graph if (path := layer_of(module_of(node)))))
    result = Groups([], layers, width, layer_weights(model))
    taken = width.axes()
    attentions = [n for n in model.graph if n.op_type in ATTENTION and n.domain in ("", DOMAIN)]
    joined: set[ir.Node] = set()
    reasons: dict[str, list[str]] = {}
    for node in attentions:
        if node not in joined:
            _add_block(result, reasons, "attention", layer_of(module_of(node)), _heads(node), taken)
            joined |= {n for n in attentions if (n.outputs[0], 1) in taken}
    for linear in linears(model):
        if (linear.x, len(linear.x.shape or ()) - 1) not in taken and layer_of(linear.path):
            spread = Spread({"channels": linear.shape[1]})
            spread.follow([(linear.x, Span(len(linear.x.shape or ()) - 1, 0, 1, "channels"))])
            _add_block(result, reasons, "mlp", layer_of(linear.path), spread, taken)
    order = {node: i for i, node in enumerate(model.graph)}
    result.blocks.sort(key=lambda block: order[block.consumers[0].node])
    known = {value for block in result.blocks for value in block.spread.initializers()}
    strange = {layer_of(linear.path) for linear in linears(model) if linear.weight not in known}.union(reasons)
    nowhere = "" in reasons or not all(block.layer for block in result.blocks)
    for path in layers:
        kinds = {block.kind for block in result.blocks if block.layer == path}
        lacks = [f"no {kind}" for kind in ("attention", "mlp") if kind not in kinds]
        # A block that was cut out whole leaves no linear layer behind.
        if (lacks and (nowhere or path in strange)) or reasons.get(path):
            result.missing[path] = [*lacks, *reasons.get(path, [])]
    return result


def residual_stream(model: ir.Model) -> Spread:
    """Follows the embedding's columns to everything that has them, up to a sentence's embedding."""
    table = next(embeddings(model), None)
    value = table.outputs[0] if table is not None else None
    if value is None or value.shape is None:
        return Spread({"width": 0}, unknown=["no embedding of token ids was found"])
    size = int(value.shape[-1])  # type: ignore[arg-type]
    return Spread({"width": size}).follow([(value, Span(len(value.shape) - 1, 0, 1, "width"))])


def _heads(node: ir.Node) -> Spread:
    queries, others = heads_and_groups(node)
    counts = {"heads": int(queries[0].shape[1]), "groups": int(others[0].shape[1])}  # type: ignore[index, arg-type]
    spread = Spread(counts)
    if counts["heads"] % counts["groups"]:
        spread.unknown.append(f"{counts['heads']} query heads do not divide among {counts['groups']} key/value heads")
    seeds = [(value, Span(1, 0, 1, "heads")) for value in queries]
    return spread.follow(seeds + [(value, Span(1, 0, 1, "groups")) for value in others])


def _add_block(
    result: Groups, reasons: dict[str, list[str]], kind: str, layer: str, spread: Spread,
    taken: set[tuple[ir.Value, int]],
) -> None:  # fmt: skip
    """Adds a block to `result`, or to `reasons` why there is none."""
    spread.unknown += [f"the mean of {place(node)} is over it" for node in spread.centred]
    if not spread.unknown and spread.axes() & taken:
        spread.unknown.append("it is bound to something else")
    consumers = [linear for node in spread.consumers if (linear := linear_of(node)) is not None]
    if not consumers and not spread.unknown:
        spread.unknown.append("no linear layer sums over it")
    if not spread.unknown or kind == "attention":
        taken |= spread.axes()
    if spread.unknown:
        reasons.setdefault(layer, []).extend(f"{kind}: {reason}" for reason in spread.unknown[:2])
        return
    count = sum(block.layer == layer and block.kind == kind for block in result.blocks)
    block = Block(f"{layer}/{kind}" + (f".{count}" if count else ""), layer, kind, spread, consumers)
    block.attentions = [node for node in spread.nodes if node.op_type in ATTENTION]
    if len(consumers) == 1 and len(block.attentions) <= 1:
        block.add = _residual(consumers[0].y, result.width)
    result.blocks.append(block)


def _residual(y: ir.Value, width: Spread) -> tuple[ir.Node, int] | None:
    """Returns the Add that a block's output reaches in the residual stream, and the place among its inputs, or None."""
    value = y
    while (node := only_user(value)) is not None:
        if node.op_type == "Add":
            at = 0 if node.inputs[0] is value else 1
            other = node.inputs[1 - at]
            if other is not None and not other.is_initializer() and other in width.spans:
                return node, at
        if len(node.outputs) != 1 or node.op_type == "MatMul":
            return None
        value = node.outputs[0]
    return None


def weights_of(block: Block) -> Iterator[tuple[str, int, Span]]:
    """Yields the weights of a block's units: the name, the size along the axis of the units, and their span."""
    for value, spans in block.spread.initializers().items():
        for span in sorted(spans, key=lambda span: (span.axis, span.start)):
            yield str(value.name), int(value.shape[span.axis]), span  # type: ignore[index, arg-type]
