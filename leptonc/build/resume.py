"""What `--resume` asks of a build: a directory that keeps what its long steps made, until it is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leptonc.build.plan import BuildPlan
from leptonc.build.recipe import as_record
from leptonc.build.step import Step
from leptonc.calibrate.step_cache import StepCache, check_ours, mark_of
from leptonc.errors import InputError

if TYPE_CHECKING:
    from leptonc.frontend.capture import Captured

BESIDE = ("memory_gb", "max_loss")  # what a build goes on with another of: no step's result depends on it


def check_resume(plan: BuildPlan) -> None:
    """Refuses a directory that is none, or that nothing would be kept in, before anything is opened.

    Raises:
        InputError: It is refused.
    """
    folder = plan.options.resume
    if folder is None:
        return
    if not plan.texts and plan.prune is None:
        raise InputError(
            f"expected --prune, --heal or a calibration with --resume, which keeps how far they have come, found "
            f"{folder} alone",
            hint="--weights auto:95MB --resume DIR",
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a directory for --resume, found a file at {folder}", hint="name a new directory")
    check_ours(folder)


def open_step_cache(plan: BuildPlan, captured: Captured, steps: Sequence[Step]) -> StepCache:
    """Returns what an interrupted build of the same model with the same options left, and this one leaves.

    Steps of another version count as other options; `steps` are all of the order, so that a build may go on without its
    check.
    """
    options = plan.options
    if options.resume is None:
        return StepCache()
    cuts = options.prune if options.prune is not None and options.prune.endswith(".json") else None
    files = [_digest(path) for path in (options.calibration, Path(cuts) if cuts else None) if path is not None]
    asked: dict[str, Any] = {name: value for name, value in as_record(options).items() if name not in BESIDE}
    asked["steps"] = {step.name: step.version for step in steps if step.version > 1}
    return StepCache(options.resume, mark_of(captured.model, asked, options.target, files))


def _digest(path: Path) -> str:
    """Returns a digest of a file, or of all files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()
