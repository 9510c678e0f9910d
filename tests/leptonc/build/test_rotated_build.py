"""`leptonc build --rotate` from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_edge
from leptonc.build.to_artifact import build
from leptonc.build.to_onnx import emit
from leptonc.errors import InputError
from leptonc.ir.residual import residual
from leptonc.ir.weights import change, tensor_of
from leptonc.options import BuildOptions
from leptonc.passes.base import Manager
from leptonc.passes.rotate import FoldNorms, Rotate, RotateConfig, random_basis
from leptonc.report import as_plain
from leptonc.sources import open_source
from tests.leptonc import models

LLAMA = "sample:tiny-llama"


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3", "tiny-gpt2"])
def test_a_rotated_model_says_the_same(name: str, tmp_path: Path) -> None:
    """Through the runtime and its cache, within 1e-4 of transformers' largest logit, with a record of the passes."""
    result = build(BuildOptions(f"sample:{name}", out=tmp_path / "m", weights="fp32", rotate=True))
    assert [each.name for each in result.manifest.passes][:2] == ["fold-norms", "rotate"]
    assert as_plain(result.report)["recipe"]["rotate"] is True
    with open_source(f"sample:{name}") as source, runtime_edge.load(result.path) as model:
        ids, chunks = models.token_ids(sum(models.CHUNKS) * 6), models.CHUNKS * 6
        wanted = models.reference_logits(models.reference_of(source), ids)
        assert np.abs(models.runtime_logits(model, ids, chunks) - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "given",
    [
        {"weights": "int8", "activations": "int8"},
        {"weights": "int4", "method": "awq"},
        {"weights": "int4", "method": "gptq"},
        {"weights": "int8", "target": "rtx", "activations": "int8"},
    ],
    ids=lambda given: " ".join(given.values()),
)
def test_it_is_quantized_like_any_other(given: dict[str, Any], tmp_path: Path) -> None:
    """Smoothing and scaling fold into gains of single norms, which must not be shared."""
    result = build(BuildOptions(LLAMA, out=tmp_path / "m", rotate=True, max_seq_len=96, **given))
    assert as_plain(result.report)["fidelity"]["kl_divergence"] < (1.0 if given["weights"] == "int4" else 0.05)


def test_the_seed_chooses_the_basis(tmp_path: Path) -> None:
    blobs = [
        {
            path.name
            for path in (emit(BuildOptions(LLAMA, out=tmp_path / f"{i}", rotate=True, seed=seed, check=False)).path
                         / "blobs").iterdir()
        }
        for i, seed in enumerate((0, 0, 1))
    ]  # fmt: skip
    assert blobs[0] == blobs[1]
    assert blobs[0] != blobs[2]


def test_outliers_are_spread_over_all_features() -> None:
    """QuaRot's property: what one feature had alone, all have a part of."""
    with open_source(LLAMA) as source:
        model = models.capture(source, max_seq_len=64).model
        found = residual(model)
        table = next(value for value in found.weights() if list(value.shape or ()) == [512, 64])
        array = np.array(tensor_of(table).numpy())
        array[:, 7] *= 100
        change(table, lambda: array)
        before = np.abs(array).max() / np.sqrt(np.square(array).mean())
        Manager().run(model, [FoldNorms(), Rotate(RotateConfig("random"), random_basis(64, 0))])
        turned = tensor_of(table).numpy()
    assert np.abs(turned).max() / np.sqrt(np.square(turned).mean()) < 0.5 * before


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a residual stream") as caught:
        build(BuildOptions("sample:tiny-bert", out=tmp_path / "m", rotate=True, check=False))
    assert "--rotate" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []
