"""What pruning saves of the time, measured here with graphs as a build gives them; the share to prune for a latency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from leptonc.artifact.writer import ArtifactWriter
from leptonc.backends import backend_of
from leptonc.backends.traits import traits_of
from leptonc.build.calibration_text import Calibration
from leptonc.calibrate.latency import SECONDS, seconds, tokens
from leptonc.errors import InputError
from leptonc.ir.groups import groups
from leptonc.passes.base import Manager
from leptonc.passes.prune.importance import cheapest
from leptonc.passes.prune.plan import Cut
from leptonc.passes.prune.remove import Prune, PruneConfig
from leptonc.report.pruning import LatencyGoal, Speed
from leptonc.variant import VariantBuild
from runtime_edge.backends.onnxruntime import SLOWER

HALF = 0.5  # the share that the second measurement is made with
MOST = 0.9  # more would not leave a model
REPORTED = 0.5  # seconds of measuring for a figure in the report: no decision rests on it
SHARES = (HALF, 0.3, 0.15)  # of which the first that leaves a step of every block is taken


def share_for(
    goal: float, variant: VariantBuild, calibration: Calibration, multiple: int
) -> tuple[float, LatencyGoal]:  # fmt: skip
    """Returns the share of the layers' weights without which a token takes `goal` less time, 0.3 for 30 %.

    The whole model and one with the same share cut out of every block are lowered and timed; what lies between is taken
    to be straight, as times of matrix products are once their weights do not fit the caches.

    Args:
        goal: Above 0 and below 1.
        variant: The variant whose graph is timed.
        calibration: The captured model, and where temporary files go.
        multiple: What channels that stay are a multiple of.

    Returns:
        The share, and what the report says of it.

    Raises:
        InputError: The target is no CPU, or so much time cannot be saved.
    """
    if not traits_of(variant.plan.target).runs_here:
        raise InputError(
            f"expected a CPU's target with --prune latency:PCT, which is measured on this machine, found "
            f"{variant.plan.target.spec}",
            hint="--prune 25% asks for a share of the weights",
        )
    captured = calibration.captured
    prunable = groups(captured.model)
    alike = {block.name: np.zeros(block.units) for block in prunable.blocks}
    cuts: tuple[Cut, ...] = ()
    for trial in SHARES:
        try:
            cuts = cheapest(prunable, alike, trial, multiple=multiple, uniform=True)
            break
        except InputError:
            continue
    before = prunable.total
    with calibration.clock.stage("prune latency", 2) as advance:
        whole = _time(captured.model.clone(), variant, calibration)
        advance(1)
        smaller = captured.model.clone()
        Manager().run(smaller, [Prune(PruneConfig(cuts))])
        gone = 1 - groups(smaller).total / before
        part = _time(smaller, variant, calibration)
        advance(1)
    saved = (whole - part) / whole
    share = goal * gone / saved if saved > 0 else 1.0
    if share > MOST:
        raise InputError(
            f"expected a latency that cutting weights can give, found that {100 * gone:.0f} % of the layers' weights "
            f"save {max(0.0, 100 * saved):.0f} % of the time, where {100 * goal:g} % are asked for",
            hint="ask for less, or measure again on a machine that does nothing else",
        )
    return share, LatencyGoal(
        asked_percent=round(100 * goal, 2), whole_ms=round(1e3 * whole, 3), trial_ms=round(1e3 * part, 3),
        trial_percent=round(100 * gone, 2), share_percent=round(100 * share, 2),
    )  # fmt: skip


def speed(whole: ir.Model, smaller: ir.Model, variant: VariantBuild, calibration: Calibration) -> Speed:
    """Times what is left beside the whole model, both lowered as the variant does; changes both graphs.

    Args:
        whole: The captured graph before anything was cut out.
        smaller: It afterwards.
        variant: A variant for ONNX Runtime.
        calibration: The captured model, and where temporary files go.

    Returns:
        What was timed, milliseconds before and after, and how many times as fast it is.
    """
    with calibration.clock.stage("prune speed", 2) as advance:
        before = _time(whole, variant, calibration, REPORTED)
        advance(1)
        after = _time(smaller, variant, calibration, REPORTED)
        advance(1)
    captured, cached = calibration.captured, calibration.captured.interface.writes_text
    count = tokens(captured.max_seq_len, cached=cached)
    return Speed(
        of=f"a token over a cache of {count}" if cached else f"a text of {count} tokens",
        weights=variant.plan.scheme, before_ms=round(1e3 * before, 3), after_ms=round(1e3 * after, 3),
        times_as_fast=round(before / after, 3),
    )  # fmt: skip


def _time(model: ir.Model, variant: VariantBuild, calibration: Calibration, limit: float = SECONDS) -> float:
    """Lowers a graph as the variant does, its weights rounded to nearest, and times it."""
    backend = backend_of(variant.plan.target)
    Manager().run(model, backend.passes(variant.rounded(), Path(calibration.scratch)))
    backend.finish(model)
    with ArtifactWriter(calibration.scratch / "times", replace=False) as writer:
        writer.add_graph("model.onnx", model)
        captured = calibration.captured
        graph, vocabulary = writer.path / "model.onnx", int(captured.config.vocab_size)
        (part,) = captured.parts.values()
        return seconds(graph, part, vocabulary, captured.max_seq_len, limit, SLOWER)
