"""What a step made, from its file: every number as it was, and what is not what the step makes refused."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from leptonc.calibrate import step_cache as module
from leptonc.calibrate.step_cache import OWN, StepCache, check_ours, file_name
from leptonc.errors import InputError, ResumeWarning


@dataclass(frozen=True)
class Part:
    name: str
    shape: tuple[int, int]
    error: float
    scales: NDArray[np.float32] | None
    mean: NDArray[np.float64]


def made() -> list[Part]:
    random = np.random.default_rng(0)
    return [
        Part("a", (2, 3), math.inf, random.random(50, np.float32), np.array([np.nan, -np.inf, -0.0, 5e-324])),
        Part("b", (0, 1), 0.1 + 0.2, None, random.random((2, 3))),
        Part("c", (4, 5), np.float64(1 / 3), np.zeros(0, np.float32), np.zeros(1)),
    ]


def test_a_record_reads_back_as_it_was(tmp_path: Path) -> None:
    def again() -> list[Part]:
        raise AssertionError("the step was done")

    first = StepCache(tmp_path, "mark").record("parts", list[Part], made)
    for found in (first, StepCache(tmp_path, "mark").record("parts", list[Part], again)):
        for each, want in zip(found, made(), strict=True):
            assert (each.name, each.shape, each.error) == (want.name, want.shape, want.error)
            assert (each.scales is None) == (want.scales is None)
            for one, other in ((each.scales, want.scales), (each.mean, want.mean)):
                if one is not None and other is not None:
                    assert one.dtype == other.dtype
                    assert one.tobytes() == other.tobytes()


def test_what_was_made_is_read_whether_it_was_kept_or_not(tmp_path: Path) -> None:
    for kept in (StepCache(), StepCache(tmp_path), StepCache(tmp_path)):
        assert kept.record("numbers", list[int], lambda: [1, 2], lambda found: found[1:]) == [2]


@pytest.mark.parametrize(
    "name",
    ["../../../evil", "a/../../evil", "/etc/evil", "..", "a\\..\\b", "x" * 400, "model.layers.0.mlp/\n\0", "ä.0"],
)
def test_names_of_modules_that_others_wrote_stay_inside(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    kept = StepCache(folder)
    assert not kept.has(f"codes-{name}")
    first = kept.arrays(f"codes-{name}", lambda: {"one": np.arange(3)})
    other = kept.arrays(f"codes-{name}.", lambda: {"one": np.arange(4)})  # another name is another file
    assert kept.has(f"codes-{name}")
    for again in (kept.arrays(f"codes-{name}", dict), kept.read(f"codes-{name}", ["one"])):
        np.testing.assert_array_equal(again["one"], first["one"])
    assert len(other["one"]) == 4
    found = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != OWN]
    assert len(found) == 2
    assert all(path.parent == folder / "steps" and path.suffix == ".safetensors" for path in found)


def test_names_of_modules_are_names_of_files() -> None:
    assert file_name("codes-cpu-model.layers.0.self_attn.q_proj@7") == "codes-cpu-model.layers.0.self_attn.q_proj@7"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"name": "a"}], "missing required field"),
        ({}, "Expected `array`, got `object`"),
        (None, "Expected `array`, got `null`"),
        ([{"name": "a", "shape": [1], "error": 0.0, "scales": None, "mean": []}], "length 2"),
        ([{"name": "a", "shape": [1, 2], "error": "0", "scales": None, "mean": []}], "Expected `float`, got `str`"),
        ([{"name": "a", "shape": [1, 2], "error": 0.0, "scales": ["x"], "mean": []}], "could not convert string"),
        ([{"name": "a", "shape": [1, 2], "error": 0.0, "scales": [[1], 2], "mean": []}], "array element"),
        ([], "no 'b'"),
    ],
)
def test_what_a_step_does_not_make_is_refused(value: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
    (tmp_path / "steps" / "parts.json").write_text(json.dumps({"mark": "", "value": value, "sha256": digest}))

    def read(found: list[Part]) -> list[Part]:
        return [{each.name: each for each in found}["b"]]

    with pytest.raises(InputError, match=r"parts\.json, found what cannot be read: ") as caught:
        StepCache(tmp_path).record("parts", list[Part], made, read)
    assert message in caught.value.message
    assert caught.value.hint == "delete the file: its step is done again"


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "folder", "link"])
@pytest.mark.parametrize("kind", ["json", "arrays"])
def test_a_damaged_file_is_told_of_and_its_step_done_again(kind: str, damage: str, tmp_path: Path) -> None:
    value: Any = {"a": [1.5, 2]} if kind == "json" else {"a": np.arange(5.0), "b": np.ones((2, 3), np.int8)}
    ending = "json" if kind == "json" else "safetensors"
    path = tmp_path / "steps" / f"one.{ending}"

    def step() -> Any:
        return getattr(StepCache(tmp_path, "mark"), kind)("one", lambda: value)

    def agrees(found: Any) -> bool:
        return found.keys() == value.keys() and all(np.array_equal(found[key], value[key]) for key in value)

    assert agrees(step())
    whole = path.read_bytes()
    getattr(StepCache(tmp_path, "mark"), kind)("other", lambda: {"a": [7] if kind == "json" else np.zeros(5)})
    if damage in ("folder", "link"):
        path.unlink()
        path.mkdir() if damage == "folder" else path.symlink_to(tmp_path / "steps" / f"other.{ending}")
    else:
        path.write_bytes({"cut": whole[:-9], "flipped": whole[:-4] + b"\x33" + whole[-3:], "empty": b""}[damage])
    if damage == "folder":
        with pytest.warns(ResumeWarning), pytest.raises(InputError, match="expected a file that an interrupted build"):
            step()
        return
    with pytest.warns(ResumeWarning, match=f"one.{ending}: .*: damaged, its step is done again"):
        assert agrees(step())
    assert path.stat().st_size == len(whole)
    assert not path.is_symlink()
    assert agrees(step())


def test_arrays_that_are_damaged_between_two_looks_are_refused(tmp_path: Path) -> None:
    kept = StepCache(tmp_path, "mark")
    kept.arrays("one", lambda: {"a": np.arange(5.0)})
    path = tmp_path / "steps" / "one.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="the sha256 of 'a' is another"):
        kept.read("one", ["a"])


def test_only_what_steps_left_is_removed(tmp_path: Path) -> None:
    kept = StepCache(tmp_path / "r", "mark")
    kept.json("one", lambda: 1)
    np.save(kept.place("moments", tmp_path) / "x.npy", np.zeros(3))
    (tmp_path / "r" / "steps" / "notes.txt").write_text("mine")
    (tmp_path / "r" / "thesis.txt").write_text("mine")
    kept.finish()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"r", "r/thesis.txt", "r/steps", "r/steps/notes.txt"}


def test_a_directory_that_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "mine.json").write_text("{}")
    with pytest.raises(InputError, match="to be what an interrupted build left, or nothing, found something else"):
        check_ours(tmp_path)
    with pytest.raises(InputError, match="found something else"):
        StepCache(tmp_path, "mark").json("one", lambda: 1)
    StepCache(tmp_path, "mark").finish()
    assert (tmp_path / "steps" / "mine.json").read_text() == "{}"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = StepCache(tmp_path, "mark")
    kept.json("one", lambda: 1)

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, "write_whole", refuse)
    for call in (lambda: kept.json("two", lambda: 2), lambda: kept.arrays("three", lambda: {"a": np.zeros(2)})):
        with pytest.raises(InputError, match=f"cannot keep how far the build has come in .*{os.strerror(code)}"):
            call()  # type: ignore[no-untyped-call]
