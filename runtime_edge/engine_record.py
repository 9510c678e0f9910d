"""How a manifest describes a variant that TensorRT runs, and what makes the description whole."""

from __future__ import annotations

from runtime_edge.records import Positive, Record, require, unique

ENGINE_DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of an engine's cache, and the bytes of each
FLAVOURS = ("tensorrt", "tensorrt-rtx")


class InputShapes(Record, frozen=True, kw_only=True):
    """Shapes of a graph's input in an optimization profile.

    Attributes:
        name: The input.
        min: The least shape.
        opt: The shape that the engine is fastest at.
        max: The greatest shape.
    """

    name: str
    min: tuple[Positive, ...]
    opt: tuple[Positive, ...]
    max: tuple[Positive, ...]


class Profile(Record, frozen=True, kw_only=True):
    """An optimization profile of an engine.

    Attributes:
        name: Its name.
        inputs: The inputs that have dynamic dimensions.
    """

    name: str
    inputs: tuple[InputShapes, ...]


class EngineSpec(Record, frozen=True, kw_only=True):
    """How a plan is built from the variant's graph: an equal spec, graph and TensorRT give an equal engine.

    Attributes:
        flavour: `tensorrt` or `tensorrt-rtx`.
        versions: The range of its versions that can build the graph: `>=10.16;<11.0`.
        compute_capabilities: Those that it is for: `8.7`.
        profiles: The optimization profiles.
        workspace_mb: A bound of scratch memory, in MB.
        weight_streaming: Whether weights may stay on the host.
        refit: Whether weights may be replaced.
        strip: Whether weights are left out.
        sparse_weights: Whether kernels may skip zeros where two of four weights are zero.
    """

    flavour: str
    versions: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[Profile, ...]
    workspace_mb: Positive | None = None
    weight_streaming: bool = False
    refit: bool = False
    strip: bool = False
    sparse_weights: bool = False


class Plan(Record, frozen=True, kw_only=True):
    """A serialized engine.

    Attributes:
        file: Its file.
        version: The exact version of TensorRT that built it.
        compute_capabilities: The capabilities that it runs on.
    """

    file: str
    version: str
    compute_capabilities: tuple[str, ...]


class Engine(Record, frozen=True, kw_only=True):
    """What TensorRT builds of a graph.

    Attributes:
        spec: How it is built.
        cache_dtype: Element type of the decoder's cache.
        cache_in_place: Whether one buffer is bound as past and present; else two are, in turn.
        plans: Engines that the compiler built; others are finished on the device.
    """

    spec: EngineSpec
    cache_dtype: str = "float16"
    cache_in_place: bool = True
    plans: tuple[Plan, ...] = ()


def check_engine(engine: Engine | None, variant: str, backend: str) -> None:
    """Raises ArtifactError where the variant's engine is missing, belongs to another backend, or contradicts itself."""
    where = f"variant {variant!r}: engine"
    require(
        (engine is not None) == (backend in FLAVOURS),
        f"{where}: expected one for the backends {', '.join(FLAVOURS)} and no other, found backend {backend!r}",
    )
    if engine is None:
        return
    spec = engine.spec
    require(spec.flavour == backend, f"{where}: expected flavour {backend!r}, found {spec.flavour!r}")
    require(
        engine.cache_dtype in ENGINE_DTYPES,
        f"{where}: expected cache_dtype to be one of {', '.join(ENGINE_DTYPES)}, found {engine.cache_dtype!r}",
    )
    require(bool(spec.profiles), f"{where}: expected at least one profile, found none")
    unique(f"{where}: profiles", (profile.name for profile in spec.profiles))
    for profile in spec.profiles:
        for shapes in profile.inputs:
            ordered = all(a <= b <= c for a, b, c in zip(shapes.min, shapes.opt, shapes.max, strict=False))
            require(
                len(shapes.min) == len(shapes.opt) == len(shapes.max) and ordered,
                f"{where}: profile {profile.name!r}: expected min <= opt <= max for {shapes.name!r}, found "
                f"{shapes.min}, {shapes.opt}, {shapes.max}",
            )
