"""Finds the plan of a variant for this machine, and builds it where there is none.

A plan runs with the exact version of TensorRT that built it, on the compute capability that it was built for. Plans
come with the artifact or are kept in a cache: KEY.plan beside KEY.json, which says what it is. The key is a hash over
all that decides the plan, so one for another graph, spec, version or GPU is not found, let alone loaded.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from runtime_edge.errors import ArtifactError, EngineError, LeptonError
from runtime_edge.files import kind
from runtime_edge.manifest import FLAVOURS as BACKENDS
from runtime_edge.manifest import Engine, EngineSpec, Manifest, Variant
from runtime_edge.tensorrt import flavours
from runtime_edge.tensorrt.builder import BuiltPlan
from runtime_edge.tensorrt.cache import private_directory, times_path
from runtime_edge.tensorrt.callbacks import Progress
from runtime_edge.tensorrt.device import Device, this_device
from runtime_edge.tensorrt.lock import locked

_FORMAT = 2  # of the record; 2: `spec`
_CHUNK = 4 * 2**20
_MAX_RECORD_BYTES = 2**20
_REBUILD = "the artifact is damaged or was changed: copy it again, or build it anew"
_FINISH = "run `lepton-edge finish` on the artifact again"


class PlanRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What KEY.json says of KEY.plan: its identity, and what building it took (`peak_memory` in bytes)."""

    format: int
    key: str
    sha256: str
    size: int
    version: str
    compute_capability: str
    graph: str
    spec: EngineSpec
    seconds: float
    peak_memory: int | None
    layers: int


@dataclass(frozen=True)
class FoundPlan:
    """A plan for this machine whose hash was checked; `record` is None where it came with the artifact."""

    path: Path
    sha256: str
    size: int
    version: str
    record: PlanRecord | None = None


@dataclass(frozen=True)
class Finished:
    """A variant that is ready to run: its plan, and whether it had to be built."""

    variant: str
    device: Device
    plan: FoundPlan
    built: bool


class Builder(Protocol):
    """`builder.build_plan`, or what stands in for it."""

    def __call__(
        self, graph: Path, spec: EngineSpec, *, progress: Progress | None, timing_cache: Path | None
    ) -> BuiltPlan:
        """Builds a plan."""


def plan_key(manifest: Manifest, variant: Variant, device: Device) -> str:
    """Returns the sha256, in hexadecimal, over all that decides the plan of a variant on a device."""
    hashes = {file.path: file.sha256 for file in manifest.files}
    inputs = {
        "format": _FORMAT,
        "graph": hashes[variant.main.file],
        "blobs": sorted(hashes[blob] for blob in variant.blobs),
        "spec": _engine(variant).spec,
        "version": device.version,
        "compute_capability": device.capability,
    }
    return hashlib.sha256(msgspec.json.encode(inputs, order="sorted")).hexdigest()


def find_plan(
    root: Path,
    manifest: Manifest,
    variant: Variant,
    device: Device,
    *,
    cache: Path | None = None,
    verified: bool = False,
) -> FoundPlan | None:
    """Returns the plan of a variant for a device, from the artifact or else the cache; None where there is none.

    Args:
        root: The artifact's directory.
        manifest: Its manifest.
        variant: One of its variants that has an engine.
        device: This machine's GPU and version of TensorRT.
        cache: The cache. Default: the user's.
        verified: The artifact's files were checked already, as `load` does; plans of the cache always are.

    Raises:
        ArtifactError: The plan is truncated or altered; nothing of it was deserialized.
    """
    for plan in _engine(variant).plans:
        if plan.version == device.version and device.capability in plan.compute_capabilities:
            file = next(file for file in manifest.files if file.path == plan.file)
            if not verified:
                _check_file(root / plan.file, plan.file, file.size, file.sha256, _REBUILD)
            return FoundPlan(root / plan.file, file.sha256, file.size, plan.version)
    return _cached(private_directory("plans", cache), manifest, variant, device)


def _cached(directory: Path, manifest: Manifest, variant: Variant, device: Device) -> FoundPlan | None:
    key = plan_key(manifest, variant, device)
    path, described = directory / f"{key}.plan", directory / f"{key}.json"
    if not described.exists():
        return None
    record = _read_record(described)
    graph = next(file.sha256 for file in manifest.files if file.path == variant.main.file)
    expected = (_FORMAT, key, device.version, device.capability, graph, _engine(variant).spec)
    stored = (record.format, record.key, record.version, record.compute_capability, record.graph, record.spec)
    if expected != stored:
        raise ArtifactError(f"{described}: expected the record of this plan, found that of another", hint=_FINISH)
    _check_file(path, str(path), record.size, record.sha256, _FINISH)
    return FoundPlan(path, record.sha256, record.size, record.version, record)


