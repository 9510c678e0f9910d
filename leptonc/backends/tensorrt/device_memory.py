"""Estimates whether a model fits a device, and its greatest speed there, before anything is built or copied."""

from __future__ import annotations

from dataclasses import dataclass

import targets
from leptonc.errors import InputError
from leptonc.formats import FORMATS
from leptonc.ir.structure import linears, lookups
from leptonc.report.variant import Preflight
from leptonc.variant import VariantBuild

RESERVED_GB = 1.5  # for the system and the CUDA context on shared memory; a choice, not a measured figure
_GB = 10**9


@dataclass(frozen=True)
class Need:
    """Memory that a variant takes on the device.

    Attributes:
        weights: Bytes of the engine's weights.
        read: Bytes of them that every token reads: all but the embedding's rows.
        token: Bytes of one token's cache.
        workspace: Bytes of the activations of the largest run.
        length: Tokens that the cache holds.
    """

    weights: int
    read: int
    token: int
    workspace: int
    length: int

    @property
    def total(self) -> int:
        return self.weights + self.token * self.length + self.workspace


def need(variant: VariantBuild, *, block_size: int, chunk: int, logits: int, cache_copies: int = 1) -> Need:
    """Estimates what a variant needs; weights and cache are exact but for padding, the workspace is a bound.

    A budget counts as spent.

    Args:
        variant: The variant, its model captured.
        block_size: Weights that share a scale of int4; 0 for whole channels.
        chunk: Tokens of the largest run, or of a batch of texts.
        logits: Rows of logits that a run may ask for.
        cache_copies: Buffers of each cache: 2 where past and present are two.
    """
    model, half = variant.captured.model, 4 if variant.plan.scheme == "fp32" else 2
    bits = FORMATS[variant.plan.scheme].bits
    tables = lookups(model)
    quantized = {linear.weight for linear in linears(model) if linear.weight not in tables} if bits < 16 else set()
    heads = {linear.weight for linear in linears(model)}
    weights = read = duplicated = widest = 0
    for value in model.graph.initializers.values():
        shape = [int(d) for d in value.shape or ()]  # type: ignore[arg-type]
        size = 1
        for dimension in shape:
            size *= dimension
        count = size * half
        if value in quantized:
            scales = size // block_size if block_size else max(shape)
            count = size * bits // 8 + scales * half
        weights += count
        # A table that is the head too is stored twice, as rows and as a matrix, and every token reads the matrix.
        if value in tables and value in heads:
            duplicated += count
        if value not in tables or value in heads:
            read += count
        widest = max(widest, *shape) if len(shape) == 2 and value not in tables else widest
    raised = max(0, (variant.plan.budget or 0) - weights)
    weights, read = weights + raised + duplicated, read + raised
    decoder = variant.captured.interface.writes_text
    buffers = [buffer for part in variant.captured.parts.values() for buffer in part.buffers]
    token = sum(int(buffer.dims[1]) * int(buffer.dims[3]) for buffer in buffers) * half * cache_copies
    vocab = int(variant.captured.config.vocab_size) if decoder else 0
    workspace = chunk * widest * half * 6 + logits * vocab * (half + 4)
    return Need(weights, read, token, workspace, variant.captured.max_seq_len if decoder else 0)


def check(needed: Need, target: targets.Target) -> Preflight:
    """Compares the memory that a variant needs with the target's.

    Returns:
        The memory needed. A target that says its memory adds that and the longest context, and one that says its
        bandwidth adds the speed at an empty cache.

    Raises:
        InputError: The variant does not fit.
    """
    report = Preflight(
        weights_mb=round(needed.weights / 1e6, 1), cache_mb=round(needed.token * needed.length / 1e6, 1),
        workspace_mb=round(needed.workspace / 1e6, 1),
    )  # fmt: skip
    if target.bandwidth_gb_s is not None and needed.token:
        report.decode_tokens_per_s_at_most = round(target.bandwidth_gb_s * _GB / needed.read, 1)
    if target.memory_gb is None:
        return report
    usable = (target.memory_gb - RESERVED_GB) * _GB
    report.memory_mb = round(usable / 1e6, 1)
    available = usable - needed.weights - needed.workspace
    longest = int(available // needed.token) if needed.token else 0
    if needed.token:
        report.longest_that_fits = max(0, longest)
    if needed.total > usable:
        fits = needed.token and longest > 0
        raise InputError(
            f"expected weights, cache and workspace within the {usable / 1e9:.1f} GB that {target.spec} leaves a model "
            f"({target.memory_gb:g} GB less {RESERVED_GB:g} for the system), found {needed.weights / 1e9:.2f} + "
            f"{needed.token * needed.length / 1e9:.2f} + {needed.workspace / 1e9:.2f} GB at {needed.length} tokens",
            hint=f"at most {longest} tokens fit: --max-seq-len {longest}" if fits
            else "weights of fewer bits take less: --weights int4",
        )  # fmt: skip
    return report
