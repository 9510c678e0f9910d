"""Reads what a build is asked for, once: options become a plan, and what cannot be asked for is refused."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import targets
from leptonc.backends.traits import traits_of
from leptonc.errors import InputError
from leptonc.formats import FORMATS
from leptonc.options import BuildOptions
from leptonc.passes.prune.request import Request, parse_prune
from leptonc.passes.prune.sparse import PATTERN
from leptonc.passes.quantize.methods import BEST, ROUNDING
from leptonc.variant import VariantPlan

_AUTO = re.compile(r"auto:(\d+(?:\.\d+)?)\s*([kKMG])B", re.ASCII)
_UNITS = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class BuildPlan:
    """What a build or an emission is asked for, its option strings read.

    Attributes:
        options: The options themselves.
        variants: One plan a target; an emission has one, in float32.
        prune: What is cut out of the model. Default: nothing.
        lowered: Whether variants are lowered for their targets, as those of an emission are not.
        texts: Calibration texts that the build's steps read; 0 where none reads a text.
        calibrated: Names of the variants that something is chosen for by such a text. Default: none.
    """

    options: BuildOptions
    variants: tuple[VariantPlan, ...]
    prune: Request | None = None
    lowered: bool = True
    texts: int = 0
    calibrated: frozenset[str] = frozenset()

    @property
    def several(self) -> bool:
        """Whether there is more than one variant, so that messages and files name theirs."""
        return len(self.variants) > 1


def artifact_plan(options: BuildOptions) -> BuildPlan:
    """Returns the plan of an artifact (raises `InputError`)."""
    return BuildPlan(options, tuple(variant_plans(options)), prune_request(options.prune))


def emission_plan(options: BuildOptions) -> BuildPlan:
    """Returns the plan of an emitted graph, which is float32 and no target's.

    Raises:
        InputError: Several targets are named, or one that is none, or the pruning is a target's.
    """
    if not isinstance(options.target, str):
        raise InputError(
            f"expected one target with --emit onnx, found {', '.join(options.target)}",
            hint="the graph is no target's: of one come the default of --max-seq-len and the steps that channels go in",
        )
    if options.prune == PATTERN:
        raise InputError(
            f"expected a share, latency:PCT, layers:N or a plan with --emit onnx, found --prune {PATTERN}",
            hint=f"zeros are a target's: leptonc build MODEL --target rtx --prune {PATTERN}",
        )
    variant = VariantPlan("emitted", target_of(options.target), "fp32", check=options.check)
    return BuildPlan(options, (variant,), prune_request(options.prune), lowered=False)


def variant_plans(options: BuildOptions) -> list[VariantPlan]:
    """Returns a plan for each target; variants of one profile are told apart by their overrides.

    Raises:
        InputError: A target or a budget is none, or a target is named twice.
    """
    wanted = [target_of(spec) for spec in options.targets]
    if not wanted:
        raise InputError("expected at least one target, found none", hint="see `leptonc targets`")
    names = [target.name for target in wanted]
    budget, integers = parse_budget(options.weights), options.activations == "int8"
    sparse = options.prune == PATTERN
    plans: list[VariantPlan] = []
    for target in wanted:
        name = target.name if names.count(target.name) == 1 else re.sub(r"[^\w.]+", "-", target.spec)
        if any(plan.name == name for plan in plans):
            raise InputError(f"expected each target once, found {target.spec} twice")
        usual = "int8" if integers else "fp16" if sparse else target.weights
        scheme = (options.weights if budget is None else "int4") or usual
        plans.append(
            VariantPlan(
                name, target, scheme, block_size=options.block_size, symmetric=options.symmetric, budget=budget,
                method=_method(options, scheme, target), embeddings=options.embeddings,
                check=options.check, rules=options.layers, activations=options.activations,
                calibrator=options.calibrator, kv_cache=options.kv_cache, prefill=options.prefill, sparse=sparse,
            )
        )  # fmt: skip
    return plans


def _method(options: BuildOptions, scheme: str, target: targets.Target) -> str:
    """Returns how codes are chosen: as asked for, else so that least is lost, unless the build shall be fast."""
    if options.method is not None:
        return options.method
    form = FORMATS.get(scheme)  # an unknown one is refused later, by what knows the target's
    if options.fast or form is None or not form.integer or options.prune == PATTERN:
        return ROUNDING
    return BEST if form.bits < 8 or traits_of(target).solves_eight_bits else ROUNDING


def of_several_parts(plan: BuildPlan) -> BuildPlan:
    """Returns the plan for a model of several parts: codes are rounded, unless it is asked that a text chooses them."""
    if plan.options.method is not None:
        return plan
    rounded = [
        dataclasses.replace(variant, method=ROUNDING) if variant.budget is None else variant
        for variant in plan.variants
    ]
    return dataclasses.replace(plan, variants=tuple(rounded))


def parse_budget(weights: str | None) -> int | None:
    """Returns the bytes of `auto:95MB`; nothing for another number format.

    Raises:
        InputError: It begins like a budget and is none.
    """
    if weights is None or not weights.startswith("auto"):
        return None
    match = _AUTO.fullmatch(weights)
    if match is None or float(match[1]) <= 0:
        raise InputError(
            f"expected weights auto:SIZE, found {weights}", hint="a size is a number and kB, MB or GB: auto:95MB"
        )
    return int(float(match[1]) * _UNITS[match[2]])


def prune_request(text: str | None) -> Request | None:
    """Returns what `--prune` asks for, or None without it (raises `InputError`)."""
    if text is None:
        return None
    return Request(text, sparse=True) if text == PATTERN else parse_prune(text)


def target_of(spec: str) -> targets.Target:
    """Returns the target of a specification (raises `InputError`)."""
    try:
        return targets.load(spec)
    except targets.TargetError as error:  # of a package that imports nothing of ours
        raise InputError(error.message, hint=error.hint) from error
