"""Which backend runs an artifact that has engines of TensorRT: the first of these that works here.

    a plan for this machine, from the artifact or finished here before
    a plan that is built now
    ONNX Runtime on the GPU
    ONNX Runtime on the CPU

Each that fails is a reason, told in a `BackendWarning` when the next one is taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from runtime_edge.backends import onnxruntime
from runtime_edge.errors import ArtifactError, BackendWarning, EngineError, LeptonError, MissingDependencyError
from runtime_edge.manifest import FLAVOURS, Manifest, Variant
from runtime_edge.tensorrt import flavours
from runtime_edge.tensorrt.cache import jit_cache_path
from runtime_edge.tensorrt.device import Device, this_device
from runtime_edge.tensorrt.plans import FoundPlan, check_fits, ensure_plan, find_plan

if TYPE_CHECKING:
    from runtime_edge.backends import Session

T = TypeVar("T")


@dataclass(frozen=True)
class Opened:
    """What was opened: the backend's name, the variant, a session of each part, and why no earlier choice was taken."""

    backend: str
    variant: Variant
    sessions: dict[str, Session]
    why: list[str]


def open_best(
    root: Path, manifest: Manifest, backend: str | None, threads: int, caller: FrameType | None = None
) -> Opened:
    """Opens the best backend for a verified artifact.

    Args:
        root: The artifact's directory.
        manifest: Its manifest; every file was compared with it.
        backend: The only one to try. With None all are tried.
        threads: Threads of ONNX Runtime.
        caller: Where warnings are shown to come from.

    Raises:
        MissingDependencyError: None works, and for one of them something has to be installed.
        EngineError, ArtifactError, RequestError: None works, for other reasons.
    """
    return _Ladder(root, manifest, threads, caller).climb(backend)


class _Ladder:
    def __init__(self, root: Path, manifest: Manifest, threads: int, caller: FrameType | None) -> None:
        self._root = root
        self._manifest = manifest
        self._threads = threads
        self._caller = caller
        self._why: list[str] = []
        self._told = 0
        self._errors: list[LeptonError] = []

    def climb(self, backend: str | None) -> Opened:
        names = [backend] if backend is not None else [*FLAVOURS, "onnxruntime-cuda", "onnxruntime"]
        parts = self._manifest.parts
        complete = [
            variant for variant in self._manifest.variants
            if all(variant.graph(part.name) is not None for part in parts)
        ]  # fmt: skip
        # An engine runs a model of one part.
        engines = [variant for variant in complete if variant.engine and variant.backend in names and len(parts) == 1]
        graphs = [variant for variant in complete if variant.backend == "onnxruntime"]
        opened = self._engines(engines)
        if opened is None and "onnxruntime-cuda" in names:
            opened = self._graphs("onnxruntime-cuda", graphs)
        if opened is None and "onnxruntime" in names:
            opened = self._graphs("onnxruntime", graphs)
        if opened is None:
            raise self._refusal(backend)
        self._tell()
        return opened

    def _engines(self, variants: Sequence[Variant]) -> Opened | None:
        """Opens a variant whose plan is there; else builds one, the first that builds."""
        to_build: list[tuple[Variant, Device]] = []
        for variant in variants:
            device = self._device(variant)
            if device is None:
                continue
            plan = self._plan(variant, device)
            if plan is None:
                to_build.append((variant, device))
            elif (opened := self._open_plan(variant, device, plan)) is not None:
                return opened
        for variant, device in to_build:
            self._why.append(
                f"{variant.name}: no plan for {flavours.flavour(variant.backend).title} {device.version} and compute "
                f"capability {device.capability} yet: it is built now, once (`lepton-edge finish` does it beforehand)"
            )
            self._tell()  # now, for it takes minutes
            built = self._try(variant, variant.backend, partial(self._build, variant, device))
            if built is not None and (opened := self._open_plan(variant, device, built)) is not None:
                return opened
        return None

    def _device(self, variant: Variant) -> Device | None:
        """What this machine is to a variant's flavour; None, with the reason, where the variant is not for it."""

        def ask() -> Device:
            device = this_device(flavours.flavour(variant.backend))
            check_fits(variant, device)
            return device

        return self._try(variant, variant.backend, ask)

    def _plan(self, variant: Variant, device: Device) -> FoundPlan | None:
        try:
            return find_plan(self._root, self._manifest, variant, device, verified=True)
        except (ArtifactError, OSError) as error:  # a damaged plan in the cache, or a cache that cannot be used
            self._why.append(f"{variant.name}: {error}")
            return None

    def _build(self, variant: Variant, device: Device) -> FoundPlan:
        try:
            return ensure_plan(self._root, self._manifest, variant, device)[0]
        except OSError as error:
            raise EngineError(
                f"{variant.name}: expected a place to keep the plan, found: {error}",
                hint="name a directory that can be written with LEPTON_CACHE",
            ) from error

    def _open_plan(self, variant: Variant, device: Device, plan: FoundPlan) -> Opened | None:
        def opening() -> dict[str, Session]:
            from runtime_edge.backends import tensorrt

            record, manifest = variant.engine, self._manifest
            assert record is not None  # chosen for it
            kernels = _kernels(plan, device)
            (part,) = manifest.parts
            return {part.name: tensorrt.open_part(plan.path, record, manifest, part, kernels, self._why)}

        sessions = self._try(variant, variant.backend, opening)
        return None if sessions is None else Opened(variant.backend, variant, sessions, self._why)

    def _graphs(self, backend: str, variants: Sequence[Variant]) -> Opened | None:
        for variant in variants:

            def opening(variant: Variant = variant) -> dict[str, Session]:
                providers = onnxruntime.gpu_providers() if backend == "onnxruntime-cuda" else onnxruntime.CPU
                root, manifest = self._root, self._manifest
                return {
                    part.name: onnxruntime.open_part(root, manifest, variant, part, self._threads, providers)
                    for part in manifest.parts
                }

            sessions = self._try(variant, backend, opening)
            if sessions is not None:
                return Opened(backend, variant, sessions, self._why)
        return None

    def _try(self, variant: Variant, backend: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except LeptonError as error:
            hint = "" if error.hint is None else f" ({error.hint})"
            self._why.append(f"{variant.name} on {backend}: {error.message}{hint}")
            self._errors.append(error)
            return None

    def _tell(self) -> None:
        """Warns of the reasons that were not told yet, as if the application's line had."""
        frame = self._caller
        for reason in self._why[self._told :]:
            if frame is None:
                warnings.warn(reason, BackendWarning, stacklevel=2)
                continue
            registry = frame.f_globals.setdefault("__warningregistry__", {})
            module = frame.f_globals.get("__name__", "")
            warnings.warn_explicit(reason, BackendWarning, frame.f_code.co_filename, frame.f_lineno, module, registry)
        self._told = len(self._why)

    def _refusal(self, backend: str | None) -> LeptonError:
        errors = self._errors
        if len(errors) == 1:
            return errors[0]
        kind = next((type(error) for error in errors if isinstance(error, MissingDependencyError)), EngineError)
        subject = "this artifact" if backend is None else f"backend {backend!r}"
        messages = dict.fromkeys(error.message for error in errors)
        hint = next((error.hint for error in errors if error.hint is not None), None)
        return kind(f"{subject}: expected one variant that runs here, found none: {'; '.join(messages)}", hint=hint)


def _kernels(plan: FoundPlan, device: Device) -> Path | None:
    """Where compiled kernels are kept; None where the cache cannot be used, and they are compiled every time."""
    try:
        return jit_cache_path(plan.sha256, device)
    except (LeptonError, OSError):
        return None
