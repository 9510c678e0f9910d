"""Traits of backends, as data: no step of a build asks a backend for its name."""

from __future__ import annotations

from dataclasses import dataclass, replace

import targets


@dataclass(frozen=True)
class Traits:
    """Traits of a backend.

    Attributes:
        channel_multiple: Number that a count of channels should be a multiple of, for its kernels.
        runs_here: Whether the lowered graph itself is run, so that it can be timed on this machine's CPU.
        heals: Whether its variants can be healed.
        joins_linears: Whether linear layers that read one value become one product.
        symmetric_inputs: Whether quantized inputs of linear layers have no zero points, and always 8 bits.
        half: Whether weights and activations that are not quantized have 16 bits, unless float32 is asked for.
        solves_eight_bits: Whether a text chooses the codes of 8-bit weights, where nothing else is asked for.
        described: Bytes that describe how one weight of a graph for prompts is made from a stored one.
        compiles: The stage in which a graph is compiled, for this machine or on trial. Default: none.
        table_bits: Least number of bits of an embedding. Default: 0, the format that is asked for.
        extra: The extra of this package that has what its variants run on.
        from_system: Whether they also need packages that only the device's own system has.
    """

    channel_multiple: int
    runs_here: bool = False
    heals: bool = False
    joins_linears: bool = False
    symmetric_inputs: bool = False
    half: bool = False
    solves_eight_bits: bool = False
    table_bits: int = 0
    described: int = 0
    compiles: str = ""
    extra: str = ""
    from_system: bool = False

    def unquantized(self, scheme: str) -> str:
        """Returns the number format of weights that are not quantized where `scheme` is asked for."""
        if scheme == "fp8":
            return scheme
        return "fp16" if self.half and scheme != "fp32" else "fp32"


# Blocks of int4 weights have 32 on a CPU; TensorRT's tensor cores take tiles of 64.
_CPU = Traits(
    32, runs_here=True, heals=True, joins_linears=True, solves_eight_bits=True,
    described=700, extra="cpu",
)  # fmt: skip
_ENGINE = Traits(64, symmetric_inputs=True, half=True, table_bits=16)
TRAITS = {
    "onnxruntime": _CPU, "tensorrt": replace(_ENGINE, compiles="rehearsal", extra="jetson", from_system=True),
    "tensorrt-rtx": replace(_ENGINE, compiles="engine", extra="rtx"),
}  # fmt: skip


def traits_of(target: targets.Target) -> Traits:
    """Returns the traits of a target's backend."""
    return TRAITS[target.backend]
