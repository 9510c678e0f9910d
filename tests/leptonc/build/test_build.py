"""`build` from end to end: the same bytes twice, whole artifacts or none, honest reports."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import runtime_edge
from leptonc.artifact.writer import ArtifactWriter
from leptonc.build.to_artifact import build
from leptonc.errors import BoundError, CaptureError, InputError
from leptonc.options import BuildOptions
from leptonc.progress import TITLES
from leptonc.report import as_plain
from runtime_edge.errors import LeptonError
from tests.leptonc import models

LLAMA = "sample:tiny-llama"


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("source", "weights", "check"),
    [(LLAMA, "fp32", True), (LLAMA, "int4", False), ("sample:tiny-gemma3", "int4", True),
     ("sample:tiny-bert-classifier", "fp32", True), ("sample:tiny-gpt2", "int8", False)],
)  # fmt: skip
def test_two_builds_are_the_same_bytes(tmp_path: Path, source: str, weights: str, check: bool) -> None:
    """The graph, each blob, the manifest, and the report with its figures."""
    one, two = (
        build(BuildOptions(source, out=tmp_path / name, weights=weights, check=check)) for name in ("a", "elsewhere")
    )
    first, second = files(one.path), files(two.path)
    assert list(first) == list(second)
    assert [name for name in first if first[name] != second[name]] == []
    assert {"manifest.json", "report.json", "cpu.onnx", "tokenizer.json"} <= set(first)
    assert str(tmp_path).encode() not in b"".join(first.values())
    runtime_edge.verify(one.path)


def test_other_weights_are_other_bytes(artifact: Callable[..., Path]) -> None:
    fp32, int4 = (files(artifact(LLAMA, weights=w)) for w in ("fp32", "int4"))
    assert fp32["cpu.onnx"] != int4["cpu.onnx"]
    assert fp32["tokenizer.json"] == int4["tokenizer.json"]
    size = {n: sum(len(d) for p, d in f.items() if p.startswith("blobs/")) for n, f in (("fp32", fp32), ("int4", int4))}
    assert size["int4"] < size["fp32"] / 2.5  # 5 bits a weight, and rotary tables that stay


# The report


def test_the_report_of_a_decoder(tmp_path: Path) -> None:
    steps: dict[str, int] = {}
    foreseen: list[str] = []

    class Watching:
        def note(self, text: str) -> None:
            pass

        @contextmanager
        def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
            steps[name] = 0

            def advance(n: int) -> None:
                steps[name] += n

            yield advance
            assert total is None or steps[name] <= total

        @contextmanager
        def forecast(self, stages: Sequence[tuple[str, float]]) -> Iterator[None]:
            foreseen.extend(name for name, _ in stages)
            yield

    result = build(BuildOptions(LLAMA, out=tmp_path / "m", weights="fp32"), Watching())
    report = json.loads((result.path / "report.json").read_text())
    assert report == as_plain(result.report)
    assert report["structure"] == {
        "layers": 3, "residual": 64, "heads": [4] * 3, "kv_heads": [2] * 3, "mlp_channels": [160] * 3,
    }  # fmt: skip
    assert report["operations"]["captured"]["lepton.CachedAttention"] == 3
    assert report["operations"]["cpu"]["com.microsoft.GroupQueryAttention"] == 3
    found = report["fidelity"]
    assert found["text"] == "built-in"
    assert found["tokens"] == 512
    assert 0 < found["max_abs_diff"] < 1e-4
    assert found["kl_divergence"] < 1e-6
    assert found["top1_agreement"] == 1
    assert found["perplexity"] == pytest.approx(found["perplexity_reference"], rel=1e-5)
    stored = files(result.path)
    blobs = sum(len(d) for n, d in stored.items() if n.startswith("blobs/"))
    assert report["bytes"] == {
        "weights": blobs, "graph": len(stored["cpu.onnx"]), "tokenizer": len(stored["tokenizer.json"]),
    }  # fmt: skip
    stages = ["capture", "capture check", "passes", "weights", "check", "examples"]
    titles = [TITLES[name] for name in ("open", *stages)]
    assert set(titles) <= set(steps)
    assert 0.99 * blobs <= steps[TITLES["weights"]] <= blobs
    assert {"capture", "weights", "check", "pass fuse-linears"} <= set(result.seconds)
    assert foreseen == titles[2:]
    assert list(result.estimated_seconds) == stages


def test_perplexity_is_that_of_transformers(tmp_path: Path) -> None:
    import numpy as np
    from tokenizers import Tokenizer

    text = tmp_path / "text.txt"
    text.write_text("The river runs through the town and under the old bridge. " * 6)
    result = build(BuildOptions(LLAMA, out=tmp_path / "m", weights="int4", eval_text=text))
    found = as_plain(result.report)["fidelity"]
    ids = Tokenizer.from_file(str(result.path / "tokenizer.json")).encode(text.read_text()).ids[:512]
    logits = models.reference_logits(models.reference("tiny-llama"), ids).astype(np.float64)
    with runtime_edge.load(result.path) as model:
        ours = model.logits(ids).astype(np.float64)
    for name, rows in (("perplexity_reference", logits), ("perplexity", ours)):
        score = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        nll = -score[np.arange(len(ids) - 1), ids[1:]].mean()
        assert found[name] == pytest.approx(np.exp(nll), rel=1e-4), name
    assert (found["tokens"], found["text"]) == (len(ids), "text.txt")
    assert found["max_abs_diff"] == pytest.approx(np.abs(ours - logits).max(), rel=1e-3)
    assert found["kl_divergence"] > 0.01
    assert found["top1_agreement"] < 1


@pytest.mark.parametrize("name", ["tiny-sentence", "tiny-distilbert"])
def test_the_report_of_an_encoder(name: str, tmp_path: Path) -> None:
    found = as_plain(build(BuildOptions(f"sample:{name}", out=tmp_path / "m", weights="fp32")).report)["fidelity"]
    assert found["texts"] == 32
    assert found["cosine_min"] >= 0.99999
    assert found["max_abs_diff"] < 1e-4
    assert found.get("top1_agreement") == (1 if name == "tiny-distilbert" else None)


@pytest.mark.parametrize("name", models.DECODERS)
def test_fidelity_is_measured_on_every_family(name: str, tmp_path: Path) -> None:
    """A text whose last block of logits is a single row would once have been too much."""
    text = tmp_path / "t.txt"
    text.write_text("One town.")
    result = build(BuildOptions(f"sample:{name}", out=tmp_path / "m", weights="fp32", eval_text=text))
    assert as_plain(result.report)["fidelity"]["max_abs_diff"] < 1e-4


def test_without_a_check(artifact: Callable[..., Path]) -> None:
    report = json.loads((artifact(LLAMA, weights="fp32") / "report.json").read_text())
    assert "fidelity" not in report
    assert {"operations", "structure", "bytes"} <= set(report)


def test_the_manifest(artifact: Callable[..., Path]) -> None:
    manifest = runtime_edge.verify(artifact("sample:tiny-gemma3", weights="int4", symmetric=False))
    assert (manifest.name, manifest.task, manifest.architecture) == ("tiny-gemma3", "text-generation", "gemma3_text")
    assert manifest.parameters == models.reference("tiny-gemma3").num_parameters()
    assert manifest.source == {"kind": "sample", "id": "tiny-gemma3", "licence": "apache-2.0"}
    (variant,) = manifest.variants
    assert (variant.name, variant.backend, variant.weights) == ("cpu", "onnxruntime", "int4")
    record = manifest.passes[0]
    assert (record.name, record.config["bits"], record.config["symmetric"]) == ("quantize-weights", 4, False)
    assert {"leptonc", "torch", "transformers", "onnxruntime"} <= set(manifest.toolchain)


def test_lengths(artifact: Callable[..., Path]) -> None:
    decoder = runtime_edge.verify(artifact(LLAMA, weights="fp32", max_seq_len=77)).decoder
    assert decoder is not None
    assert decoder.max_seq_len == 77


def test_dumps_of_the_ir(tmp_path: Path) -> None:
    build(BuildOptions(LLAMA, out=tmp_path / "m", weights="int4", check=False, dump_ir=tmp_path / "ir"))
    names = [p.name.split("-", 1)[1] for p in sorted((tmp_path / "ir").iterdir())]
    assert names[:3] == ["capture.onnx.txt", "quantize-weights.onnx.txt", "last-logits.onnx.txt"]
    assert names[-2:] == ["cleanup.onnx.txt", "ort-whole-scores.onnx.txt"]


# Refusals: nothing is left behind


def refused(tmp_path: Path, error: type[LeptonError], source: str = LLAMA, **options: Any) -> LeptonError:
    with pytest.raises(error) as caught:
        build(BuildOptions(source, **{"out": tmp_path / "m", "check": False, **options}))
    assert not (tmp_path / "m").exists()
    return caught.value


def test_a_bound_on_loss(tmp_path: Path) -> None:
    # Rounding may lower a random model's perplexity, so the bound asks for half of it.
    error = refused(tmp_path, BoundError, weights="int4", check=True, max_loss=-50)
    assert error.exit_code == 3
    assert "expected a loss of at most -50 % for cpu, found that perplexity rises by " in error.message
    assert list(tmp_path.iterdir()) == []
    error = refused(tmp_path, BoundError, "sample:tiny-sentence", weights="int4", check=True, max_loss=0.001)
    assert "cosine similarity falls by" in error.message
    built = build(BuildOptions(LLAMA, out=tmp_path / "m", weights="fp32", max_loss=0.5))
    assert built.path.is_dir()


def test_schemes_and_targets_that_are_not_there(tmp_path: Path) -> None:
    error = refused(tmp_path, InputError, weights="fp16")
    assert "expected weights among fp32, int8, int4, int2 for target cpu, found fp16" in error.message
    assert error.hint
    assert "expected activations among none, int8, found" in refused(tmp_path, InputError, activations="fp8").message
    assert "expected block_size among 16, 32" in refused(tmp_path, InputError, weights="int4", block_size=48).message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
@pytest.mark.parametrize("method", ["add_graph", "write_manifest", "commit"])
def test_a_failure_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, method: str) -> None:
    """Before anything is there, and over an artifact that stays as it was."""
    plain = getattr(ArtifactWriter, method)
    calls: list[Path] = []

    def fails(self: ArtifactWriter, *args: Any, **kwargs: Any) -> Any:
        if method != "commit":
            plain(self, *args, **kwargs)
        calls.append(self.path)
        assert self.path.is_dir()
        raise error

    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, method, fails)
        with pytest.raises(expected):
            build(BuildOptions("sample:tiny-qwen2", out=tmp_path / "m", weights="fp32", check=False))
    assert len(calls) == 1
    assert list(tmp_path.iterdir()) == []


def test_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"out": tmp_path / "m", "check": False}
    first = files(build(BuildOptions("sample:tiny-qwen2", weights="fp32", **options)).path)
    with pytest.raises(InputError, match="found an artifact"):
        build(BuildOptions("sample:tiny-qwen2", weights="int4", **options))
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(BuildOptions("sample:tiny-qwen2", weights="int4", force=True, **options))
    assert files(tmp_path / "m") == first
    build(BuildOptions("sample:tiny-qwen2", weights="int4", force=True, **options))
    assert files(tmp_path / "m") != first
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_out_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").write_text("")
    for out, message in ((tmp_path / "mine", "something else"), (tmp_path / "file" / "m", "can be written to")):
        with pytest.raises(InputError, match=message):
            build(BuildOptions("sample:none-such", out=out, force=True))


def test_nan_weights(tmp_path: Path) -> None:
    import numpy as np

    from leptonc.sources import open_source
    from leptonc.sources.base import ComputedTensor
    from sample_models.export import write_directory

    with open_source(LLAMA) as source:
        name = "model.layers.1.mlp.up_proj.weight"
        bad = source.weights[name].read()
        bad[0, 0] = np.nan
        source.weights = {**source.weights, name: ComputedTensor(bad.shape, "F32", lambda: bad)}
        path = write_directory(source, tmp_path / "hf")
    for weights in ("fp32", "int4"):
        error = refused(tmp_path, InputError, str(path), weights=weights)
        assert f"found 1 NaN or infinite values in `{name}`" in error.message
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_an_unknown_architecture(tmp_path: Path) -> None:
    from dataclasses import replace

    from leptonc.sources import open_source
    from sample_models.export import write_directory

    with open_source(LLAMA) as source:
        path = write_directory(replace(source, config=source.config | {"model_type": "lama"}), tmp_path / "hf")
    assert refused(tmp_path, CaptureError, str(path)).hint == "did you mean 'llama'?"
