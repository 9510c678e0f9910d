"""The spec of a variant's engine: flavour, versions, capabilities, and the shapes that it is tuned for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import onnx_ir as ir

from leptonc.backends.layers import Forms, ragged, resolve
from leptonc.backends.tensorrt.decoder import AT
from leptonc.errors import InputError
from leptonc.formats import FORMATS
from leptonc.ir.structure import linears, lookups
from leptonc.options import LayerRule
from leptonc.passes.base import Pass
from leptonc.passes.prune.sparse import PATTERN, CheckSparsity
from leptonc.passes.quantize.weights import LayerFormat
from leptonc.report.variant import Sparsity
from leptonc.variant import VariantBuild, VariantPlan
from runtime_edge.errors import EngineError
from runtime_edge.manifest import EngineSpec, InputShapes, Profile
from runtime_edge.part_record import TOKEN_IDS
from runtime_edge.tensorrt.engine_spec import check_spec
from runtime_edge.tensorrt.flavours import flavour, import_module, in_range

CHUNK = 512  # most tokens of a run of the prefill
USUAL = 128  # tokens that it is tuned for
LOGITS_BYTES = 32 * 2**20  # most bytes of float32 logits in a run: a large vocabulary gets fewer rows
BATCH, USUAL_BATCH, USUAL_LENGTH = 32, 8, 64  # most texts of an encoder's run; texts and tokens that it is tuned for


def logits_rows(variant: VariantBuild) -> int:
    """Returns the most rows of logits that a run may ask for."""
    vocab = int(variant.captured.config.vocab_size)
    return max(1, min(CHUNK, variant.captured.max_seq_len, LOGITS_BYTES // (4 * vocab)))


def profiles(variant: VariantBuild) -> tuple[Profile, ...]:
    """Returns the optimization profiles: prefill and decode of a decoder, batches of an encoder."""
    longest, (part,) = variant.captured.max_seq_len, variant.captured.parts.values()
    ids = part.input(TOKEN_IDS)
    if part.states and ids is not None:
        chunk, rows = min(CHUNK, longest), logits_rows(variant)
        prefill = (
            InputShapes(name=ids.name, min=(1, 1), opt=(1, min(USUAL, chunk)), max=(1, chunk)),
            InputShapes(name=AT.name, min=(1,), opt=(1,), max=(rows,)),
        )
        decode = (
            InputShapes(name=ids.name, min=(1, 1), opt=(1, 1), max=(1, 1)),
            InputShapes(name=AT.name, min=(1,), opt=(1,), max=(1,)),
        )
        return (Profile(name="prefill", inputs=prefill), Profile(name="decode", inputs=decode))
    shapes = tuple(
        InputShapes(name=port.name, min=(1, 1), opt=(USUAL_BATCH, min(USUAL_LENGTH, longest)), max=(BATCH, longest))
        for port in part.inputs
    )
    return (Profile(name="batch", inputs=shapes),)


def versions(plan: VariantPlan) -> str:
    """Returns the range of versions that the graph is lowered for and that may build the plan."""
    return plan.target.tensorrt or flavour(plan.target.backend).versions


def capabilities(plan: VariantPlan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the target's capabilities that can run the scheme, and those that are left out because they cannot.

    Capabilities that the user named are not left out: `checked` refuses them.
    """
    least = flavour(plan.target.backend).least_capability.get(plan.scheme)
    declared = plan.target.compute_capabilities
    if least is None or any(override.startswith("compute_capabilities") for override in plan.target.overrides):
        return declared, ()
    able = tuple(capability for capability in declared if in_range(capability, f">={least}"))
    return (able, tuple(capability for capability in declared if capability not in able)) if able else (declared, ())


def spec_of(variant: VariantBuild) -> EngineSpec:
    """Returns the spec of a variant's engine, whose model is captured."""
    return _spec(variant.plan, profiles(variant))


def _spec(plan: VariantPlan, shapes: tuple[Profile, ...]) -> EngineSpec:
    return EngineSpec(
        flavour=plan.target.backend, versions=versions(plan), compute_capabilities=capabilities(plan)[0],
        profiles=shapes, sparse_weights=plan.sparse,
    )  # fmt: skip


