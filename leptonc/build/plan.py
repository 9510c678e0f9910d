"""Reads what a build is asked for, once: options become plans, and what cannot be asked for is refused."""

from __future__ import annotations

import re

import targets
from leptonc.backends.traits import traits_of
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from leptonc.passes.prune.sparse import PATTERN
from leptonc.variant import ROUNDING, VariantPlan

_AUTO = re.compile(r"auto:(\d+(?:\.\d+)?)\s*([kKMG])B", re.ASCII)
_UNITS = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}


def plans_of(options: BuildOptions) -> list[VariantPlan]:
    """Returns a plan for each target; variants of one profile are told apart by their overrides.

    Raises:
        InputError: A target or a budget is none, or a target is named twice.
    """
    found = [target_of(spec) for spec in options.targets]
    if not found:
        raise InputError("expected at least one target, found none", hint="see `leptonc targets`")
    names = [target.name for target in found]
    budget, integers = parse_budget(options.weights), options.activations == "int8"
    sparse = options.prune == PATTERN
    plans: list[VariantPlan] = []
    for target in found:
        name = target.name if names.count(target.name) == 1 else re.sub(r"[^\w.]+", "-", target.spec)
        if any(plan.name == name for plan in plans):
            raise InputError(f"expected each target once, found {target.spec} twice")
        usual = "int8" if integers else "fp16" if sparse else target.weights
        scheme = (options.weights if budget is None else "int4") or usual
        solved = budget is not None or (integers and traits_of(target).solves_with_integers)
        plans.append(
            VariantPlan(
                name, target, scheme, block_size=options.block_size, symmetric=options.symmetric, budget=budget,
                method=options.method or ("gptq" if solved else ROUNDING), embeddings=options.embeddings,
                check=options.check, rules=options.layers, activations=options.activations,
                calibrator=options.calibrator, kv_cache=options.kv_cache, prefill=options.prefill, sparse=sparse,
            )
        )  # fmt: skip
    return plans


def parse_budget(weights: str | None) -> int | None:
    """Returns the bytes of `auto:95MB`; nothing for another number format.

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


def target_of(spec: str) -> targets.Target:
    """Returns the target of a specification (raises `InputError`)."""
    try:
        return targets.load(spec)
    except targets.TargetError as error:  # of a package that imports nothing of ours
        raise InputError(error.message, hint=error.hint) from error


def check_text(options: BuildOptions) -> None:
    """Refuses a calibration text without a use or that cannot be read, and an unknown calibrator (`InputError`)."""
    from leptonc.calibrate.calibrators import calibrators

    calibrators(options.calibrator)
    if options.calibration is None:
        if options.chat:
            raise InputError("expected a calibration text with --chat, found none", hint="--calibration FILE --chat")
        return
    from leptonc.calibrate.texts import read_texts

    readers = text_readers(options)
    if not any(readers.values()):
        raise InputError(
            f"expected something that reads a calibration text, one of {', '.join(readers)}, found "
            f"{options.calibration} and none of them",
            hint="--method gptq --calibration FILE",
        )
    read_texts(options.calibration)


def text_readers(options: BuildOptions) -> dict[str, bool]:
    """Returns what may read a calibration text, each with whether it is asked for."""
    return {
        "--method gptq": options.method not in (None, ROUNDING), "--kv-cache": options.kv_cache is not None,
        "--weights auto:SIZE": (options.weights or "").startswith("auto"), "--prefill": options.prefill is not None,
        "--activations int8": options.activations != "none",
        "--prune": options.prune is not None and (options.prune, options.prune_method) != (PATTERN, "magnitude"),
        "--heal": options.heal is not None,
    }  # fmt: skip