def _read_record(path: Path) -> PlanRecord:
    try:
        _check_regular(path, str(path), _FINISH)
        with path.open("rb") as file:
            data = file.read(_MAX_RECORD_BYTES + 1)
        if len(data) > _MAX_RECORD_BYTES:
            raise ArtifactError(f"{path}: expected at most {_MAX_RECORD_BYTES} bytes, found more", hint=_FINISH)
        return msgspec.json.decode(data, type=PlanRecord)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected the record of a plan as JSON, found: {error}", hint=_FINISH) from error


def _check_regular(path: Path, name: str, hint: str) -> os.stat_result:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{name}: expected a regular file, found {kind(status.st_mode)}", hint=hint)
    return status


def _check_file(path: Path, name: str, size: int, sha256: str, hint: str) -> None:
    """Compares a file with its size and hash, reading it a piece at a time."""
    try:
        status = _check_regular(path, name, hint)
        if status.st_size != size:
            raise ArtifactError(f"{name}: expected {size} bytes, found {status.st_size}", hint=hint)
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ArtifactError(f"{name}: expected a readable plan, found: {error.strerror}", hint=hint) from error
    if digest.hexdigest() != sha256:
        raise ArtifactError(f"{name}: expected sha256 {sha256}, found {digest.hexdigest()}", hint=hint)


def finish(
    artifact: str | os.PathLike[str],
    variant: str | None = None,
    *,
    device: Device | None = None,
    cache: Path | None = None,
    build: Builder | None = None,
    progress: Progress | None = None,
    waiting: Callable[[], None] | None = None,
) -> Finished:
    """Verifies an artifact and makes the plan of one of its variants for this machine, unless there is one already.

    Args:
        artifact: The artifact's directory; nothing is written into it.
        variant: The variant's name. Default: the first whose engine can be built here.
        device: This machine's GPU and version. Default: the driver and TensorRT are asked.
        cache: The cache. Default: the user's.
        build: What builds. Default: `builder.build_plan`.
        progress: Called with (phase, steps done, steps) while it builds.
        waiting: Called once where another process is building the same plan, which is then waited for.

    Raises:
        ArtifactError: The artifact is damaged, or has no variant for TensorRT.
        EngineError: No variant is for this machine, or its engine cannot be built.
        MissingDependencyError: TensorRT or the driver is missing.
    """
    from runtime_edge.verify import verify

    root = Path(artifact)
    manifest = verify(root)
    chosen, here = _choose(manifest, variant, device)
    plan, built = ensure_plan(
        root, manifest, chosen, here, cache=cache, build=build, progress=progress, waiting=waiting
    )
    return Finished(chosen.name, here, plan, built)


def ensure_plan(
    root: Path,
    manifest: Manifest,
    variant: Variant,
    device: Device,
    *,
    cache: Path | None = None,
    build: Builder | None = None,
    progress: Progress | None = None,
    waiting: Callable[[], None] | None = None,
) -> tuple[FoundPlan, bool]:
    """Returns the plan of a variant, and whether it was built now; the artifact's files must have been verified.

    Arguments and errors are those of `finish`. Of several processes that ask at once, one builds and the others wait.
    """
    flavour = check_fits(variant, device)
    try:
        known = find_plan(root, manifest, variant, device, cache=cache, verified=True)
    except ArtifactError:
        known = None  # damaged: it is built again, under the lock
    if known is not None:
        return known, False
    directory = private_directory("plans", cache)
    key = plan_key(manifest, variant, device)
    with locked(directory / f"{key}.lock", waiting):
        try:
            known = _cached(directory, manifest, variant, device)
        except ArtifactError:
            known = None
        if known is not None:
            return known, False  # by another process, while this one waited
        spec = _engine(variant).spec
        if flavour.named_capabilities is not None:  # on a device, for its own GPU alone
            spec = msgspec.structs.replace(spec, compute_capabilities=(device.capability,))
        if build is None:
            from runtime_edge.tensorrt.builder import build_plan

            build = build_plan
        times = times_path(device, cache) if flavour.has_timing_cache else None
        plan = build(root / variant.main.file, spec, progress=progress, timing_cache=times)
        if plan.version != device.version:
            raise EngineError(f"{flavour.title}: expected version {device.version} to build, found {plan.version}")
        for file in manifest.files:  # the key says what the plan was built from: it was read by name, for minutes
            if file.path == variant.main.file or file.path in variant.blobs:
                _check_file(root / file.path, file.path, file.size, file.sha256, _REBUILD)
        _store(directory, key, manifest, variant, device, plan)
        stored = _cached(directory, manifest, variant, device)  # reads back what the disk really has
    assert stored is not None  # the lock was held since it was written
    return stored, True


