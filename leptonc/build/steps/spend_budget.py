"""Spends a budget of bytes: weights have 4 bits, and 8 where they help most."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from leptonc.artifact.writer import stored_bytes
from leptonc.backends import backend_of
from leptonc.backends.traits import traits_of
from leptonc.build.calibration_text import TRIAL, TRIALS, WEIGHING, Calibration
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import CalibratedStep, Need
from leptonc.build.work import Work, changing, work
from leptonc.calibrate.sensitivity import Sensitivity, raise_within, sensitivities
from leptonc.errors import BoundError
from leptonc.frontend.captured import Captured
from leptonc.ir.dialect import module_of
from leptonc.ir.structure import embeddings, linears
from leptonc.passes.base import Manager
from leptonc.report.quantization import Budget, LayerSensitivity
from leptonc.variant import SHARED, VariantBuild, VariantPlan

_USUAL = 1.2  # of the codes' bytes is what scales come with
NODES = 512  # bytes of graph that a layer of its own takes, where it was joined with others before


@dataclass(frozen=True)
class _Prices:
    """What linear layers, and a table of embeddings among them, take more in 8 bits.

    Attributes:
        config: Formats, with 4 bits everywhere.
        table: The embedding, where it is one of what is chosen among.
        nodes: Bytes of graph that a layer of its own takes.
        fixed: Paths of layers that have a format that was asked for.
    """

    config: Any
    table: Sensitivity | None
    nodes: int
    fixed: frozenset[str]

    def is_table(self, layer: Sensitivity) -> bool:
        return self.table is not None and layer.path == self.table.path

    def free(self, layer: Sensitivity) -> bool:
        """Whether it can be raised."""
        return layer.path not in self.fixed and not self.config.ragged(layer.path, layer.shape[1])

    def __call__(self, layer: Sensitivity) -> int:
        width, table = layer.shape[1], self.is_table(layer)
        low = self.config.form(width, table=table)
        if table:
            high = dataclasses.replace(self.config, embedding_bits=8).form(width, table=True)
        else:
            high = self.config.raised(width)
        return int(high.stored_bytes(layer.shape)) - int(low.stored_bytes(layer.shape)) + self.nodes


class SpendBudget(CalibratedStep):
    """Does what `--weights auto:SIZE` asks for: chooses what has 8 bits.

    The embedding, with a head that is tied to it, is one of what is chosen among, where the backend has formats for it
    and none is asked for.

    Raises:
        BoundError: Graph and weights take more with all weights in 4 bits.
    """

    name: ClassVar[str] = "budget"
    options: ClassVar[tuple[str, ...]] = ("weights", "block_size", "symmetric", "embeddings", "layers")
    text_option: ClassVar[str] = "--weights auto:SIZE"

    def applies(self, plan: VariantPlan) -> bool:
        return plan.budget is not None

    def preflight(self, plan: BuildPlan, captured: Captured) -> None:
        for variant in plan.variants if plan.prune is None else ():
            refuse_too_small(variant.budget, captured.model)

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        yield from super().needs(plan, sizes)
        # The head as it is, and as it would be.
        yield Need("weighing layers", WEIGHING + 3 * sizes.largest, keeps_activations=True)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        yield work("sensitivity", **changing(sizes, len(sizes.linears), TRIALS, TRIAL))

    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        if variant.plan.budget is None:
            return variant
        return _spend(context.calibration, variant, variant.plan.budget)


def _spend(calibration: Calibration, variant: VariantBuild, budget: int) -> VariantBuild:
    """Returns the variant with what the budget has room for; its report says what that is."""
    model, about = variant.graph, variant.report.choices()
    tables = backend_of(variant.plan.target).config_of(variant.plan, variant.choices).embeddings
    table_node = next(embeddings(model), None) if tables and variant.plan.embeddings is None else None
    if table_node is not None:
        variant = variant.choosing(embeddings="int4")
    size = size_of(variant, model, calibration.scratch)
    if size > budget:
        less = "--symmetric, --block-size 64 and --embeddings int4 take" if tables else "--block-size 128 takes"
        raise BoundError(
            f"expected weights and graph of at most {budget:,} bytes, found {size:,} with all weights in 4 bits; "
            "nothing was written",
            hint=f"{less} less",
        )
    prices = _prices(variant, table_node)
    about.budget = spending = Budget(bytes=budget, least=size, spent=0)
    unmeasured = [_unmeasured(layer.path, layer.shape) for layer in linears(model)]
    unmeasured += [prices.table] if prices.table else []
    if any(prices(layer) <= budget - size for layer in unmeasured if prices.free(layer)):
        measured = [layer for layer in _measured(calibration, variant, model, prices) if prices.free(layer)]
        spending.spent, raised, variant = _raise(calibration, variant, model, measured, prices, budget, size)
        about.sensitivity = [
            LayerSensitivity(
                path=layer.path, bits=8 if layer.path in raised else 4, error=float(f"{layer.error:.4g}")
            )
            for layer in measured
        ]  # fmt: skip
    if tables:
        spending.embeddings = variant.choices.embeddings or variant.plan.embeddings
    return variant


def refuse_too_small(budget: int | None, model: ir.Model) -> None:
    """Refuses a budget that weights cannot fit, before anything is measured; `spend` knows to the byte what can.

    Raises:
        BoundError: Codes of 4 bits alone take more, without scales, embeddings and the graph.
    """
    if budget is None:
        return
    codes = sum(math.prod(map(int, layer.shape)) for layer in linears(model)) // 2
    if codes > budget:
        raise BoundError(
            f"expected a budget that weights of 4 bits fit, found {budget:,} bytes for codes of {codes:,}; "
            "nothing was written",
            hint=f"--weights auto:{math.ceil(codes * _USUAL / 1e5) / 10:g}MB, or --prune",
        )


def _prices(variant: VariantBuild, table_node: ir.Node | None) -> _Prices:
    """What `look`, an embedding that may be raised, and all layers of the variant take more."""
    table = None if table_node is None else _unmeasured(module_of(table_node), table_node.inputs[0].shape)  # type: ignore[union-attr, arg-type]
    # The graphs of encoders join no layers.
    joins = traits_of(variant.plan.target).joins_linears and variant.captured.interface.writes_text
    nodes = NODES if joins else 0
    if variant.plan.prefill == SHARED:  # in both graphs, and in what says how the second one's is made
        nodes = 2 * nodes + traits_of(variant.plan.target).described
    fixed = frozenset(path for form in variant.choices.layers for path in form.paths)
    return _Prices(backend_of(variant.plan.target).config_of(variant.plan, variant.choices), table, nodes, fixed)


def _measured(calibration: Calibration, variant: VariantBuild, model: ir.Model, prices: _Prices) -> list[Sensitivity]:
    """What 4 bits in each layer, and in the table, do to the model's output."""
    form, table = prices.config.form, prices.table
    trials = [window[:TRIAL] for window in calibration.part(TRIALS)]
    looked_up = form(table.shape[1], table=True) if table else None
    return calibration.cached_walk(
        f"sensitivity-{variant.plan.name}", "sensitivity", model, list[Sensitivity],
        partial(sensitivities, model, trials, form, table=looked_up),
    )  # fmt: skip


