"""`sweep`: points that are measured, kept, taken again, and lost by themselves; the front by its definition."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import leptonc.sweep as module
import runtime_edge
from leptonc.build.to_artifact import build
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from leptonc.pages.sweep import sweep_page
from leptonc.sweep import Sweep, mark, points, row
from tests.leptonc.pages.test_artifact import contained

LLAMA = "sample:tiny-llama"
TEXT = "The valves close when the pressure falls, and a lamp tells the driver which of them did so. " * 30


def test_points_are_schemes_and_recipes_over_common_options(tmp_path: Path) -> None:
    base = BuildOptions("m", method="gptq", calibration=Path("c.txt"), seed=5)
    found = {point.name: point.options for point in points(["fp32", "int4", "w8a8", "auto:1MB"], ["int8-gptq"], base)}
    assert list(found) == ["fp32", "int4", "w8a8", "auto:1MB", "int8-gptq"]
    assert found["fp32"] == BuildOptions("m", weights="fp32", seed=5)  # nothing to calibrate
    assert found["int4"] == BuildOptions("m", weights="int4", method="gptq", calibration=Path("c.txt"), seed=5)
    assert (found["w8a8"].weights, found["w8a8"].activations) == ("int8", "int8")
    assert found["int8-gptq"].weights == "int8"
    assert [point.stem for point in points(["auto:1MB"], [], base)] == ["auto-1MB"]
    (tmp_path / "r.toml").write_text('weights = "int8"\nchat = true\n')
    plain = dataclasses.replace(base, method=None, fast=True, chat=True)
    recipes = [str(tmp_path / "r.toml"), "int8-gptq"]
    kept = {point.name: point.options for point in points(["int4", "w8a8", "auto:1MB"], recipes, plain)}
    reads = [name for name, options in kept.items() if (options.calibration, options.chat) == (Path("c.txt"), True)]
    assert reads == ["w8a8", "auto:1MB", "int8-gptq"]  # the others round to nearest
    assert all(kept[name].calibration is None and not kept[name].chat for name in ("int4", "r"))
    with pytest.raises(InputError, match=r"expected a scheme or recipe that reads c\.txt, found int4, fp32"):
        points(["int4", "fp32"], [], plain)
    with pytest.raises(InputError, match="found none"):
        points([], [], base)
    with pytest.raises(InputError, match="found int4 twice"):
        points(["int4", "int8", "int4"], [], base)


def test_a_front_is_what_nothing_beats() -> None:
    sizes, losses, speeds = [10, 20, 30, 30, 40], [9.0, 5.0, 6.0, 1.0, 1.0], [5.0, 4.0, 9.0, 3.0, 3.0]
    both = [{"name": str(i), "bytes": sizes[i], "loss_percent": losses[i]} for i in range(5)]
    assert [record["front"] for record in mark(both)] == [True, True, False, True, False]
    three = [{**record, "decode_tok_s": speed} for record, speed in zip(both, speeds, strict=True)]
    assert [record["front"] for record in mark(three)] == [True, True, True, True, False]
    lame = [*three, {"name": "failed", "error": {}}]  # has no figures, and takes none away
    assert [record.get("front") for record in mark(lame)] == [True, True, True, True, False, None]


def test_points_are_kept_taken_again_and_built_anew_when_asked_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    measured: list[str] = []

    def counting(options: BuildOptions, *others: Any) -> Any:
        built.append(str(options.weights))
        return build(options, *others)

    monkeypatch.setattr(module, "build", counting)

    def measure(path: Path) -> dict[str, Any]:
        measured.append(path.name)
        return {"loss_percent": 1.0}

    wanted = points(["int4", "int8"], [], BuildOptions(LLAMA, check=False))
    first = Sweep(tmp_path, measure, {"way": 1}).run(wanted)
    assert (built, measured) == (["int4", "int8"], ["int4.lepton", "int8.lepton"])
    assert [record["reused"] for record in first] == [False, False]
    for record in first:
        manifest = runtime_edge.verify(record["artifact"])
        stored = sum(f.size for f in manifest.files if f.path.startswith("blobs/") or f.path == "cpu.onnx")
        assert record["bytes"] == stored
    again = Sweep(tmp_path, measure, {"way": 1}).run(wanted)
    assert (len(built), len(measured)) == (2, 2)
    assert [{**record, "reused": False} for record in again] == first
    Sweep(tmp_path, measure, {"way": 2}).run(wanted)  # measured in another way: not built again
    assert (len(built), len(measured)) == (2, 4)
    blob = next((tmp_path / "int4.lepton" / "blobs").iterdir())  # damaged
    blob.write_bytes(blob.read_bytes()[:-1])
    Sweep(tmp_path, measure, {"way": 2}).run(wanted)
    assert built[2:] == ["int4"]
    other = points(["int4", "int8"], [], BuildOptions(LLAMA, check=False, block_size=64))
    Sweep(tmp_path, measure, {"way": 2}).run(other)
    assert built[3:] == ["int4", "int8"]
    (tmp_path / "int8.json").unlink()  # as when it was interrupted before the record was written
    Sweep(tmp_path, measure, {"way": 2}).run(other)
    assert built[5:] == ["int8"]


def test_a_point_that_fails_does_not_lose_the_others(tmp_path: Path) -> None:
    wanted = points(["auto:20kB", "int8", "fp16"], [], BuildOptions(LLAMA, check=False, method="rtn"))
    found = Sweep(tmp_path, lambda _: {"loss_percent": 1.0}, {}).run(wanted)
    assert [record["name"] for record in found if "error" not in record] == ["int8"]
    assert [record["error"]["exit_code"] for record in found if "error" in record] == [3, 1]
    assert not (tmp_path / "auto-20kB.lepton").exists()
    page = contained(sweep_page("t", "cpu", found, row))
    assert "found 20,000 bytes" in page.text


def test_a_model_writes_its_text_once_for_all_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import leptonc.build.calibration_text as calibration

    written: list[int] = []

    def one(self: Any, length: int, count: int) -> Any:
        written.append(length)
        return Written([windows[:length]] * count, 1.0)

    import numpy as np

    from leptonc.calibrate.generate import Written

    windows = np.random.default_rng(0).integers(0, 256, 512)
    monkeypatch.setattr(calibration.Calibration, "_written", one)
    wanted = points(["int4", "int8"], [], BuildOptions(LLAMA, check=False, method="gptq"))
    found = Sweep(tmp_path, lambda _: {}, {}).run(wanted)
    assert not any("error" in record for record in found)
    assert len(written) == 1


def test_the_command_line(leptonc: Callable[..., Any], tmp_path: Path) -> None:
    text, keep = tmp_path / "text.txt", tmp_path / "keep"
    text.write_text(TEXT)
    arguments = ("sweep", LLAMA, "--schemes", "fp32,int4,int8", "--recipe", tmp_path / "r.toml", "--keep", keep)
    (tmp_path / "r.toml").write_text('weights = "int4"\n[[layers]]\nmatch = "*.down_proj"\nweights = "int8"\n')
    done = leptonc(*arguments, "--eval-text", text, "--window", 64, "--max-windows", 4, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found == json.loads((keep / "sweep.json").read_text())
    rows = {record["name"]: record for record in found["points"]}
    assert list(rows) == ["fp32", "int4", "int8", "r"]
    assert rows["int4"]["bytes"] < rows["r"]["bytes"] < rows["int8"]["bytes"] < rows["fp32"]["bytes"]
    assert rows["fp32"]["loss_percent"] == 0
    assert rows["int4"]["front"]
    assert (rows["int8"]["tokens"], rows["int8"]["windows"]) == (4 * 63, 4)
    shown = json.loads(
        leptonc("eval", keep / "r.lepton", "--text", text, "--window", 64, "--max-windows", 4, "--json").out
    )
    assert rows["r"]["perplexity"] == pytest.approx(shown["perplexity"], abs=1e-4)
    assert rows["r"]["loss_percent"] == pytest.approx(
        100 * (rows["r"]["perplexity"] / rows["fp32"]["perplexity"] - 1), abs=1e-3
    )
    page = (keep / "sweep.html").read_bytes()
    assert set(rows) <= set(contained(page).cells)
    again = leptonc(*arguments, "--eval-text", text, "--window", 64, "--max-windows", 4)
    assert again.code == 0
    assert [line.split()[0] for line in again.out.splitlines()] == ["name", "fp32", "int4", "int8", "r"]
    assert "writing weights:" not in again.err  # nothing was built


def test_a_text_for_some_points_and_speeds_of_all(leptonc: Callable[..., Any], tmp_path: Path) -> None:
    """One text serves those that read it; with speeds there are four plots, each with a dot a point."""
    text, keep = tmp_path / "text.txt", tmp_path / "keep"
    text.write_text(TEXT)
    done = leptonc(
        "sweep", LLAMA, "--schemes", "fp32,int8,auto:300kB", "--calibration", text, "--eval-text", text, "--window", 64,
        "--max-windows", 2, "--speed", "--threads", 1, "--keep", keep, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = {record["name"]: record for record in json.loads(done.out)["points"]}
    assert list(rows) == ["fp32", "int8", "auto:300kB"]
    assert all(record["decode_tok_s"] > 0 and record["prefill_tok_s"] > 0 for record in rows.values())
    read = {p: json.loads((Path(r["artifact"]) / "report.json").read_text())["recipe"] for p, r in rows.items()}
    assert [name for name, recipe in read.items() if "calibration" in recipe] == ["int8", "auto:300kB"]
    page = (keep / "sweep.html").read_text()
    for what in ("Size and quality", "Speed and quality", "Size and speed", "Size and speed of prompts"):
        (plot,) = re.findall(rf'<h3>{what}</h3>.*?(<svg class="wide".*?</svg>)', page)
        assert plot.count("<circle") == 3
        assert all(f": {name}</title>" in plot for name in rows)


def test_command_lines_that_cannot_be_met(leptonc: Callable[..., Any], tmp_path: Path) -> None:
    done = leptonc("sweep", "sample:tiny-sentence", "--schemes", "int8,fp8", "--page", tmp_path / "p.html")
    assert done.code == 1
    assert "fp8: expected weights among fp32, int8, int4, int2 for target cpu, found fp8" in done.err
    assert "int8" in done.out
    assert "cosine" in done.out
    assert b"Failed" in (tmp_path / "p.html").read_bytes()
    assert leptonc("sweep", LLAMA).code == 1
    assert leptonc("sweep", LLAMA, "--schemes", "int4", "--eval-text", tmp_path / "none.txt").code == 1
