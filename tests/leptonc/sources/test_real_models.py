"""The real sample models: opened whole, against transformers. Skipped where their packages are not installed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from tokenizers import Tokenizer

from leptonc.errors import MissingExtraError
from leptonc.sources import SentenceModules, Source, open_source, samples

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = (
    "The capital of France is Paris.",
    "  two  spaces\n\n\nand\ttabs \r\n",
    "1234567890 3.14159 1,000,000",
    "def f(x):\n    return x ** 2  # square\n",
    "日本語 한국어 русский ελληνικά العربية 🦙🎉",
    "it's we'll I'D cafe\u0301 naïve",
    "",
    " " * 40 + "x",
)


def opened(name: str) -> Source:
    try:
        return open_source(f"sample:{name}")
    except MissingExtraError as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Source]:
    with opened("smollm2-135m") as source:
        yield source


@pytest.fixture(scope="module")
def gemma3() -> Iterator[Source]:
    with opened("gemma3-270m") as source:
        yield source


def greedy(source: Source, prompt: str, count: int, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What transformers answers with the source's weights, config and tokenizer."""
    from sample_models.export import write_directory

    path = write_directory(source, tmp_path_factory.mktemp(source.name), tokenizer=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = Tokenizer.from_buffer(source.tokenizer_json)
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    answer = model.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :]
    return str(tokenizer.decode(answer.tolist()))


# That the weights are read rightly, the perplexity of both in tests/system/test_real_models.py says too.
@pytest.mark.families
def test_smollm2_knows_the_capital_of_france(smollm2: Source, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert greedy(smollm2, "The capital of France is", 2, tmp_path_factory).startswith(" Paris")


@pytest.mark.families
def test_gemma3_writes_english(gemma3: Source, tmp_path_factory: pytest.TempPathFactory) -> None:
    answer = greedy(gemma3, "Once upon a time, there was a little girl", 12, tmp_path_factory)
    assert answer.startswith(" named Lily. She was")


def test_weights_equal_transformers_own_reading(smollm2: Source) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only")
    from sample_models import packaged_model

    path = samples._installed(packaged_model("smollm2-135m").files[0])
    assert path is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    expected = model.state_dict()
    assert len(smollm2.weights) == len(expected) - 1  # lm_head is tied
    for name, tensor in smollm2.weights.items():
        assert np.abs(tensor.read() - expected[name].numpy()).max() <= 1e-6, name


def test_smollm2s_tokenizer(smollm2: Source) -> None:
    tokenizer = Tokenizer.from_buffer(smollm2.tokenizer_json)
    assert tokenizer.encode("Hello world 123").tokens == ["Hello", "Ġworld", "Ġ", "1", "2", "3"]
    chat = tokenizer.encode("<|im_start|>user\nhi<|im_end|>")
    assert chat.ids == [1, 4093, 198, 6004, 2]
    assert tokenizer.decode(chat.ids) == "user\nhi"
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert smollm2.tokenizer_config["eos_token"] == "<|im_end|>"
    assert smollm2.generation_config is not None
    assert smollm2.generation_config["eos_token_id"] == [0, 2, 4]  # llama.cpp ends at <reponame> too
    assert "<|im_start|>" in (smollm2.chat_template or "")


def test_gemma3s_tokenizer_is_transformers(gemma3: Source) -> None:
    tokenizer = Tokenizer.from_buffer(gemma3.tokenizer_json)
    assert tokenizer.encode("a  b").tokens == ["<bos>", "a", "▁▁", "b"]
    turn = tokenizer.encode("<start_of_turn>user\nhi<end_of_turn>", add_special_tokens=False)
    assert turn.tokens == ["<start_of_turn>", "user", "\n", "hi", "<end_of_turn>"]
    assert tokenizer.encode("\U000e0041", add_special_tokens=False).tokens[0].startswith("<0x")
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(("name", "limit_s"), [("smollm2-135m", 3), ("gemma3-270m", 10), ("minilm-l6", 10)])
def test_opening_is_quick(name: str, limit_s: float) -> None:
    start = time.process_time()
    opened(name).close()
    assert time.process_time() - start < limit_s  # measured: 0.4 s, 2.1 s, and 3 s with the import of transformers


def test_minilm() -> None:
    with opened("minilm-l6") as source:
        assert source.modules is not None
        assert source.modules == SentenceModules.pooled("mean", normalize=True, max_seq_length=256)
        tokenizer = Tokenizer.from_buffer(source.tokenizer_json)
        assert tokenizer.padding is None
        assert tokenizer.encode("Hello there").tokens == ["[CLS]", "hello", "there", "[SEP]"]
        weight = source.weights["embeddings.word_embeddings.weight"].read()
        assert weight.shape == (30522, 384)
        assert np.isfinite(weight).all()
        assert source.origin["licence"] == "apache-2.0"
