"""Engines: built here where the flavour can, rehearsed where it cannot, finished on the device then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import onnx_ir as ir

from leptonc.ir.dialect import module_of
from leptonc.report.variant import EngineBuild, Rehearsal
from leptonc.variant import VariantBuild
from runtime_edge.errors import LeptonError
from runtime_edge.manifest import EngineSpec, Plan, Variant
from runtime_edge.tensorrt.builder import BuiltPlan, build_plan
from runtime_edge.tensorrt.callbacks import PROGRESS_STEPS, Advance
from runtime_edge.tensorrt.device import this_device
from runtime_edge.tensorrt.flavours import flavour, parse_version
from runtime_edge.tensorrt.plans import check_fits

if TYPE_CHECKING:
    from leptonc.artifact.writer import ArtifactWriter

REHEARSAL = "tensorrt-rtx"  # the flavour that builds without a GPU


def build_engine(variant: VariantBuild, writer: ArtifactWriter, model: ir.Model, record: Variant) -> Variant:
    """Builds the variant's plan into the artifact, or rehearses it; returns the variant's record.

    TensorRT-RTX builds for GPUs that are not there. Standard TensorRT builds for its own GPU alone: on the device
    itself the plan is made at once, elsewhere the graph is built with TensorRT-RTX for the nearest capability, to find
    what a parser or a kernel refuses, and thrown away.

    Raises:
        MissingDependencyError: TensorRT-RTX is not installed, and the target needs it.
        LeptonError: The engine cannot be built.
    """
    modules = {str(node.name): module_of(node) for node in model.graph if module_of(node)}
    assert record.engine is not None  # a variant of this backend
    spec = record.engine.spec
    if not flavour(spec.flavour).needs_gpu:
        built = _build(variant, writer, spec, modules, "engine")
        return _with_plan(variant, writer, record, built, spec.compute_capabilities)
    try:
        check_fits(record, this_device(flavour(spec.flavour)))
    except LeptonError:  # this machine is not the device
        variant.report.rehearsal = _rehearse(variant, writer, spec, modules)
        return record
    built = _build(variant, writer, spec, modules, "engine")
    return _with_plan(variant, writer, record, built, spec.compute_capabilities)


def _build(
    variant: VariantBuild, writer: ArtifactWriter, spec: EngineSpec, modules: dict[str, str], stage: str
) -> BuiltPlan:  # fmt: skip
    with variant.clock.stage(f"{variant.plan.name}: {stage}", PROGRESS_STEPS) as advance:
        return build_plan(writer.path / variant.file, spec, modules=modules, progress=Advance(advance))


def _with_plan(
    variant: VariantBuild, writer: ArtifactWriter, record: Variant, built: BuiltPlan, capabilities: tuple[str, ...]
) -> Variant:
    name = f"{variant.plan.name}.plan"
    writer.add(name, built.data)
    plan = Plan(file=name, version=built.version, compute_capabilities=capabilities)
    variant.report.engine = EngineBuild(built=True, **_facts(built), compute_capabilities=list(capabilities))
    replace, graph = msgspec.structs.replace, record.main
    assert graph.engine is not None
    return replace(record, graphs=(replace(graph, engine=replace(graph.engine, plans=(plan,))),))


def _facts(built: BuiltPlan) -> dict[str, Any]:
    return {
        "version": built.version, "seconds": round(built.seconds, 1), "megabytes": round(len(built.data) / 1e6, 1),
        "layers": built.layers,
    }  # fmt: skip


def _rehearse(variant: VariantBuild, writer: ArtifactWriter, spec: EngineSpec, modules: dict[str, str]) -> Rehearsal:
    """Builds for the nearest capability that TensorRT-RTX has; says what came of it."""
    found = flavour(REHEARSAL)
    named = found.named_capabilities or ()
    nearest = {_nearest(each, named) for each in spec.compute_capabilities}
    stand_in = EngineSpec(
        flavour=REHEARSAL, versions=found.versions, compute_capabilities=tuple(sorted(nearest)),
        profiles=spec.profiles, sparse_weights=spec.sparse_weights,
    )  # fmt: skip
    note = "a rehearsal: the engine itself is built on the device, with `lepton-edge finish`"
    try:
        built = _build(variant, writer, stand_in, modules, "rehearsal")
    except LeptonError as error:  # it is not installed; or it refuses what the device's flavour may take
        return Rehearsal(
            flavour=REHEARSAL, compute_capabilities=sorted(nearest), done=False, why=error.message, note=note
        )  # fmt: skip
    return Rehearsal(
        flavour=REHEARSAL, compute_capabilities=sorted(nearest), done=True, **_facts(built), note=note
    )  # fmt: skip


def _nearest(capability: str, named: tuple[str, ...]) -> str:
    """The capability closest to one that the flavour does not have: of the same generation where there is one."""

    def distance(other: str) -> tuple[int, int]:
        (a, b), (c, d) = parse_version(capability), parse_version(other)
        return (abs(a - c), abs(b - d))

    return min(named, key=distance)
