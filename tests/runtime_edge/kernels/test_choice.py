"""Which of our kernels run, and where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import runtime_edge
from runtime_edge import kernels
from runtime_edge.errors import ArtifactError, RequestError
from runtime_edge.manifest import CacheLayer, Decoder
from tests.runtime_edge import tiny
from tests.runtime_edge.kernels import here


def decoder(dim: int = 64, dtype: str = "float32") -> Decoder:
    layers = (CacheLayer(kv_heads=3, key_dim=dim, value_dim=dim),) * 2
    return tiny.decoder(10, 100, layers, dtype)


@here
@pytest.mark.parametrize("tiles", [False, True])
def test_what_is_chosen_follows_from_the_artifact(tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "tiles", lambda: tiles)
    products = ("product.int8",) if tiles else ()
    assert kernels.chosen(decoder(), "none") == ("attention.float32",)
    assert kernels.chosen(decoder(), "int8") == (f"attention.{'bfloat16' if tiles else 'float32'}", *products)
    assert kernels.chosen(decoder(80), "none") == ()
    assert kernels.chosen(decoder(512), "none") == ()
    assert kernels.chosen(decoder(dtype="int8"), "int8") == products
    assert kernels.chosen(None, "none") == ()
    assert kernels.chosen(None, "int8") == products


@here
def test_names_that_are_not_known_are_refused() -> None:
    with pytest.raises(Exception, match="lepton kernels: expected names of kernels, found another name"):
        kernels.register(onnxruntime.SessionOptions(), ["attention.float32", "attention.float16"])


@here
def test_an_artifact_runs_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "HEAD_DIM", 32)
    weights = tiny.Weights.seeded(3)
    artifact = tiny.write_decoder(tmp_path / "wide", weights=weights)
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, 250, 400)]
    with runtime_edge.load(artifact) as model:
        ours, said = model.score(tokens), model.generate(tokens, max_new_tokens=40, stop_token_ids=[])
    monkeypatch.setenv(kernels.VARIABLE, "onnxruntime")
    with runtime_edge.load(artifact) as model:
        np.testing.assert_allclose(ours, model.score(tokens), rtol=0, atol=2e-5)
        assert said.token_ids == model.generate(tokens, max_new_tokens=40, stop_token_ids=[]).token_ids
    monkeypatch.delenv(kernels.VARIABLE)
    monkeypatch.setattr(kernels, "library", lambda: tmp_path / "absent.so")  # it is opened: they were ours
    with pytest.raises(ArtifactError, match=r"absent\.so"):
        runtime_edge.load(artifact)


def test_kernels_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "onnxruntime")
    assert kernels.lacking() == "LEPTON_KERNELS=onnxruntime"
    assert kernels.chosen(decoder(), "none") == ()
    monkeypatch.setenv(kernels.VARIABLE, "ours")
    with pytest.raises(RequestError, match="LEPTON_KERNELS: expected onnxruntime, avx2, or nothing, found 'ours'"):
        kernels.lacking()


@pytest.mark.parametrize(
    ("features", "library", "lacking"),
    [
        ("avx512f avx512bw avx512dq avx512vl fma avx2", "best.so", None),
        ("avx512f fma avx2", "avx2.so", None),
        ("avx2", None, "this CPU has no fma"),
        ("", None, "this CPU has no avx2, fma"),
    ],
)
def test_the_best_library_that_the_cpu_runs(
    features: str, library: str | None, lacking: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "_features", lambda: frozenset(features.split()))
    monkeypatch.setattr(kernels, "_path", lambda name: Path("best.so" if name == "_kernels" else "avx2.so"))
    assert kernels.library() == (None if library is None else Path(library))
    assert kernels.lacking() == lacking
    assert kernels.chosen(decoder(), "none") == (() if library is None else ("attention.float32",))
    monkeypatch.setenv(kernels.VARIABLE, "avx2")
    assert kernels.library() == (None if library is None else Path("avx2.so"))
    assert not kernels.tiles()


def test_where_they_were_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "_path", lambda name: None)
    assert kernels.lacking() == "not compiled: that needs Linux on x86-64, and GCC 11 or Clang 12, at installation"
    assert kernels.chosen(decoder(), "none") == ()


def test_the_installation_says_why_it_compiled_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "_path", lambda name: None)
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / kernels.NOTE).write_text("no C compiler was found at installation (gcc)\n")
    assert kernels.lacking() == "not compiled: no C compiler was found at installation (gcc)"
    (tmp_path / kernels.NOTE).write_bytes(b"\xff")
    assert str(kernels.lacking()).startswith("not compiled: that needs Linux")
