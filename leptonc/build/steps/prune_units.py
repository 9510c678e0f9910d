"""Cuts heads, channels and whole blocks out of the captured model, and makes up for them in the weights that stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.backends.traits import traits_of
from leptonc.build.calibration_text import WINDOWS, Calibration
from leptonc.build.context import BuildContext
from leptonc.build.latency import share_for
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import ModelStep, Need, layer_need
from leptonc.build.work import Work, changing, checking, reading, work
from leptonc.calibrate.input_moments import InputMoments
from leptonc.calibrate.latency import SECONDS
from leptonc.calibrate.observe import features, influence
from leptonc.calibrate.reconstruct import TRIAL, fitted, in_sequence, reconstruction
from leptonc.calibrate.stages import stages
from leptonc.errors import InputError
from leptonc.frontend.captured import Captured
from leptonc.ir.groups import Groups, groups, layer_weights
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import multiplications, weight_of
from leptonc.options import BuildOptions
from leptonc.passes.base import Manager
from leptonc.passes.feature import Feature
from leptonc.passes.prune.importance import METHODS, by_unit, cheapest, scores
from leptonc.passes.prune.plan import BLOCK, Cut, by_block
from leptonc.passes.prune.remove import Prune, PruneConfig
from leptonc.passes.prune.request import Request
from leptonc.report.pruning import CutReasons, FittedLayer, LatencyGoal, PrunedQuality
from leptonc.report.pruning import Pruning as Pruned
from leptonc.report.quality import Fidelity
from leptonc.report.section import Change

FITTED = ("least-squares", "sequential")
COMPENSATIONS = ("none", "bias", *FITTED)
RECONSTRUCTION = "reconstruction"
GRAPHS = 3  # times as long as an artifact does a captured graph take to compare
GRADIENTS = 8  # texts that gradients are taken on
# Of a comparison, what tells how much is lost.
QUALITY = (
    "text", "perplexity", "perplexity_reference", "kl_divergence", "top1_agreement", "score_error", "cosine_mean",
)  # fmt: skip


class PruneUnits(ModelStep):
    """Does what `--prune` asks for but a width and 2:4 weights: cuts heads, channels and whole blocks out of the model.

    Raises:
        InputError: Blocks cannot be cut so, or nothing would be left.
    """

    name: ClassVar[str] = "prune"
    version: ClassVar[int] = 2
    options: ClassVar[tuple[str, ...]] = ("prune", "prune_method", "prune_compensation", "prune_allocation")
    text_option: ClassVar[str] = "--prune"

    def wanted(self, plan: BuildPlan) -> bool:
        return plan.prune is not None and not plan.prune.sparse and not plan.prune.width

    def texts(self, plan: BuildPlan) -> int:
        if not self.wanted(plan) or plan.prune is None:
            return 0
        return WINDOWS if _reads_text(plan.prune, _method(plan.options), _compensation(plan)) else 0

    def check(self, plan: BuildPlan) -> None:
        options = plan.options
        method, compensation, allocation = (
            options.prune_method, options.prune_compensation, options.prune_allocation,
        )  # fmt: skip
        if plan.prune is None and (method, compensation, allocation) != (None, None, None):
            raise InputError("expected --prune with --prune-method, -compensation and -allocation, found none")
        if not self.wanted(plan):
            return
        known = (RECONSTRUCTION, *METHODS)
        if method not in (None, *known):  # 2:4 weights have others
            raise InputError(f"expected a pruning method among {', '.join(known)}, found {method!r}")
        if allocation is not None and method in (None, RECONSTRUCTION):
            raise InputError(
                f"expected --prune-allocation with a method among {', '.join(METHODS)}, found "
                f"{method or RECONSTRUCTION}, which measures what each block is worth"
            )

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        yield layer_need(sizes)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        request = plan.prune
        if request is None:
            return
        method, compensation = _method(plan.options), _compensation(plan)
        measured = bool(request.share or request.latency)
        reconstructs = measured and method == RECONSTRUCTION
        if request.latency:
            yield work("prune latency", seconds=2 * SECONDS, written=3 * sizes.whole)
        if reconstructs or compensation == "least-squares":
            yield work("prune moments", **reading(plan, sizes, self.texts(plan), moments=0.5))
        if reconstructs:
            yield work("prune choose", removals=sizes.cubes)
            blocks = len(sizes.inputs) / 2  # of four values that a layer's linears read, two are of what can be cut
            yield work("prune sensitivity", **changing(sizes, 1.5 * blocks, 1, TRIAL), fits=sizes.cubes)
        elif measured and method == "taylor":
            yield work("prune gradients", **reading(plan, sizes, GRADIENTS, "learnt"))
        elif request.layers or (measured and method != "magnitude"):
            yield work("prune calibrate", **reading(plan, sizes, self.texts(plan)))
        if compensation == "bias":
            yield work("prune calibrate", **reading(plan, sizes, self.texts(plan)))
        if compensation in FITTED:
            in_turn = reading(plan, sizes, self.texts(plan), graphs=2, moments=1.5)
            yield work("prune compensate", fits=sizes.cubes, **(in_turn if compensation == FITTED[1] else {}))
        if plan.options.check:
            yield work("prune check", **checking(sizes, GRAPHS * (1 if compensation == "none" else 2)))

    def run(self, context: BuildContext) -> BuildContext:
        plan, options, calibration = context.plan, context.plan.options, context.calibration
        request, method = plan.prune, _method(plan.options)
        if request is None:
            return context
        multiple = max(traits_of(variant.target).channel_multiple for variant in plan.variants)
        latency: LatencyGoal | None = None
        if saved := request.latency:
            share, latency = calibration.step_cache.record(
                "prune-latency", tuple[float, LatencyGoal],
                lambda: share_for(saved, context.variants[0], calibration, multiple),
            )  # fmt: skip
            request = replace(request, share=share)
        # As they were published.
        allocation = options.prune_allocation or ("global" if method in ("flap", "taylor") else "uniform")
        pruning = Pruning(request, method, _compensation(plan), calibration, multiple, allocation, options.check)
        context.report.pruning = pruning.run(context)
        context.report.pruning.latency = latency
        return context


def _method(options: BuildOptions) -> str:
    return options.prune_method or RECONSTRUCTION


def _compensation(plan: BuildPlan) -> str:
    """What makes up for cuts; a plan says it all, so that by default nothing does."""
    usual = "none" if plan.prune is not None and plan.prune.cuts else "least-squares"
    return plan.options.prune_compensation or usual


def _reads_text(request: Request, method: str, compensation: str) -> bool:
    """Whether a calibration text has a use."""
    measured = request.share > 0 or request.latency > 0
    chooses = request.layers > 0 or (measured and method != "magnitude")
    return chooses or compensation != "none"


@dataclass
class Pruning:
    """The pruning of one build, before its variants part.

    Attributes:
        request: What is asked for.
        method: How units are chosen; see `METHODS`.
        compensation: What makes up for them; see `COMPENSATIONS`.
        calibration: The text, and where temporary files go.
        multiple: What the targets' kernels like the number of channels to be a multiple of.
        allocation: How a share is spent by importance: uniform or global.
        check: Whether quality is measured, with what makes up for the cuts and without.
    """

    request: Request
    method: str
    compensation: str
    calibration: Calibration
    multiple: int
    allocation: str = "global"
    check: bool = True

    def run(self, context: BuildContext) -> Pruned:
        """Prunes the captured model in place; returns what the report says of it."""
        captured, cache = context.captured, self.calibration.step_cache
        prunable = groups(captured.model)
        prunable.require()
        if self.request.cuts:
            by_block(prunable, self.request.cuts)  # refused before the text is written
            self.method = "plan"
        if self.request.layers:
            self.method = "influence"
            if self.request.layers >= len(prunable.layers):
                raise InputError(
                    f"expected fewer layers to prune than the model has, found {self.request.layers} of "
                    f"{len(prunable.layers)}",
                    hint="--prune layers:N cuts N layers",
                )
        text = self.calibration.describe() if self._reads_text else None
        moments = self._moments(captured, prunable)
        cuts, reasons = cache.record(
            "prune-cuts", tuple[tuple[Cut, ...], CutReasons], lambda: self._choose(captured, prunable, moments)
        )  # fmt: skip
        stay = by_block(prunable, cuts)
        weights, fitted_layers = self._fitted(captured, prunable, moments, stay)
        moments.drop()
        before, macs = prunable.total, multiplications(captured.model)
        biases = self._biases(prunable, stay, self._features(captured, prunable)) if self.compensation == "bias" else {}
        plain = captured.model.clone() if self.check and (weights or biases) else None
        context.run_passes([Prune(PruneConfig(cuts, self.method, self.compensation), weights, biases)])
        quality = self._quality(captured.model, plain, cuts) if self.check else None
        after = layer_weights(captured.model)
        captured.resized(after - before)
        return Pruned(
            asked=self.request.text, method=self.method, compensation=self.compensation, calibration=text,
            **msgspec.structs.asdict(reasons), blocks=_picture(prunable, stay), fitted=fitted_layers, quality=quality,
            weights=Change(before=before, after=after), removed_percent=round(100 * (1 - after / before), 2),
            multiplications_a_token=Change(before=macs, after=multiplications(captured.model)),
        )  # fmt: skip

    @property
    def _reads_text(self) -> bool:
        return _reads_text(self.request, self.method, self.compensation)

    def _moments(self, captured: Captured, prunable: Groups) -> InputMoments:
        calibration = self.calibration
        windows = calibration.windows if self._reads_text else []
        return InputMoments(
            captured.model, prunable.consumers, windows, calibration.scratch, memory=calibration.memory,
            clock=calibration.clock.stage, step_cache=calibration.step_cache,
        )  # fmt: skip

    def _choose(
        self, captured: Captured, prunable: Groups, moments: InputMoments
    ) -> tuple[tuple[Cut, ...], CutReasons]:  # fmt: skip
        """Returns the cuts, and what decided them."""
        if self.request.layers:
            return self._layers(captured, prunable)
        if self.request.share and self.method == RECONSTRUCTION:
            return reconstruction(moments, prunable, self.request.share, multiple=self.multiple)
        if self.request.share:
            importance = self._importance(captured, prunable)
            if self.method == "flap":
                importance = {name: _standard(scores) for name, scores in importance.items()}
            cuts = cheapest(
                prunable, importance, self.request.share, multiple=self.multiple, uniform=self.allocation == "uniform",
                by_weight=self.method != "flap",
            )  # fmt: skip
            return cuts, CutReasons(allocation=self.allocation)
        return tuple(self.request.cuts), CutReasons()

    def _importance(self, captured: Captured, prunable: Groups) -> dict[str, NDArray[np.float64]]:
        """Returns each unit's importance, by block."""
        if self.method == "taylor":
            return self._taylor(captured, prunable)
        known = self._features(captured, prunable) if self.method != "magnitude" else {}
        return {block.name: scores(block, self.method, known) for block in prunable.blocks}

    def _taylor(self, captured: Captured, prunable: Groups) -> dict[str, NDArray[np.float64]]:
        from leptonc.heal.taylor import taylor

        values = {linear.path: str(linear.x.name) for block in prunable.blocks for linear in block.consumers}
        calibration = self.calibration
        with calibration.clock.stage("prune gradients", len(windows := calibration.part(GRADIENTS))) as advance:
            gates = taylor(captured.model, windows, list(values.values()), advance)
        inputs = {path: gates[name] for path, name in values.items()}
        return {block.name: by_unit(block, inputs) for block in prunable.blocks}

    def _fitted(
        self, captured: Captured, prunable: Groups, moments: InputMoments, stay: Mapping[str, Any]
    ) -> tuple[dict[str, Callable[[], NDArray[np.float32]]], list[FittedLayer] | None]:
        """Returns weights that make up for what goes, and what the report says of them."""
        if self.compensation not in FITTED:
            return {}, None
        calibration = self.calibration
        report: list[FittedLayer] = []

        def make() -> dict[str, NDArray[Any]]:
            nonlocal report
            if self.compensation == "least-squares":
                made, report = fitted(moments, prunable, stay, calibration.scratch)
            else:
                made, report = in_sequence(
                    captured.model, prunable, stay, calibration.windows, calibration.scratch, memory=calibration.memory,
                    clock=calibration.clock.stage,
                )  # fmt: skip
            calibration.step_cache.record("prune-fitted", list[FittedLayer], lambda: report)  # before the weights are
            return made

        made = calibration.step_cache.arrays("prune-weights", make)
        layers = calibration.step_cache.record("prune-fitted", list[FittedLayer], lambda: report)
        return {name: partial(np.asarray, array) for name, array in made.items()}, layers

    def _walk(self, what: Callable[..., Any], captured: Captured, prunable: Groups) -> Any:
        calibration = self.calibration
        batches = [inputs_of(captured.model, window) for window in calibration.windows]
        with calibration.clock.stage("prune calibrate", len(stages(captured.model))) as advance:
            return what(
                captured.model, prunable, batches, calibration.scratch, memory=calibration.memory, advance=advance
            )

    def _features(self, captured: Captured, prunable: Groups) -> dict[str, Feature]:
        known: dict[str, Feature] = self._walk(features, captured, prunable)
        return known

    def _layers(self, captured: Captured, prunable: Groups) -> tuple[tuple[Cut, ...], CutReasons]:
        """Cuts the layers that turn the residual stream least."""
        known: dict[str, float] = self._walk(influence, captured, prunable)
        reasons = CutReasons(influence={path: float(f"{value:.4g}") for path, value in known.items()})
        chosen = sorted(known, key=lambda path: known[path])[: self.request.layers]
        return tuple(Cut(block.name, BLOCK) for block in prunable.blocks if block.layer in chosen), reasons

    def _quality(self, model: ir.Model, plain: ir.Model | None, cuts: tuple[Cut, ...]) -> PrunedQuality:
        """Compares what is left with the original; `plain` is the whole graph, where something makes up for cuts."""
        quality: dict[str, Fidelity] = {}
        graphs = {"cut": model} if plain is None else {"cut": plain, "compensated": model}
        if plain is not None:
            Manager().run(plain, [Prune(PruneConfig(cuts))])
        with self.calibration.clock.stage("prune check", len(graphs)) as advance:
            for name, graph in graphs.items():
                compared = self.calibration.sample.compare_graph(graph)
                quality[name] = Fidelity(**{figure: getattr(compared, figure) for figure in QUALITY})
                advance(1)
        return PrunedQuality(**quality)

    @staticmethod
    def _biases(
        prunable: Groups, stay: Mapping[str, Any], known: Mapping[str, Feature]
    ) -> dict[str, NDArray[np.float32]]:  # fmt: skip
        """Returns what the removed units gave on average, for the bias of what summed over them."""
        made: dict[str, NDArray[np.float32]] = {}
        for name, masks in stay.items():
            block = prunable.block(name)
            for linear in block.consumers if masks is not None else ():
                gone = ~masks["channels" if block.kind == "mlp" else "heads"]
                gone = np.repeat(gone, linear.shape[1] // len(gone))
                mean = known[linear.path].mean[gone]
                made[linear.path] = (weight_of(linear)[:, gone] @ mean).astype(np.float32)
        return made


def _standard(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """FLAP compares layers by how far a unit is from its layer's mean, in standard deviations."""
    standard: NDArray[np.float64] = (importance - importance.mean()) / max(float(importance.std()), 1e-30)
    return standard


def _picture(prunable: Groups, stay: Mapping[str, Any]) -> dict[str, str]:
    """What is left of each block that was cut: "1216 of 1536 channels", "2 of 3 groups, 6 of 9 heads", "gone"."""
    return {
        name: "gone"
        if masks is None
        else ", ".join(f"{int(mask.sum())} of {len(mask)} {space}" for space, mask in sorted(masks.items()))
        for name, masks in ((b.name, stay[b.name]) for b in prunable.blocks if b.name in stay)
    }