def _raise(
    calibration: Calibration, variant: VariantBuild, model: ir.Model, measured: Sequence[Sensitivity], prices: _Prices,
    budget: int, size: int,
) -> tuple[int, Collection[str], VariantBuild]:  # fmt: skip
    """Gives 8 bits to what gains most for its bytes, where `size` bytes of the budget are taken already.

    Returns:
        The bytes spent, the paths of what has 8 bits, and the variant with these choices.
    """
    fewest, left = variant.choices.layers, budget - size
    while True:
        raised, spent = raise_within(measured, prices, left)
        chosen = [layer for layer in measured if layer.path in raised]
        if prices.table:
            variant = variant.choosing(embeddings="int8" if any(map(prices.is_table, chosen)) else "int4")
        layers = {layer.path: layer.shape[1] for layer in chosen if not prices.is_table(layer)}
        variant = variant.choosing(layers=fewest + prices.config.raised_layers(layers))
        over = size_of(variant, model, calibration.scratch) - budget
        if over <= 0 or not chosen:
            return spent, raised, variant
        left -= over  # layers that were joined with raised ones took more nodes than was reckoned with


def size_of(variant: VariantBuild, model: ir.Model, scratch: Path) -> int:
    """Bytes of the graph and the weights that the variant would give, as they are stored: no weight is computed for it.

    A graph for prefill that shares them counts too; one with weights of its own is asked for on top.
    """
    trial, backend = model.clone(), backend_of(variant.plan.target)
    passes = backend.passes(variant.rounded(), scratch)
    shares = variant.plan.prefill == SHARED
    first = backend.split_for_prompts(passes) if shares else 0
    Manager().run(trial, passes[:first])
    prompts = trial.clone() if shares else None
    Manager().run(trial, passes[first:])
    backend.finish(trial)
    size = stored_bytes(trial)
    if prompts is not None:
        Manager().run(prompts, backend.prompt_passes(variant, prompts))
        backend.finish(prompts)
        size += stored_bytes(prompts, beside=trial) + backend.described_bytes(prompts)
    return size


def _unmeasured(path: str, shape: Sequence[Any]) -> Sensitivity:
    return Sensitivity(path, (int(shape[0]), int(shape[1])), math.inf)
