"""A directory of `--resume` serves the very build that left it: other versions of a step or of the cache refuse it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leptonc.build.plan import artifact_plan
from leptonc.build.resume import open_step_cache
from leptonc.build.steps import TO_ARTIFACT
from leptonc.calibrate import step_cache
from leptonc.calibrate.step_cache import StepCache
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from tests.leptonc import models


def opened(folder: Path, **changes: Any) -> StepCache:
    """The cache of a build whose directory is `folder`."""
    plan = artifact_plan(BuildOptions("sample:tiny-llama", resume=folder, prune="20%", **changes))
    return open_step_cache(plan, models.captured("tiny-llama"), TO_ARTIFACT)


def fails() -> Any:
    raise AssertionError("the step was done")


def test_the_same_build_goes_on_with_another_bound_on_memory(tmp_path: Path) -> None:
    assert opened(tmp_path).json("cuts", lambda: [1, 2]) == [1, 2]
    for changes in ({}, {"memory_gb": 8.0}, {"max_loss": 7.0}):
        assert opened(tmp_path, **changes).json("cuts", fails) == [1, 2]


@pytest.mark.parametrize("newer", ["the cache", "a step"])
def test_another_version_refuses_what_an_older_one_left(
    newer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path).json("cuts", lambda: [1, 2])
    with monkeypatch.context() as patch:
        if newer == "the cache":
            patch.setattr(step_cache, "VERSION", step_cache.VERSION + 1)
        else:
            step = next(step for step in TO_ARTIFACT if step.name == "prune")
            patch.setattr(type(step), "version", step.version + 1)
        with pytest.raises(InputError, match="what this very build left when it was interrupted, found another's"):
            opened(tmp_path).json("cuts", fails)
    assert opened(tmp_path).json("cuts", fails) == [1, 2]  # it was refused, and stays
