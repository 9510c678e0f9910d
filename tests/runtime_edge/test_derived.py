"""Weights that are made as an artifact is opened: the integers, and descriptions that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import runtime_edge
from runtime_edge.derived import PAIR, Derived, Part, Weight, integers, make, read
from runtime_edge.errors import ArtifactError
from tests.runtime_edge import tiny
from tests.runtime_edge.test_verify import edit

SIZES = [(5, 7, 16), (200, 96, 32), (64, 100, 32), (130, 576, 64), (1, 33, 16)]


def stored(
    root: Path, rows: int, columns: int, size: int, bits: int, zeros: bool, inputs: bool = False
) -> tuple[Weight, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A weight in a blob, with random codes; returns its description, what it is in float64, and the steps."""
    rng = np.random.default_rng(rows)
    blocks = -(-columns // size)
    codes = rng.integers(0, 2**bits, (rows, blocks * size))
    points = rng.integers(0, 2**bits, (rows, blocks)) if zeros else np.full((rows, blocks), 2 ** (bits - 1))
    scales = rng.uniform(0.5, 2, (rows, blocks)).astype(np.float16) / np.float16(100)
    exact = (codes - np.repeat(points, size, 1)) * np.repeat(scales.astype(np.float64), size, 1)
    factors = np.exp(rng.uniform(-2, 2, columns)).astype(np.float16)
    exact = exact[:, :columns] * (factors.astype(np.float64) if inputs else 1)
    steps = (np.abs(exact).max(1) / 100).astype(np.float32)

    def packed(values: np.ndarray[Any, Any]) -> bytes:
        count = 8 // bits
        values = np.pad(values, ((0, 0), (0, -values.shape[1] % count)))
        return sum(values[:, at::count] << at * bits for at in range(count)).astype(np.uint8).tobytes()

    parts, data = {}, b"...."
    for name, part in {
        "codes": packed(codes), "scales": scales.tobytes(), "steps": steps.tobytes(), "inputs": factors.tobytes(),
        "zeros": packed(points),
    }.items():  # fmt: skip
        parts[name] = Part(blob="blob", offset=len(data))
        data += part
    (root / "blob").write_bytes(data)
    for name, given in (("zeros", zeros), ("inputs", inputs)):
        if not given:
            parts.pop(name)
    return Weight(name="w.derived", rows=rows, columns=columns, bits=bits, block_size=size, **parts), exact, steps


@pytest.mark.parametrize(("zeros", "inputs"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("rows", "columns", "size"), SIZES)
def test_the_nearest_integers(
    rows: int, columns: int, size: int, bits: int, zeros: bool, inputs: bool, tmp_path: Path
) -> None:
    """Against float64; a number that lies within float32's rounding of a half may be on either side.

    Where two neighbours would be too much for 16 bits they are as much as fits, and each is no further from zero.
    """
    weight, exact, steps = stored(tmp_path, rows, columns, size, bits, zeros, inputs)
    found = integers(tmp_path, weight)
    assert (found.dtype, found.shape) == (np.int8, (columns, rows))
    pad = ((0, 0), (0, columns % 2))
    want = np.pad(exact / steps[:, None].astype(np.float64), pad).reshape(rows, -1, 2)
    got = np.pad(found.T.astype(int), pad).reshape(rows, -1, 2)
    sums = np.abs(got.sum(2))
    assert sums.max() <= PAIR
    assert 255 * PAIR <= 32767
    fits = np.abs(np.rint(want).sum(2)) <= PAIR
    assert fits.any()
    assert np.abs(got - want)[fits].max() <= 0.5 + 1e-4
    assert (sums[~fits] == PAIR).all()
    assert (np.abs(got[~fits]) <= np.abs(np.rint(want[~fits]))).all()
    assert (got[~fits] * want[~fits] >= 0).all()


def test_all_of_them_whatever_the_threads(tmp_path: Path) -> None:
    weight, _, _ = stored(tmp_path, 64, 100, 32, 4, True)
    names = [f"w{i}.derived" for i in range(9)]
    weights = tuple(msgspec.structs.replace(weight, name=name, columns=100 - i) for i, name in enumerate(names))
    (tmp_path / "how.json").write_bytes(msgspec.json.encode(Derived(weights=weights)))
    for threads in (1, 3):
        found: dict[str, np.ndarray[Any, Any]] = {}
        make(tmp_path / "how.json", threads, found.__setitem__)
        assert sorted(found) == names
        for each in weights:
            np.testing.assert_array_equal(found[each.name], integers(tmp_path, each))


def test_what_says_how_must_be_right(tmp_path: Path) -> None:
    weight, _, _ = stored(tmp_path, 64, 100, 32, 4, True)
    path, size = tmp_path / "how.json", (tmp_path / "blob").stat().st_size
    good = json.loads(msgspec.json.encode(Derived(weights=(weight,))))

    def refused(change: dict[str, Any], message: str) -> None:
        path.write_text(json.dumps({"weights": [{**good["weights"][0], **change}]}))
        with pytest.raises(ArtifactError, match=message):
            read(path, "how.json", {"blob": size})

    refused({"bits": 3}, "how.json: w.derived: expected blocks of 2, 4 or 8 bits and whole bytes, found 32 of 3 bits")
    refused({"name": "w"}, "how.json: expected names that end in .derived, found 'w'")
    refused({"block_size": 33}, "found 33 of 4 bits")
    refused({"rows": 0}, "expected a list of weights as JSON")
    refused({"rows": "many"}, "expected a list of weights as JSON")
    refused({"and": 1}, "expected a list of weights as JSON")
    refused({"rows": 65}, f"expected parts within the {size} bytes of blob")
    refused({"codes": {"blob": "blob", "offset": size}}, "expected parts within")
    refused({"inputs": {"blob": "blob", "offset": size - 199}}, "found 200 bytes at offset")
    refused({"zeros": {"blob": "../blob", "offset": 0}}, "expected a blob of its variant, found '../blob'")
    path.write_text("[")
    with pytest.raises(ArtifactError, match="expected a list of weights as JSON"):
        read(path, "how.json", {"blob": size})
    path.write_text(json.dumps(good))
    assert read(path, "how.json", {"blob": size}).weights == (weight,)


def test_many_weights_of_one_blob_are_refused(tmp_path: Path) -> None:
    """Two of the same bytes are made, for layers that share them; 1,500 would be gigabytes of a few megabytes."""
    weight, _, _ = stored(tmp_path, 200, 96, 32, 8, zeros=False)
    path, sizes = tmp_path / "how.json", {"blob": (tmp_path / "blob").stat().st_size}

    def write(count: int, name: str = "w{}.derived") -> None:
        weights = tuple(msgspec.structs.replace(weight, name=name.format(index)) for index in range(count))
        path.write_bytes(msgspec.json.encode(Derived(weights=weights)))

    write(2)
    assert len(read(path, "how.json", sizes).weights) == 2
    for count in (4, 1500):
        write(count)
        with pytest.raises(ArtifactError, match=r"at most 2 times the \d+ bytes of the blobs") as caught:
            read(path, "how.json", sizes)
        assert caught.value.hint
    write(2, "w.derived")
    with pytest.raises(ArtifactError, match=r"each weight once, found 'w\.derived' twice"):
        read(path, "how.json", sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"derived": "how.json"}, "derived: expected a file listed in `files`, found 'how.json'"),
        (
            {"derived": "tokenizer.json", "purpose": "any", "part": "decoder"},
            "derived: expected it for a graph for prompts",
        ),
        ({"derived": "tokenizer.json"}, "tokenizer.json: expected a list of weights as JSON"),
    ],
)
def test_manifests_that_are_refused(
    weights: tiny.Weights, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    artifact = tiny.write_decoder(tmp_path / "both", weights=weights, prefill=tiny.Weights.seeded(5))
    if change.get("purpose") == "any":
        edit(artifact, lambda data: data["variants"][0]["graphs"].pop(0))
    edit(artifact, lambda data: data["variants"][0]["graphs"][-1].update(change))
    with pytest.raises(ArtifactError, match=message):
        runtime_edge.load(artifact)
