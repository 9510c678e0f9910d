"""The report's rows of embeddings: what a head is, which format they have, and what an artifact stores of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def embedding(path: Path, variant: str = "cpu") -> dict[str, Any]:
    (row,) = json.loads((path / "report.json").read_text())["variants"][variant]["embeddings"]
    return dict(row)


@pytest.mark.parametrize(
    ("source", "path", "head"),
    [
        ("tiny-llama", "model.embed_tokens", "lm_head"),
        ("tiny-gpt2", "transformer.wte", "lm_head"),
        ("tiny-mistral", "model.embed_tokens", None),
        ("tiny-sentence", "embeddings.word_embeddings", None),
    ],
)
def test_an_embedding_is_reported_once_with_what_it_takes(
    source: str, path: str, head: str | None, artifact: Callable[..., Path]
) -> None:
    plain, four = (artifact(f"sample:{source}", weights=weights) for weights in ("fp32", "int4"))
    rows, width = embedding(plain)["shape"]
    assert embedding(plain) == {
        "path": path, "shape": [rows, width], "weights": "fp32", "bytes": 4 * rows * width,
        **({"head": head} if head else {}),
    }  # fmt: skip
    found = embedding(four)
    assert (found["path"], found.get("head"), found["weights"]) == (path, head, "int4")
    assert found["bytes"] == rows * width // 2 + 2 * rows * width // found["block_size"]
    listed = json.loads((four / "report.json").read_text())["variants"]["cpu"]["linears"]
    assert path not in {row["path"] for row in listed}
    assert head not in {row["path"] for row in listed}
