"""Builds a TensorRT engine from an ONNX graph and an engine spec: one builder for both flavours.

The compiler calls it for TensorRT-RTX, which needs no GPU to build; the device calls it for standard TensorRT. The
differences between the two are data, in `flavours`. Used of either API is what stands in NVIDIA TensorRT's Python API
documentation of 10.3 and of 11.x alike (Builder, IBuilderConfig, INetworkDefinition, OnnxParser).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import clear_frames
from typing import Any

from runtime_edge.errors import EngineError
from runtime_edge.manifest import EngineSpec, InputShapes, Profile
from runtime_edge.process import most_resident
from runtime_edge.tensorrt import flavours
from runtime_edge.tensorrt.callbacks import Log, Progress, Stop, logger, progress_monitor, stopped_by_signals
from runtime_edge.tensorrt.nodes import Origins

_MB = 2**20
# Fields of an engine spec, and the builder's flag that each of them sets.
_FLAGS = {
    "refit": "REFIT", "strip": "STRIP_PLAN", "weight_streaming": "WEIGHT_STREAMING", "sparse_weights": "SPARSE_WEIGHTS",
}  # fmt: skip


@dataclass(frozen=True)
class BuiltPlan:
    """A serialized engine, and what building it took.

    Attributes:
        data: The plan's bytes, in memory that TensorRT holds; they can be written as they are.
        version: The exact version of TensorRT, which alone can load the plan.
        compute_capabilities: What it was built for; empty where that is the GPU of this machine.
        seconds: Time of the build, parsing included.
        peak_memory: The most memory that the process held until now, in bytes; None where the system does not say.
        layers: Layers of the network as it was parsed.
        warnings: What TensorRT warned of.
    """

    data: memoryview
    version: str
    compute_capabilities: tuple[str, ...]
    seconds: float
    peak_memory: int | None
    layers: int
    warnings: tuple[str, ...] = ()


def build_plan(
    graph: Path,
    spec: EngineSpec,
    *,
    modules: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    timing_cache: Path | None = None,
) -> BuiltPlan:
    """Builds a plan.

    Args:
        graph: The ONNX file; its external data is found beside it.
        spec: What to build.
        modules: Module paths by node name, for messages. Default: those in the graph's metadata.
        progress: Called with (phase, steps done, steps), from any thread, where the steps are those of the whole build;
            what it raises ends the build.
        timing_cache: A file that keeps measured times for the next build, where the flavour measures any.

    Raises:
        MissingDependencyError: The flavour's module is not installed.
        EngineError: The graph, the spec or this machine does not fit; nodes are named with their modules.
        ArtifactError: The graph is not an ONNX file.
        KeyboardInterrupt: The build was interrupted; also by SIGTERM.
    """
    flavour = flavours.flavour(spec.flavour)
    trt = flavours.import_module(flavour)
    version = flavours.module_version(trt)
    if not flavours.in_range(version, spec.versions):
        raise EngineError(
            f"{graph.name}: expected {flavour.title} {spec.versions}, found {version}",
            hint="build the artifact for the version that is on the device: `--target NAME,tensorrt=…` or `jetpack=…`",
        )
    start = time.perf_counter()
    stop = Stop()
    build = _Build(trt, flavour, f"{flavour.title} {version}", graph, spec, Origins(graph, modules))
    try:
        with stopped_by_signals(stop):
            plan, layers = build.run(progress, stop, timing_cache)
    except BaseException as error:
        # Frames that a traceback keeps, in a cycle with `stop`, keep TensorRT's objects. Were those left to the garbage
        # collector, it could free them inside the log's callback, where TensorRT holds the lock that freeing waits for.
        clear_frames(error.__traceback__)
        raise
    return BuiltPlan(
        data=memoryview(plan),
        version=version,
        compute_capabilities=spec.compute_capabilities if flavour.named_capabilities is not None else (),
        seconds=time.perf_counter() - start,
        peak_memory=most_resident(),
        layers=layers,
        warnings=tuple(build.log.warnings),
    )


class _Build:
    """One build: the objects of the API are made in the order that they need each other."""

    def __init__(
        self, trt: Any, flavour: flavours.Flavour, title: str, graph: Path, spec: EngineSpec, origins: Origins
    ) -> None:
        self.trt = trt
        self.flavour = flavour
        self.title = title
        self.graph = graph
        self.spec = spec
        self.origins = origins
        self.log = Log()

    def run(self, progress: Progress | None, stop: Stop, timing_cache: Path | None) -> tuple[Any, int]:
        """Returns the plan as an `IHostMemory`, and the number of layers parsed."""
        trt = self.trt
        sink = logger(trt, self.log)  # must live as long as what is made with it
        try:
            builder = trt.Builder(sink)
        except (TypeError, RuntimeError) as error:  # the bindings' own for a null pointer: no driver, no GPU
            raise EngineError(
                f"{self.title}: expected a GPU and its driver, found: {self.log.reasons()} ({error})",
                hint="engines for a device are built on it: run `lepton-edge finish` there",
            ) from error
        # Strong typing is optional in 10 and the only way in 11, where the flag is accepted and has no effect.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, sink)
        self.parse(parser)
        self.allow_decomposition(network)
        stop.raise_if_requested()
        config = builder.create_builder_config()
        self.configure(config)
        for profile in self.spec.profiles:
            self.add_profile(builder, network, config, profile)
        monitor = progress_monitor(trt, progress, stop)
        config.progress_monitor = monitor
        keeps_times = self.flavour.has_timing_cache and timing_cache is not None
        cache = self.load_times(config, timing_cache) if keeps_times else None
        plan = builder.build_serialized_network(network, config)
        stop.raise_if_requested()
        if plan is None:
            raise self.failed()
        if cache is not None and timing_cache is not None:
            _replace(timing_cache, config.get_timing_cache())
        return plan, network.num_layers

    def parse(self, parser: Any) -> None:
        """Parses the graph; raises `EngineError` with every node that was refused."""
        if parser.parse_from_file(os.fspath(self.graph)):
            return
        faults = []
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            name, op_type = error.node_name(), error.node_operator()
            what = f"node {name!r} ({op_type})" if op_type else "the graph"
            if op_type and not parser.supports_operator(op_type):
                since = self.flavour.first_operators.get(op_type)
                reason = "an operator that it does not have" + (f" before {since}" if since else "")
            else:
                reason = f"{str(error.code()).rpartition('.')[2]}: {error.desc()}"
            faults.append(f"{what}{self.origins.of(name, error.node())}: {reason}")
        raise EngineError(
            f"{self.graph.name}: expected a graph that {self.title} parses, found "
            f"{'; '.join(faults) or self.log.reasons()}"
        )

    def allow_decomposition(self, network: Any) -> None:
        """Lets attention of a shape or type that no kernel has run as its parts: else such an engine is not built."""
        if not flavours.parses(self.flavour, "Attention", flavours.module_version(self.trt)):
            return
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type == self.trt.LayerType.ATTENTION_OUTPUT:
                layer.__class__ = self.trt.IAttentionOutputLayer  # how NVIDIA's Python API casts a layer to its kind
                layer.attention.decomposable = True

    def configure(self, config: Any) -> None:
        """Sets what the spec says of the whole engine."""
        trt, spec = self.trt, self.spec
        if self.flavour.named_capabilities is not None:
            config.num_compute_capabilities = len(spec.compute_capabilities)
            for index, text in enumerate(spec.compute_capabilities):
                member = getattr(trt.ComputeCapability, f"SM{text.replace('.', '')}", None)
                if member is None or not config.set_compute_capability(member, index):
                    raise EngineError(
                        f"{self.title}: expected a compute capability that it builds for, found {text}",
                        hint=f"it builds for {', '.join(self.flavour.named_capabilities)}",
                    )
        if spec.workspace_mb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_mb * _MB)
        flags = (flag for name, flag in _FLAGS.items() if getattr(spec, name))
        for flag in (*(() if spec.weight_streaming else self.flavour.flags), *flags):
            config.set_flag(getattr(trt.BuilderFlag, flag))

    def add_profile(self, builder: Any, network: Any, config: Any, record: Profile) -> None:
        """Adds an optimization profile, whose inputs must be exactly the graph's that are dynamic."""
        where = f"{self.graph.name}: profile {record.name!r}"
        given = {shapes.name: shapes for shapes in record.inputs}
        profile = builder.create_optimization_profile()
        needed = set()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            name, shape = tensor.name, tuple(tensor.shape)
            if not tensor.is_shape_tensor and -1 not in shape:
                continue
            needed.add(name)
            if name not in given:
                raise EngineError(f"{where}: expected shapes for the dynamic input {name!r} {shape}, found none")
            if tensor.is_shape_tensor:  # its values decide shapes: the profile bounds them, not its own shape
                self.set_bounds(where, profile.set_shape_input, given[name])
            else:
                _check_shapes(where, given[name], shape)
                self.set_bounds(where, profile.set_shape, given[name])
        unneeded = sorted(given.keys() - needed)
        if unneeded:
            raise EngineError(f"{where}: expected only dynamic inputs of the graph, found {', '.join(unneeded)}")
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{where}: expected shapes that {self.title} takes, found: {self.log.reasons()}")

    def set_bounds(self, where: str, setter: Any, shapes: InputShapes) -> None:
        """Gives a profile the bounds of one input."""
        try:
            setter(shapes.name, shapes.min, shapes.opt, shapes.max)
        except ValueError as error:
            raise EngineError(f"{where}: expected bounds of {shapes.name!r} that agree, found: {error}") from error

    def load_times(self, config: Any, path: Path | None) -> Any:
        """Attaches the times that earlier builds measured; a file of another version or device is left out."""
        stored = path.read_bytes() if path is not None and path.is_file() else b""
        for data in dict.fromkeys((stored, b"")):
            cache = config.create_timing_cache(data)
            if cache is not None and config.set_timing_cache(cache, False):
                return cache
        return None

    def failed(self) -> EngineError:
        """The error for a build that gave no plan."""
        reasons = self.log.reasons()
        nodes = self.origins.named_in(reasons)
        at = f" (at {', '.join(nodes[:3])})" if nodes else ""
        hint = None
        if (self.spec.refit or self.spec.strip) and self.flavour.refit_needs_gpu:
            hint = "plans that can be refitted or have no weights are built on a machine with a GPU"
        if "workspace" in reasons and self.spec.workspace_mb is not None:
            hint = f"the engine spec allows {self.spec.workspace_mb} MB of workspace: allow more"
        return EngineError(f"{self.graph.name}: {self.title} built no engine{at}: {reasons}", hint=hint)


def _check_shapes(where: str, shapes: InputShapes, shape: tuple[int, ...]) -> None:
    """Refuses bounds of another rank than the input's, or that change a dimension that is fixed."""
    for bound in (shapes.min, shapes.opt, shapes.max):
        fits = len(bound) == len(shape) and all(fixed in (-1, size) for fixed, size in zip(shape, bound, strict=True))
        if not fits:
            raise EngineError(
                f"{where}: expected shapes of {shapes.name!r} to fit {shape}, with -1 for what may vary, found {bound}"
            )
    if not all(low <= usual <= high for low, usual, high in zip(shapes.min, shapes.opt, shapes.max, strict=True)):
        raise EngineError(
            f"{where}: expected min <= opt <= max for {shapes.name!r}, found {shapes.min}, {shapes.opt}, {shapes.max}"
        )


def _replace(path: Path, cache: Any) -> None:
    """Writes measured times beside their file and renames; builds that end at once leave one of theirs whole."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(memoryview(cache.serialize()))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
