"""What a budget of bytes is spent on: 4 bits everywhere, and 8 where they help most."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from leptonc.artifact.writer import stored_bytes
from leptonc.backends import Job, backend_of
from leptonc.backends.onnxruntime import SHARED, finish, lowering_of, prefill_passes
from leptonc.backends.onnxruntime.integer import derived_of
from leptonc.calibrate.sensitivity import Sensitivity, raise_within, sensitivities
from leptonc.errors import BoundError, InputError
from leptonc.ir.dialect import module_of
from leptonc.ir.structure import embeddings, linears
from leptonc.passes.base import Manager

if TYPE_CHECKING:
    from leptonc.calibration import Calibration

TRIALS, TRIAL = 2, 128  # texts that sensitivities are measured on, and tokens of each
NODES = 512  # bytes of graph that a layer of its own takes, where it was joined with others before
DESCRIBED = 640  # bytes that say how the runtime makes a weight of a graph for prefill
_AUTO = re.compile(r"auto:(\d+(?:\.\d+)?)\s*([kMG])B", re.ASCII)
_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}


def parse_budget(weights: str | None) -> int | None:
    """Returns the bytes of `auto:95MB`, None for another number format.

    Raises:
        InputError: It begins like a budget and is none.
    """
    if weights is None or not weights.startswith("auto"):
        return None
    found = _AUTO.fullmatch(weights)
    if found is None or float(found[1]) <= 0:
        raise InputError(
            f"expected weights auto:SIZE, found {weights}", hint="a size is a number and kB, MB or GB: auto:95MB"
        )
    return int(float(found[1]) * _UNITS[found[2]])


def spend(calibration: Calibration, job: Job, model: ir.Model, budget: int, about: dict[str, Any]) -> None:
    """Chooses, under the budget, what is kept in 8 bits; `job.layers` and `job.embeddings` get it, `about` is told.

    The embedding, with a head that is tied to it, is one of what is chosen among, where the backend has formats for it
    and none is asked for.

    Raises:
        BoundError: Graph and weights take more with all weights in 4 bits.
    """
    backend = backend_of(job.target)
    tables = backend.config_of(job).embeddings
    look = next(embeddings(model), None) if tables and job.embeddings is None else None
    if look is not None:
        job.embeddings = "int4"
    size = size_of(job, model, calibration.scratch)
    if size > budget:
        less = "--symmetric, --block-size 64 and --embeddings int4 take" if tables else "--block-size 128 takes"
        raise BoundError(
            f"expected weights and graph of at most {budget:,} bytes, found {size:,} with all weights in 4 bits; "
            "nothing was written",
            hint=f"{less} less",
        )
    config, higher = backend.config_of(job), dataclasses.replace(backend.config_of(job), embedding_bits=8)
    table = None if look is None else _unmeasured(module_of(look), look.inputs[0].shape)  # type: ignore[union-attr, arg-type]
    nodes = NODES if job.target.backend == "onnxruntime" else 0  # TensorRT's graphs join no layers
    if job.prefill == SHARED:  # in both graphs, and in what says how the second one's is made
        nodes = 2 * nodes + DESCRIBED

    def looked_up(each: Sensitivity) -> bool:
        return table is not None and each.path == table.path

    def extra(each: Sensitivity) -> int:
        width, is_table = each.shape[1], looked_up(each)
        high = higher.form(width, table=True) if is_table else config.raised(width)
        return high.stored_bytes(each.shape) - config.form(width, table=is_table).stored_bytes(each.shape) + nodes

    about["budget"] = {"bytes": budget, "least": size, "spent": 0}
    fixed = {path for each in job.layers for path in each.paths}

    def free(each: Sensitivity) -> bool:
        return each.path not in fixed and not config.ragged(each.path, each.shape[1])

    left = budget - size
    unmeasured = [_unmeasured(each.path, each.shape) for each in linears(model)] + ([table] if table else [])
    if any(extra(each) <= left for each in unmeasured if free(each)):
        trials = [window[:TRIAL] for window in calibration.part(TRIALS)]
        measured = calibration.walked(
            f"sensitivity-{job.name}", "sensitivity", model, list[Sensitivity],
            partial(
                sensitivities, model, trials, config.form,
                table=config.form(table.shape[1], table=True) if table else None,
            ),
        )  # fmt: skip
        found = [each for each in measured if free(each)]
        fewest = job.layers
        while True:
            raised, about["budget"]["spent"] = raise_within(found, extra, left)
            chosen = [each for each in found if each.path in raised]
            if table:
                job.embeddings = "int8" if any(map(looked_up, chosen)) else "int4"
            layers = {each.path: each.shape[1] for each in chosen if not looked_up(each)}
            job.layers = fewest + config.raised_layers(layers)
            over = size_of(job, model, calibration.scratch) - budget
            if over <= 0 or not chosen:
                break
            left -= over  # layers that were joined with raised ones took more nodes than was reckoned with
        about["sensitivity"] = [
            {"path": each.path, "bits": 8 if each in chosen else 4, "error": float(f"{each.error:.4g}")}
            for each in found
        ]
    if tables:
        about["budget"]["embeddings"] = job.embeddings


def size_of(job: Job, model: ir.Model, scratch: Path) -> int:
    """Bytes of the graph and the weights that the job would give, as they are stored: no weight is computed for it.

    A graph for prefill that shares them counts too; one with weights of its own is asked for on top.
    """
    trial, backend = model.clone(), backend_of(job.target)
    method, job.method = job.method, "rtn"
    passes = backend.passes(job, scratch)
    job.method = method
    first = lowering_of(passes)
    Manager().run(trial, passes[:first])
    prompts = trial.clone() if job.prefill == SHARED else None
    Manager().run(trial, passes[first:])
    backend.finish(trial)
    size = stored_bytes(trial)
    if prompts is not None:
        Manager().run(prompts, prefill_passes(job, prompts))
        finish(prompts)
        size += stored_bytes(prompts, beside=trial) + DESCRIBED * len(derived_of(prompts))
    return size


def _unmeasured(path: str, shape: Sequence[Any]) -> Sensitivity:
    return Sensitivity(path, (int(shape[0]), int(shape[1])), math.inf)
