"""Refuses engine specs that a flavour or a GPU cannot build, before anything is built."""

from __future__ import annotations

from collections.abc import Iterable

from runtime_edge.errors import EngineError
from runtime_edge.manifest import EngineSpec
from runtime_edge.tensorrt.flavours import Flavour, in_range, parse_version


def check_spec(
    spec: EngineSpec, weights: str, flavour: Flavour, *, block_size: int | None = None, has_gpu: bool | None = None
) -> None:
    """Checks an engine spec against the table of flavours.

    Args:
        spec: How the engine shall be built.
        weights: The number format of the weights, or of the activations where those need more: fp32, fp16, bf16, int8,
            int4, fp8.
        flavour: The spec's flavour.
        block_size: Weights of an int4 block; None where they are not int4 or it is not known.
        has_gpu: Whether the build will run on a machine with a GPU; None where it is not known yet.

    Raises:
        EngineError: The engine cannot be built; the message has what was expected, the hint what to ask for instead.
    """
    _check_capabilities(spec, flavour)
    _check_weights(spec, weights, flavour)
    if block_size is not None and weights == "int4" and block_size not in flavour.int4_blocks:
        raise EngineError(
            f"{flavour.title}: expected int4 weights in blocks of {_listed(flavour.int4_blocks)}, found {block_size}",
            hint=f"quantize with `--block-size {min(flavour.int4_blocks, key=lambda size: abs(size - block_size))}`",
        )
    if spec.sparse_weights and weights not in flavour.sparse_formats:
        raise EngineError(
            f"{flavour.title}: expected 2:4 weights to be one of {_listed(flavour.sparse_formats)}, found {weights}",
            hint=f"ask for {_listed(flavour.sparse_formats, 'or')}",
        )
    if has_gpu is False and flavour.needs_gpu:
        raise EngineError(
            f"{flavour.title}: expected a GPU to build an engine on, found none",
            hint="copy the artifact to the device and run `lepton-edge finish` there",
        )
    if has_gpu is False and flavour.refit_needs_gpu and (spec.refit or spec.strip):
        raise EngineError(
            f"{flavour.title}: expected a GPU to build a plan that can be refitted or has no weights, found none",
            hint="build without refit and strip, or on a machine with a GPU",
        )


def _check_capabilities(spec: EngineSpec, flavour: Flavour) -> None:
    if flavour.named_capabilities is None:
        return
    if not spec.compute_capabilities:
        raise EngineError(f"{flavour.title}: expected at least one compute capability to build for, found none")
    unknown = [capability for capability in spec.compute_capabilities if capability not in flavour.named_capabilities]
    if unknown:
        raise EngineError(
            f"{flavour.title}: expected compute capabilities among {_listed(flavour.named_capabilities)}, "
            f"found {_listed(unknown)}",
            hint="Jetson modules take standard TensorRT: build with `--target jetson-orin` or `--target jetson-thor`",
        )


def _check_weights(spec: EngineSpec, weights: str, flavour: Flavour) -> None:
    least = flavour.least_capability.get(weights)
    if least is None:
        raise EngineError(
            f"{flavour.title}: expected weights to be one of {_listed(flavour.least_capability)}, found {weights!r}"
        )
    too_old = [capability for capability in spec.compute_capabilities if not in_range(capability, f">={least}")]
    if not too_old:
        return
    lowest = min(too_old, key=parse_version)
    possible = [name for name, first in flavour.least_capability.items() if in_range(lowest, f">={first}")]
    hint = f"ask for {_listed(possible, 'or')}" if possible else "choose another target"
    if len(too_old) < len(spec.compute_capabilities):
        hint += f", or leave {_listed(too_old)} out of the target"
    raise EngineError(
        f"{flavour.title}: expected a compute capability of {least} or more for {weights}, found {_listed(too_old)}",
        hint=hint,
    )


def _listed(items: Iterable[object], last: str = "and") -> str:
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {last} {texts[-1]}"
