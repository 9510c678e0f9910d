"""The noise of each linear layer's output: against the layer's arithmetic written out in float64."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from leptonc.build.to_artifact import build
from leptonc.errors import BoundError
from leptonc.evaluate.noise import TOKENS
from leptonc.options import BuildOptions
from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest
from leptonc.passes.quantize.weights import ROWS
from leptonc.report import as_plain
from tests.leptonc import models


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (8, False)])
def test_decibels_of_a_decoder(name: str, bits: int, symmetric: bool, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The river runs through the town and under the old bridge. " * 40)
    options = {"weights": f"int{bits}", "symmetric": symmetric, "fast": True, "eval_text": text}
    result = build(BuildOptions(f"sample:{name}", out=tmp_path / "m", **options))  # type: ignore[arg-type]
    rows = {row["path"]: row for row in as_plain(result.report)["variants"]["cpu"]["linears"]}
    ids = Tokenizer.from_file(str(result.path / "tokenizer.json")).encode(text.read_text()).ids[:512]
    model = models.reference(name)
    seen: dict[str, Any] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _m, args, _out, path=path: seen.__setitem__(path, args[0][0].double().numpy())
        )
        for path in rows
    ]
    with torch.inference_mode():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    form = Format(bits, 32, symmetric, half=True)
    for path, row in rows.items():
        module = model.get_submodule(path)
        weight = module.weight.detach().numpy()
        weight = weight if isinstance(module, torch.nn.Linear) else np.ascontiguousarray(weight.T)
        off = (weight - dequantize(round_to_nearest(weight, form), form)).astype(np.float64)
        x, step = seen[path][:: max(1, len(ids) // TOKENS)], max(1, len(weight) // ROWS)
        ratio = ((x @ off[::step].T) ** 2).sum(1) / ((x @ weight[::step].astype(np.float64).T) ** 2).sum(1)
        assert row["snr_db"] == pytest.approx(-10 * np.log10(ratio.mean()), abs=0.02), path
        assert (row["shape"], row["weights"], row["block_size"]) == (list(weight.shape), f"int{bits}", 32)
        assert row["bytes"] == form.stored_bytes(weight.shape)
    assert len(rows) == {"tiny-llama": 21, "tiny-gpt2": 12}[name]


def test_more_bits_are_less_noise_whatever_chooses_the_codes(tmp_path: Path) -> None:
    def decibels(source: str, **options: Any) -> list[float]:
        out = tmp_path / f"{source}{len(list(tmp_path.iterdir()))}"
        report = as_plain(build(BuildOptions(f"sample:{source}", out=out, **options)).report)
        return [row["snr_db"] for row in report["variants"]["cpu"]["linears"] if row["weights"] != "fp32"]

    text = tmp_path / "text.txt"
    text.write_text("The valves close when the pressure falls, and a lamp tells the driver which of them did so. " * 30)
    four, eight = (decibels("tiny-sentence", weights=f"int{bits}") for bits in (4, 8))
    assert min(np.subtract(eight, four)) > 20  # sixteen times finer: 24 dB
    solved = decibels("tiny-llama", weights="int4", method="gptq", calibration=text)
    assert all(15 < each < 30 for each in solved)


def test_layers_that_read_integers_have_the_noise_of_both_sides(text: Path, tmp_path: Path) -> None:
    """As wide as the worse side makes it, and by it the hint says which layers to raise."""
    options: dict[str, Any] = {"weights": "int8", "activations": "int8", "calibration": text, "eval_text": text}
    made = as_plain(build(BuildOptions("sample:tiny-llama", out=tmp_path / "m", **options)).report)["variants"]["cpu"]
    inputs = made["quantization"]["activations"]["inputs"]
    weights = {each["path"]: each["error"] for each in made["quantization"]["linears"]}
    rows = {row["path"]: row for row in made["linears"]}
    static = [(each, rows[path]) for each in inputs if each["bits"] == 8 for path in each["layers"]]
    assert len(static) > 10
    for each, row in static:
        assert row["snr_db"] <= -10 * np.log10(each["error"]) + 0.01
        assert row["sensitivity"] == each["divergence"]
    assert any(row["snr_db"] < -10 * np.log10(max(weights[row["path"]], 1e-6)) - 3 for _, row in static)
    worst = max(inputs, key=lambda each: each["divergence"] if each["bits"] == 8 else 0)
    with pytest.raises(BoundError) as caught:
        build(BuildOptions("sample:tiny-llama", out=tmp_path / "n", max_loss=-50.0, **options))
    first = rows[worst["layers"][0]]
    assert f"these layers lose most: {first['path']} ({first['snr_db']:g} dB)" in str(caught.value.hint)
    assert "In fp32 they take" in str(caught.value.hint)
    assert "\na recipe raises these:\n[[layers]]" in str(caught.value.hint)


def test_a_budget_with_room_for_the_layers_that_lose_most(text: Path, tmp_path: Path) -> None:
    def options(budget: str, **more: Any) -> BuildOptions:
        given = {"weights": f"auto:{budget}", "calibration": text, "eval_text": text, **more}
        return BuildOptions("sample:tiny-llama", out=tmp_path / budget, **given)

    with pytest.raises(BoundError) as caught:
        build(options("200kB", max_loss=-50.0))
    hint = str(caught.value.hint)
    rows = as_plain(build(options("200kB")).report)["variants"]["cpu"]["linears"]
    four = sorted((row for row in rows if row["weights"] == "int4"), key=lambda row: -row["sensitivity"])
    assert four[0]["path"] in hint.partition("In int8 they take")[0]
    (size,) = re.findall(r"--weights (auto:[\d.]+MB) has room for them, or a recipe:", hint)
    other = as_plain(build(options(size.partition(":")[2])).report)["variants"]["cpu"]["linears"]
    more = {row["path"]: row for row in other}
    assert sum(row["bytes"] for row in more.values()) > sum(row["bytes"] for row in rows)
    assert more[four[0]["path"]]["weights"] == "int8"


def test_weights_that_were_changed_before_have_their_own_noise(tmp_path: Path, text: Path) -> None:
    """Rotated ones, say, which the original has none of: what rounding changes in them, beside their energy."""

    def rows(name: str, **options: Any) -> list[dict[str, Any]]:
        out = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        asked = BuildOptions("sample:tiny-llama", out=out, rotate=True, fast=True, eval_text=text, **options)
        found: list[dict[str, Any]] = as_plain(build(asked).report)["variants"]["cpu"]["linears"]
        return found

    four, eight = rows("four", weights="int4"), rows("eight", weights="int8")
    assert len(four) == 7 * 3 + 1  # and the last norm's gain, in the basis
    for a, b in zip(four[:-1], eight[:-1], strict=True):
        assert 20 < a["snr_db"] < 23  # weights like a normal distribution's, in blocks of 32
        assert 23 < b["snr_db"] - a["snr_db"] < 25  # sixteen times finer
    with pytest.raises(BoundError, match=r"expected a loss of at most") as caught:
        rows("bound", weights="int4", max_loss=-50.0)
    worst = min(four, key=lambda row: row["snr_db"])
    assert f"these layers lose most: {worst['path']} ({worst['snr_db']:g} dB)" in str(caught.value.hint)


def test_layers_that_keep_their_weights_have_no_noise(artifact: Callable[..., Path]) -> None:
    import json

    report = json.loads((artifact("sample:tiny-llama", weights="fp32") / "report.json").read_text())
    rows = report["variants"]["cpu"]["linears"]
    assert {row["weights"] for row in rows} == {"fp32"}
    assert not any("snr_db" in row for row in rows)
    assert sum(row["bytes"] for row in rows) == 4 * sum(row["shape"][0] * row["shape"][1] for row in rows)


@pytest.mark.parametrize(
    ("source", "symmetric"), [("tiny-sentence", True), ("tiny-llama", True), ("tiny-llama", False)]
)
def test_a_bound_that_is_not_met_names_the_layers_and_the_recipe_that_raises_them(
    source: str, symmetric: bool, text: Path, tmp_path: Path
) -> None:
    from leptonc.build.recipe import with_recipe

    def options(name: str, **more: Any) -> BuildOptions:
        out, given = tmp_path / name, {"weights": "int4", "symmetric": symmetric, "fast": True, **more}
        return BuildOptions(f"sample:{source}", out=out, eval_text=text, **given)

    with pytest.raises(BoundError) as caught:
        build(options("m", max_loss=0.001))
    hint = str(caught.value.hint)
    assert not (tmp_path / "m").exists()
    plain = as_plain(build(options("m")).report)
    rows = sorted(plain["variants"]["cpu"]["linears"], key=lambda row: row["snr_db"])
    assert f"these layers lose most: {rows[0]['path']} ({rows[0]['snr_db']:g} dB), {rows[1]['path']}" in hint
    (tmp_path / "r.toml").write_text(hint[hint.index("[[layers]]") :])
    raised = as_plain(build(with_recipe(options("n"), str(tmp_path / "r.toml"))).report)
    cost = sum(row["bytes"] for row in raised["variants"]["cpu"]["linears"]) - sum(row["bytes"] for row in rows)
    assert f"In int8 they take {cost:,} bytes more" in hint
    better = {"tiny-sentence": ("cosine_mean", 1), "tiny-llama": ("kl_divergence", -1)}[source]
    assert better[1] * (raised["fidelity"][better[0]] - plain["fidelity"][better[0]]) > 0
    (before,) = plain["variants"]["cpu"]["embeddings"]
    (after,) = as_plain(build(options("e", embeddings="int8", check=False)).report)["variants"]["cpu"]["embeddings"]
    assert (before["weights"], after["weights"]) == ("int4", "int8")
    more = f"--embeddings int8 takes {after['bytes'] - before['bytes']:,} bytes more."
    whose = "embeddings.word_embeddings has int4"
    if source == "tiny-llama":
        whose = f"model.embed_tokens and lm_head, tied to it, have int4 ({before['snr_db']:g} dB)"
    assert f"\n{whose}: {more}\n" in hint