def sparsity(variant: VariantBuild) -> list[Pass]:
    """Returns the pass that checks 2:4 sparsity of the lowered weights. Default: none, where weights are dense."""
    if not variant.plan.sparse:
        return []
    target_flavour, report = flavour(variant.plan.target.backend), Sparsity(pattern=PATTERN, linears=[])
    sparse = variant.plan.target.sparse_capabilities
    dense = [capability for capability in capabilities(variant.plan)[0] if capability not in sparse]
    if dense:
        report.dense_on = f"compute capabilities {', '.join(dense)}: they have no sparse tensor cores"
    if not target_flavour.heeds_sparsity:
        report.note = f"{target_flavour.title} makes the same plan with and without its flag for sparse weights"
    return [CheckEngineSparsity(variant.captured.model, report)]


class CheckEngineSparsity(CheckSparsity):
    """Checks that the lowered weights are 2:4 sparse, and reports that with facts about the engine."""

    def __init__(self, model: ir.Model, about: Sparsity) -> None:
        super().__init__(model)
        self._about = about

    def report(self) -> Mapping[str, Any]:
        return {"sparsity": msgspec.structs.replace(self._about, linears=self.rows)}


def block_size(plan: VariantPlan) -> int:
    """Returns the number of weights that share a scale; 0 stands for whole channels, which int8 has.

    Default for int4: the flavour's smallest number from 32 on.
    """
    if plan.scheme != "int4":
        return 0
    smallest = min(size for size in flavour(plan.target.backend).int4_blocks if size >= 32)
    return smallest if plan.block_size is None else plan.block_size


def layers(variant: VariantBuild) -> tuple[LayerFormat, ...]:
    """Returns the formats of the layers that a recipe names.

    Raises:
        InputError: See `resolve`; or blocks of a size that was asked for do not divide the inputs of every layer.
            (Layers that the default size does not divide keep their weights, and the report says so.)
    """
    plan, model = variant.plan, variant.captured.model
    target_flavour = flavour(plan.target.backend)
    blocks = target_flavour.int4_blocks
    integers = [name for name in ("int8", "int4") if name in plan.target.precisions]
    forms = Forms(
        target_flavour.title, ("fp16", *(integers if plan.scheme in integers else ())),
        LayerRule(weights=plan.scheme, block_size=plan.block_size if plan.scheme == "int4" else None),
        lambda scheme: block_size(plan) if scheme == plan.scheme else min(blocks) * (scheme == "int4"),
        lambda scheme: blocks if scheme == "int4" else (), whole=True, asymmetric=False,
    )  # fmt: skip
    formats = resolve(plan.rules, model, forms)
    if plan.block_size is not None and plan.scheme == "int4":
        named = {path for layer_format in formats for path in layer_format.paths}
        tables = lookups(model)
        rest = {linear.path: linear.shape[1] for linear in linears(model) if linear.weight not in tables}
        short = {p: count for p, count in rest.items() if p not in named and count % plan.block_size}
        if short:
            raise ragged(plan.block_size, short, forms)
    return formats


def check_format(plan: VariantPlan) -> None:
    """Refuses weights in a format that the target does not have, or that is never made (`InputError`)."""
    formats = [name for name in plan.target.precisions if name in FORMATS]
    if plan.scheme not in formats:
        raise InputError(
            f"expected weights among {', '.join(formats)} for target {plan.target.spec}, found {plan.scheme}",
            hint=f"--weights {plan.target.weights} is the target's default",
        )


def checked(plan: VariantPlan) -> None:
    """Refuses a scheme that the target's flavour or GPUs do not take, before anything is opened.

    Raises:
        InputError: The target does not take the scheme; the hint says which option helps.
        MissingDependencyError: The flavour builds here, and is not installed.
    """
    target_flavour = flavour(plan.target.backend)
    if plan.sparse:
        other = {str(rule.weights) for rule in plan.rules if rule.weights} - {*target_flavour.sparse_formats}
        if other:
            raise InputError(
                f"expected layers of a recipe in {' or '.join(target_flavour.sparse_formats)} with {PATTERN} weights, "
                f"found {', '.join(sorted(other))}",
                hint="there are no sparse kernels for others",
            )
    if plan.symmetric is False:
        raise InputError(
            f"expected symmetric weights for {target_flavour.title}, found asymmetric ones",
            hint="leave out --asymmetric",
        )
    try:
        size = block_size(plan) if plan.scheme == "int4" else None
        check_spec(_spec(plan, ()), plan.scheme, target_flavour, block_size=size)
    except EngineError as error:
        raise InputError(error.message, hint=error.hint) from error
    if not target_flavour.needs_gpu:
        import_module(target_flavour)  # the engine is built here: report a missing library before the work
