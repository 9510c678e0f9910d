"""Artifacts that toolchains of formats 1 to 8 built open, and answer what the runtimes of their time answered.

`tests/data/formats.tar.xz` has a folder for each format: artifacts of made-up models with two layers or one, and in
`answers.npz` what the runtime of that format answered without kernels of ours.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

import runtime_edge
from runtime_edge import ort
from runtime_edge.manifest import FORMAT_VERSION

STORED = Path(__file__).parents[1] / "data" / "formats.tar.xz"
TOKENS = [(7 * index) % 200 + 9 for index in range(40)]
CHAT = [{"role": "user", "content": "Hello, Wörld"}]
TEXTS = ["One sentence.", "Another, somewhat longer than the first."]
ROWS = 8  # of the logits are stored, as float16
ARTIFACTS = [
    (1, "bert-int8"), (1, "gpt2-int8"), (1, "llama-int4"), (2, "classifier-int8"), (2, "llama-gptq"), (3, "bert-w8a8"),
    (3, "llama-kv8-prefill"), (4, "gpt2-int4"), (4, "llama-w8a8"), (5, "llama-shared"), (6, "bert-int4"),
    (6, "llama-shared"), (7, "classifier-int8"), (7, "gpt2-w8a8"), (7, "llama-shared"), (8, "classifier-int8"),
    (8, "llama-shared"), (8, "sentence-int8"),
]  # fmt: skip
# Of the largest number. Kernels differ between processors in the last bit of float32, which moves an activation of 8
# bits to the next code now and then; codes of weights that are read otherwise are wrong by more than the number itself.
TOLERANCE = 0.005


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    with tarfile.open(STORED) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_every_format_before_this_one_is_there(stored: Path) -> None:
    paths = [path.relative_to(stored) for path in stored.glob("*/*.lepton")]
    assert sorted((int(path.parts[0]), path.stem) for path in paths) == ARTIFACTS
    assert {version for version, _ in ARTIFACTS} == set(range(1, FORMAT_VERSION))


def answers(model: runtime_edge.Model) -> dict[str, np.ndarray]:
    if model.manifest.decoder is not None:
        return {
            "logits": model.logits(TOKENS)[-ROWS:],
            "tokens": np.array(model.generate(TOKENS[:20], max_new_tokens=12).token_ids),
            "chat": np.array(model.generate(CHAT, max_new_tokens=12).token_ids),
        }
    if model.manifest.task == "text-embedding":
        return {"embeddings": model.encode(TEXTS)}
    return {"scores": np.array([list(one.scores.values()) for one in model.classify(TEXTS)])}


@pytest.mark.skipif(
    ort.lacks(ort.load().__version__) is not None, reason="graphs of these formats want the newest operator set"
)
@pytest.mark.parametrize(("version", "name"), ARTIFACTS)
def test_an_artifact_of_an_earlier_format_answers_as_it_did(version: int, name: str, stored: Path) -> None:
    with (
        runtime_edge.load(stored / str(version) / f"{name}.lepton", threads=1) as model,
        np.load(stored / str(version) / "answers.npz") as expected,
    ):
        assert model.manifest.format_version == version
        for key, value in answers(model).items():
            wanted = expected[f"{name}/{key}"]
            if value.dtype.kind == "i":
                assert value.tolist() == wanted.tolist(), key
            else:
                np.testing.assert_allclose(value, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max(), err_msg=key)