def _store(directory: Path, key: str, manifest: Manifest, variant: Variant, device: Device, plan: BuiltPlan) -> None:
    """Writes plan and record beside their places and renames them, the record last: with it, the plan is there."""
    path, described = directory / f"{key}.plan", directory / f"{key}.json"
    described.unlink(missing_ok=True)
    digest = hashlib.sha256(plan.data).hexdigest()
    record = PlanRecord(
        format=_FORMAT,
        key=key,
        sha256=digest,
        size=plan.data.nbytes,
        version=device.version,
        compute_capability=device.capability,
        graph=next(file.sha256 for file in manifest.files if file.path == variant.main.file),
        spec=_engine(variant).spec,
        seconds=round(plan.seconds, 3),
        peak_memory=plan.peak_memory,
        layers=plan.layers,
    )
    _write(path, plan.data)
    _write(described, memoryview(msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"))


def _write(path: Path, data: memoryview) -> None:
    beside = path.with_name(f"{path.name}.tmp")  # the lock is held: nobody else writes under this name
    try:
        beside.unlink(missing_ok=True)  # what a killed process left
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(beside, flags, 0o600), "wb", buffering=0) as file:
            position = 0
            while position < data.nbytes:
                position += file.write(data[position : position + _CHUNK])
            os.fsync(file.fileno())  # a rename must not reach the disk before what it names
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _engine(variant: Variant) -> Engine:
    if variant.engine is None:
        raise ArtifactError(
            f"variant {variant.name!r}: expected one for {' or '.join(BACKENDS)}, found one for {variant.backend}"
        )
    return variant.engine


def check_fits(variant: Variant, device: Device) -> flavours.Flavour:
    """Returns the flavour of a variant that a device can build and run.

    Raises:
        EngineError: The variant is for another version of TensorRT or another GPU.
        ArtifactError: It is not for TensorRT.
    """
    spec = _engine(variant).spec
    flavour = flavours.flavour(spec.flavour)
    versions = f"{flavour.versions};{spec.versions}"
    if not flavours.in_range(device.version, versions):
        raise EngineError(
            f"variant {variant.name!r}: expected {flavour.title} {spec.versions}, found {device.version}",
            hint="build the artifact for what this device has: `leptonc targets` shows versions by JetPack release",
        )
    if spec.compute_capabilities and device.capability not in spec.compute_capabilities:
        raise EngineError(
            f"variant {variant.name!r}: expected a GPU of compute capability "
            f"{' or '.join(spec.compute_capabilities)}, found {device.capability}",
            hint="build the artifact for this device with `leptonc build --target`",
        )
    return flavour


def _choose(manifest: Manifest, name: str | None, device: Device | None) -> tuple[Variant, Device]:
    """Returns the variant of a name, or the first for this machine, and the device as its flavour sees it."""
    candidates = [
        variant for variant in manifest.variants
        if (variant.engine is not None if name is None else variant.name == name)
    ]  # fmt: skip
    if not candidates:
        variants = ", ".join(f"{variant.name} ({variant.backend})" for variant in manifest.variants)
        sought = f"for {' or '.join(BACKENDS)}" if name is None else f"of the name {name!r}"
        raise ArtifactError(
            f"variants: expected one {sought}, found {variants}",
            hint="only variants for TensorRT are finished on the device; others run as they are",
        )
    refusals: list[LeptonError] = []
    for variant in candidates:
        try:
            here = this_device(flavours.flavour(_engine(variant).spec.flavour)) if device is None else device
            check_fits(variant, here)
            return variant, here
        except LeptonError as error:
            refusals.append(error)
    if len(refusals) == 1:
        raise refusals[0]
    reasons = "; ".join(error.message for error in refusals)
    raise EngineError(f"expected a variant that this machine can run, found none: {reasons}", hint=refusals[0].hint)
