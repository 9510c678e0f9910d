"""Gives linear layers 2:4 weights: two of each four are zero, which sparse tensor cores skip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from leptonc.build.calibration_text import WINDOWS
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.step import ModelStep, Need, layer_need
from leptonc.build.work import Work, reading, work
from leptonc.calibrate.sparse import sparse_weights
from leptonc.calibrate.stages import stages
from leptonc.errors import InputError
from leptonc.ir.structure import Linear
from leptonc.passes.prune.sparse import (
    METHODS,
    PATTERN,
    Sparsify,
    SparsifyConfig,
    candidates,
    dense_layers,
    magnitude,
    nonzero,
)
from leptonc.passes.quantize.methods import ROUNDING
from leptonc.report.pruning import Pruning
from leptonc.report.section import Change
from leptonc.variant import VariantPlan


class PrunePattern(ModelStep):
    """Does what `--prune 2:4` asks for, by SparseGPT (arXiv:2301.00774) or by magnitude.

    Raises:
        InputError: No linear layer can have the pattern, or activations are not finite.
    """

    name: ClassVar[str] = "prune pattern"
    text_option: ClassVar[str] = "--prune"

    def wanted(self, plan: BuildPlan) -> bool:
        return plan.prune is not None and plan.prune.sparse

    def texts(self, plan: BuildPlan) -> int:
        return WINDOWS if self.wanted(plan) and plan.options.prune_method != "magnitude" else 0

    def check(self, plan: BuildPlan) -> None:
        if not self.wanted(plan):
            return
        options = plan.options
        if options.prune_method not in (None, *METHODS):
            raise InputError(
                f"expected with --prune {PATTERN} a pruning method among {', '.join(METHODS)}, found "
                f"{options.prune_method!r}",
                hint="--prune 25% cuts by the others",
            )
        for name, given in (
            ("compensation", options.prune_compensation), ("allocation", options.prune_allocation),
        ):  # fmt: skip
            if given is not None:
                raise InputError(
                    f"expected no --prune-{name} with --prune {PATTERN}, found {given!r}",
                    hint="sparsegpt makes up for what goes, magnitude does not; every layer loses the same share",
                )
        for variant in plan.variants:
            _check_variant(variant)

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        yield layer_need(sizes)

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        if self.texts(plan):
            read = reading(plan, sizes, self.texts(plan), graphs=2, moments=1.5)
            yield work("prune calibrate", **read, fits=sizes.cubes, codes=sizes.multiplications)
        yield work("prune", written=sizes.whole)

    def run(self, context: BuildContext) -> BuildContext:
        context.report.pruning = _sparsify(context, context.plan.options.prune_method or METHODS[0])
        return context


def _check_variant(plan: VariantPlan) -> None:
    """Refuses a variant that would gain nothing by 2:4 weights, or whose codes fill their zeros."""
    if not plan.target.sparse_capabilities:
        raise InputError(
            f"expected a target with sparse tensor cores (NVIDIA's from Ampere on) for --prune {PATTERN}, found "
            f"{plan.target.spec}",
            hint="--target jetson-orin, jetson-thor, rtx or rtx-30 and up; --prune 25% makes a model smaller anywhere",
        )
    if plan.method != ROUNDING:
        raise InputError(
            f"expected method rtn with --prune {PATTERN}, found {plan.method}, which gives zeros other values",
            hint="leave out --method: rounding keeps zeros",
        )


def _sparsify(context: BuildContext, method: str) -> Pruning:
    """Gives the captured model 2:4 weights in place; returns what to report. `method` is one of `METHODS`."""
    model, calibration = context.captured.model, context.calibration
    layers = {str(linear.weight.name): linear for linear in candidates(model)}
    dense, text, errors = dense_layers(model), None, None
    weights: Mapping[str, Callable[[], NDArray[np.float32]]]
    if method == "magnitude":
        # What a layer has now is what it reads then: the pass gives its initializer another tensor.
        weights = {name: partial(_largest, linear, linear.weight.const_value) for name, linear in layers.items()}
    else:
        windows = calibration.windows
        text = calibration.describe()
        with calibration.clock.stage("prune calibrate", len(stages(model))) as advance:
            made, errors = sparse_weights(
                model, windows, calibration.scratch, memory=calibration.memory, advance=advance,
                step_cache=calibration.step_cache,
            )  # fmt: skip
        weights = {name: partial(np.asarray, array) for name, array in made.items()}
    with calibration.clock.stage("prune"):
        before = nonzero(model)
        context.run_passes([Sparsify(SparsifyConfig(method), weights)])
        after = nonzero(model)
    return Pruning(
        asked=PATTERN, method=method, calibration=text, left_dense=dense, linears=errors,
        weights=Change(before=before, after=after), removed_percent=round(100 * (1 - after / max(1, before)), 2),
    )  # fmt: skip


def _largest(linear: Linear, tensor: Any) -> NDArray[np.float32]:
    array = np.asarray(tensor.numpy(), np.float32)
    return magnitude(array) if linear.transposed else magnitude(array.T).T
