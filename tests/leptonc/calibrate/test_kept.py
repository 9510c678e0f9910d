"""What a step made, from its file: every number as it was, and what is not what the step makes refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from leptonc.calibrate.kept import Kept, file_name
from leptonc.errors import InputError


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

    first = Kept(tmp_path, "mark").record("parts", list[Part], made)
    for found in (first, Kept(tmp_path, "mark").record("parts", list[Part], again)):
        for each, want in zip(found, made(), strict=True):
            assert (each.name, each.shape, each.error) == (want.name, want.shape, want.error)
            assert (each.scales is None) == (want.scales is None)
            for one, other in ((each.scales, want.scales), (each.mean, want.mean)):
                if one is not None and other is not None:
                    assert one.dtype == other.dtype
                    assert one.tobytes() == other.tobytes()


def test_what_was_made_is_read_whether_it_was_kept_or_not(tmp_path: Path) -> None:
    for kept in (Kept(), Kept(tmp_path), Kept(tmp_path)):
        assert kept.record("numbers", list[int], lambda: [1, 2], lambda found: found[1:]) == [2]


@pytest.mark.parametrize(
    "name",
    ["../../../evil", "a/../../evil", "/etc/evil", "..", "a\\..\\b", "x" * 400, "model.layers.0.mlp/\n\0", "ä.0"],
)
def test_names_of_modules_that_others_wrote_stay_inside(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    kept = Kept(folder)
    assert not kept.has(f"codes-{name}")
    first = kept.arrays(f"codes-{name}", lambda: {"one": np.arange(3)})
    other = kept.arrays(f"codes-{name}.", lambda: {"one": np.arange(4)})  # another name is another file
    assert kept.has(f"codes-{name}")
    for again in (kept.arrays(f"codes-{name}", dict), kept.read(f"codes-{name}", ["one"])):
        np.testing.assert_array_equal(again["one"], first["one"])
    assert len(other["one"]) == 4
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
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
    (tmp_path / "steps" / "parts.json").write_text(json.dumps({"mark": "", "value": value}))

    def read(found: list[Part]) -> list[Part]:
        return [{each.name: each for each in found}["b"]]

    with pytest.raises(InputError, match=r"parts\.json, found what cannot be read: ") as caught:
        Kept(tmp_path).record("parts", list[Part], made, read)
    assert message in caught.value.message
    assert caught.value.hint == "delete the file: its step is done again"
