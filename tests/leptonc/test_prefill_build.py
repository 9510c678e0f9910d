"""Builds with a second graph for prefill: what is stored, what runs, and requests that cannot be met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import runtime_edge
from leptonc.build import BuildOptions, BuildResult, build
from leptonc.errors import BoundError, InputError

TEXT = "The valves close when the pressure falls, and a lamp tells the driver which of them did so. " * 12


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def built(source: str, text: Path, out: Path, **options: object) -> BuildResult:
    given = {"weights": "int4", "prefill": "int8", "calibration": text, "eval_text": text, **options}
    return build(BuildOptions(f"sample:{source}", out=out, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["tiny-llama", "tiny-gemma3", "tiny-gpt2"])
def test_prompts_go_through_8_bits_and_tokens_through_4(source: str, text: Path, tmp_path: Path) -> None:
    result = built(source, text, tmp_path / "a")
    (variant,) = result.manifest.variants
    assert (variant.weights, variant.prefill) == ("int4", "cpu.prefill.onnx")
    about = result.report["variants"]["cpu"]
    assert about["prefill"]["activations"]["int8_share"] >= 0.9
    # 8 bits with 8-bit inputs are much nearer to the original than 4 bits are.
    assert about["prefill"]["fidelity"]["kl_divergence"] < about["fidelity"]["kl_divergence"] / 1.5
    layers = len(result.report["structure"]["heads"])
    assert (
        len(variant.blobs) == 2 * layers + 1
    )  # what lies outside of the layers is stored once
    only = build(BuildOptions(f"sample:{source}", out=tmp_path / "b", weights="int4", eval_text=text))
    assert only.report["fidelity"] == about["fidelity"]
    long, short = list(range(3, 43)), list(range(3, 12))
    with runtime_edge.load(result.path) as both, runtime_edge.load(only.path) as four:
        np.testing.assert_array_equal(both.score(short), four.score(short))
        assert not np.array_equal(both.score(long), four.score(long))
        np.testing.assert_allclose(both.score(long), four.score(long), atol=5)  # of the same model, roughly
        assert len(both.generate(long, max_new_tokens=80, stop_token_ids=[]).token_ids) == 80


def test_the_same_bytes_from_the_same_request(text: Path, tmp_path: Path) -> None:
    first, second = (built("tiny-llama", text, tmp_path / name, check=False).manifest for name in "ab")
    assert first == second


def test_the_bound_holds_for_prompts_too(text: Path, tmp_path: Path) -> None:
    with pytest.raises(BoundError, match="expected a loss of at most"):
        built("tiny-llama", text, tmp_path / "a", weights="int8", max_loss=0.0)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("tiny-llama", {"weights": "fp32"}, "expected int4 or int8 weights without activations int8"),
        ("tiny-llama", {"weights": "int8", "activations": "int8"}, "found weights int8 and activations int8"),
        ("tiny-llama", {"target": "rtx"}, "expected no graph for prefill for target rtx"),
        ("tiny-bert", {}, "expected a model that generates text for --prefill"),
    ],
)
def test_what_is_refused(source: str, options: dict[str, object], message: str, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        built(source, text, tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()
