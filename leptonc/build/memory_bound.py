"""What a build keeps in memory: what its steps take at the most, and what is left of a bound for activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from leptonc.backends.traits import traits_of
from leptonc.calibrate.stages import linear_stages
from leptonc.errors import InputError
from leptonc.formats import FORMATS
from leptonc.ir.structure import lookups
from runtime_edge.process import resident

if TYPE_CHECKING:
    from leptonc.frontend.capture import Captured
    from leptonc.variant import VariantPlan

ACTIVATIONS = 5 * 10**8  # bytes that calibration keeps in memory where nothing is asked for; others wait on disk
# What was measured, with some room (docs/quality.md). Temporaries of each step, whatever the model:
WRITING, CALIBRATING, CHECKING = 15 * 10**7, 25 * 10**7, 33 * 10**7
SQUARES = 40  # bytes for each product of two inputs of a layer: ten sums, factors and copies of them in float32
OPENED = 1.7  # times the bytes of an artifact: ONNX Runtime lays out weights as its kernels read them
LOGITS, READ = 4 * 10**8, 2  # of a graph for TensorRT, whose weights are made float a layer at a time
ENGINE, PLANNED = 7 * 10**8, 5  # of TensorRT, which has the graph's weights, a plan's and a copy of that
WEIGHING = 40 * 10**7  # logits of a few texts, and what compares them
LAYER, WEIGHS, WRITES, HEALS = "calibrating a layer", "weighing layers", "the model that writes", "healing"
KEEPING = LAYER, WEIGHS, WRITES, HEALS  # steps that keep activations
SPREAD = 3 * 10**7  # what is in memory before the steps differs by it from run to run
HEALING = 4.5  # times the weights in float32: the student, its gradients, moments and what it reads


def activations(
    bound_gb: float | None, captured: Captured, plans: Sequence[VariantPlan], *, healed: bool = False,
    pruned: bool = False, writes: bool = False, emitted: bool = False, lowered: bool = True,
) -> int:  # fmt: skip
    """Returns how many bytes of activations a build may keep in memory, so that all of it stays within a bound.

    Args:
        bound_gb: Gigabytes (10^9 bytes) that the process may take; None bounds nothing.
        captured: The model.
        plans: What is built of it.
        healed: Whether it learns.
        pruned: Whether something is cut out of it.
        writes: Whether it writes the text that it is calibrated on.
        emitted: Whether it is an emitted graph, the original left behind.
        lowered: Whether what is written is lowered for a target; if not, it runs a layer at a time.

    Raises:
        InputError: A step takes more than there is.
    """
    if bound_gb is None:
        return ACTIVATIONS
    found = needs(
        captured, plans, healed=healed, pruned=pruned, writes=writes, emitted=emitted, lowered=lowered
    )  # fmt: skip
    taken, bound = resident() or 0, int(bound_gb * 1e9)
    step, most = max(found.items(), key=lambda item: item[1])
    if taken + most > bound:
        least = math.ceil((taken + most + SPREAD) / 1e8) / 10
        raise InputError(
            f"expected at least {least:g} GB for this model, found --memory-gb {bound_gb:g}: {taken / 1e9:.2f} GB are "
            f"taken before anything is built, and {step} takes {most / 1e9:.2f}",
            hint=f"--memory-gb {least:g}" + (", or --no-check" if step == "the check" else ""),
        )
    return bound - taken - max((found[step] for step in KEEPING if step in found), default=0)


def needs(
    captured: Captured, plans: Sequence[VariantPlan], *, healed: bool = False, pruned: bool = False,
    writes: bool = False, emitted: bool = False, lowered: bool = True,
) -> dict[str, int]:  # fmt: skip
    """Returns the bytes that each step of a build takes beyond what is there before it, activations left out."""
    model = captured.model
    sizes = {name: _bytes(value) for name, value in model.graph.initializers.items()}
    largest, whole = max(sizes.values(), default=0), sum(sizes.values())
    found = {"writing a weight": WRITING + 2 * largest}
    if pruned or any(plan.calibrated for plan in plans):
        found[LAYER] = max(_stage(stage, sizes) for stage in linear_stages(model, outside=True))
        if any(plan.budget is not None for plan in plans):  # the head as it is, and as it would be
            found[WEIGHS] = WEIGHING + 3 * largest
        elif any(plan.activations == "int8" or plan.prefill is not None for plan in plans):
            found[WEIGHS] = WEIGHING + largest
        if writes:
            found[WRITES] = CALIBRATING + whole // 2
    tables = sum(sizes[str(value.name)] for value in lookups(model) if value is not None and value.name in sizes)
    if any(plan.check for plan in plans):
        ran = max(_run(plan, whole, tables) for plan in plans) if lowered else 0
        # A decoder's original runs a layer at a time; an encoder's is kept for all texts, and gone before the artifact.
        original = 0 if captured.task.cached or emitted else whole
        found["the check"] = CHECKING + largest + max(ran, original)
    engines = [_written(plan, whole, tables) for plan in plans if lowered and not traits_of(plan.target).runs_here]
    if engines:
        found["measuring ranges"] = CALIBRATING + 2 * largest
        found["building an engine"] = ENGINE + int(PLANNED * max(engines))
    if healed:
        found[HEALS] = CALIBRATING + int(HEALING * whole)
    return found


def _run(plan: VariantPlan, whole: int, tables: int) -> int:
    """What the check of an artifact takes, beside what compares: ONNX Runtime, and for TensorRT many logits at once."""
    written = _written(plan, whole, tables)
    return int(OPENED * written) if traits_of(plan.target).runs_here else LOGITS + int(READ * written)


def _written(plan: VariantPlan, whole: int, tables: int) -> float:
    """About how many bytes of weights an artifact has whose weights are so many in float32.

    `tables` of them are embeddings', which have a backend's least bits, as heads do that are tied to them.
    """
    if least := traits_of(plan.target).table_bits:
        bits = _bits(plan.scheme)
        return max(plan.budget or 0, ((whole - tables) * bits + tables * max(bits, least)) / 32)
    bits = max(_bits(plan.scheme), _bits(plan.embeddings or "int4"))
    if plan.prefill is not None:
        bits += _bits("int8") * (2 if plan.prefill == "shared" else 1)
    return whole * bits / 32 if plan.budget is None else max(plan.budget, whole * bits / 32)


def _bits(scheme: str) -> int:
    """Of a weight, and its part of a scale where it has one."""
    return FORMATS[scheme].bits + FORMATS[scheme].scaled


def _stage(stage: Any, sizes: dict[str, int]) -> int:
    read = {str(value.name) for node in stage.nodes for value in node.inputs if value is not None}
    inputs = [linear.shape[1] for group in stage.linears.values() for linear in group]
    return CALIBRATING + SQUARES * max(inputs, default=0) ** 2 + 2 * sum(sizes.get(name, 0) for name in read)


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else 4 * value.const_value.size
