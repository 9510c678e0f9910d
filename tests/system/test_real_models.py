"""The real sample models from source to artifact against transformers; and what a build's memory depends on.

Skipped where the packages that carry the models are not installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `compiler`")

import runtime_edge
from leptonc.errors import MissingExtraError
from leptonc.evaluate.text import load_text, sentences
from leptonc.sources import Source, open_source
from tests.leptonc import models

pytestmark = pytest.mark.slow
Build = Callable[..., Path]
TOLERANCE = 1e-3  # absolute, of logits
LENGTH = 331
CHUNKS = (61, 1, 1, 7, 1, 63, 1, 59, 3, 97, 37)  # odd lengths, past the first growths of the cache
DECODERS = {"smollm2-135m": (49152, 30), "gemma3-270m": (262144, 18)}


def opened(name: str) -> Source:
    try:
        return open_source(f"sample:{name}")
    except MissingExtraError as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest, artifact: Build) -> Any:
    """(name, transformers' model, the loaded fp32 artifact, token ids of a text)."""
    name = request.param
    with opened(name) as source:
        reference = models.reference_of(source)
    path = artifact(f"sample:{name}", weights="fp32", max_seq_len=1024)
    with runtime_edge.load(path) as model:
        yield name, reference, model, model.tokenize(load_text(None))[:LENGTH]


def test_logits(decoder: Any) -> None:
    name, reference, model, ids = decoder
    assert len(ids) == LENGTH
    assert (model.manifest.decoder.vocab_size, len(model.manifest.decoder.cache)) == DECODERS[name]
    want = models.reference_logits(reference, ids)
    assert np.ptp(want) > 10
    worst = 0.0
    for start, block in model.logits_blocks(ids):
        worst = max(worst, float(np.abs(block - want[start : start + len(block)]).max()))
    assert worst <= TOLERANCE
    assert np.abs(models.runtime_logits(model, ids, CHUNKS) - want).max() <= TOLERANCE


def test_perplexity(decoder: Any) -> None:
    """Equal to 0.1 %."""
    _, reference, model, ids = decoder
    logits = models.reference_logits(reference, ids)[:-1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    scores = logits[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(logits).sum(1))
    want, got = np.exp(-scores.mean()), np.exp(-model.score(ids).mean(dtype=np.float64))
    assert 2 < want < 200  # it has read English
    assert got == pytest.approx(want, rel=1e-3)


def test_greedy_tokens(decoder: Any) -> None:
    """200 tokens, each the reference's best after those before it, but for ties within 1e-4."""
    _, reference, model, ids = decoder
    prompt = ids[:41]
    object.__setattr__(model._decoding().codec, "eos_ids", frozenset())
    answer = model.generate(prompt, max_new_tokens=200).token_ids
    assert len(answer) == 200
    models.assert_greedy(reference, prompt, answer)


def test_sentence_embeddings(artifact: Build) -> None:
    """Cosine similarity of 0.99999 at least, in batches with padding and one by one."""
    from tokenizers import Tokenizer

    with opened("minilm-l6") as source:
        reference = models.reference_of(source)
        tokenizer = Tokenizer.from_buffer(source.tokenizer_json)
    texts = [*sentences(load_text(None), 20), "Short.", load_text(None)]
    tokenizer.enable_truncation(256)
    want = []
    for text in texts:
        ids = models.torch.tensor([tokenizer.encode(text).ids])
        with models.torch.inference_mode():
            mean = reference(input_ids=ids).last_hidden_state[0].numpy().astype(np.float64).mean(0)
        want.append(mean / np.linalg.norm(mean))
    expected = np.array(want)
    assert (expected @ expected.T).min() < 0.5  # texts differ
    with runtime_edge.load(artifact("sample:minilm-l6", weights="fp32")) as model:
        for size in (32, 1):
            got = model.encode(texts, batch_size=size)
            assert np.abs(np.linalg.norm(got, axis=1) - 1).max() <= 1e-5
            assert (got * expected).sum(1).min() >= 0.99999
            assert np.abs(got - expected).max() <= 1e-4


# Memory

WIDTH = 256
PROGRAM = """
import json, sys
from runtime_edge.process import most_resident
from leptonc.build.to_artifact import build
from leptonc.options import BuildOptions
from leptonc.report import as_plain
from pathlib import Path
more = {"method": "rtn", **(json.loads(sys.argv[4]) if len(sys.argv) > 4 else {})}
more = {name: Path(value) if name == "calibration" else value for name, value in more.items()}
result = build(BuildOptions(sys.argv[1], out=Path(sys.argv[2]), weights=sys.argv[3], check=False, **more))
print(json.dumps({"peak": most_resident(), "bytes": as_plain(result.report)["bytes"]}))
"""


def deep(layers: int, folder: Path, width: int = WIDTH, inner: int = 20 * WIDTH) -> Path:
    """Writes a Llama of that depth with random weights, by default 17 MB a layer."""
    from leptonc.sources.base import ComputedTensor
    from sample_models.export import write_directory
    from sample_models.tiny_weights import parameter_shapes

    with open_source("sample:tiny-llama") as source:
        source.config = source.config | {
            "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "head_dim": 64,
        }  # fmt: skip

        def tensor(seed: int, shape: tuple[int, ...]) -> ComputedTensor:
            return ComputedTensor(
                shape, "F32", lambda: np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.05)
            )

        source.weights = {n: tensor(i, s) for i, (n, s) in enumerate(parameter_shapes(source.config).items())}
        return write_directory(source, folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
@pytest.mark.parametrize("weights", [pytest.param("fp32", marks=pytest.mark.families), "int4"])
def test_memory_does_not_grow_with_depth(weights: str, tmp_path: Path) -> None:
    """4 and 16 layers of one width: of the 200 MB that the deeper has more, the peak rises by less than a quarter."""
    peaks, read = [], []
    for layers in (4, 16):
        path = deep(layers, tmp_path / str(layers))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / f"{layers}.lepton"), weights],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
        peaks.append(found["peak"])
        read.append((path / "model.safetensors").stat().st_size)
    added = read[1] - read[0]
    assert added > 190e6
    assert peaks[1] - peaks[0] < added / 4, (peaks, read)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
def test_a_build_stays_within_its_bound(tmp_path: Path) -> None:
    """A model whose weights in float32 are larger than the bound, run over a text, and rounded."""
    bound = 1.0
    path = deep(40, tmp_path / "model", 1024, 2048)
    assert (path / "model.safetensors").stat().st_size > bound * 1e9
    text = tmp_path / "text.txt"
    text.write_text(load_text(None)[:2000], encoding="utf-8")
    more = json.dumps({"memory_gb": bound, "calibration": str(text), "kv_cache": "int8"})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "m.lepton"), "int4", more],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak"] <= bound * 1e9
