"""What the manifest says of tokenizer, cache and labels."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from leptonc.artifact.describe import parts_of, settings_of, tokenizer_of
from leptonc.errors import InputError
from leptonc.frontend.capture import Captured
from leptonc.sources import Source, open_source
from runtime_edge.decoder_record import decoder_of
from runtime_edge.encoder_record import encoder_of
from runtime_edge.manifest import Tokenizer
from tests.leptonc import models

NOTHING = Source("a", {}, {}, {}, b"")

EOS, TURN = 1, 3  # <|endoftext|>, <|im_end|>


@pytest.fixture(scope="module")
def llama() -> Captured:
    return models.captured("tiny-llama", 300)


def described(captured: Captured, **changes: Any) -> Tokenizer:
    with open_source("sample:tiny-llama") as source:
        return tokenizer_of(replace(source, **changes), captured)


def test_a_chat_models_tokenizer(llama: Captured) -> None:
    found = described(llama)
    assert found.file == "tokenizer.json"
    assert (found.bos_token_id, found.eos_token_ids, found.pad_token_id) == (EOS, (TURN,), 0)
    assert found.special_tokens == {
        "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>",
    }  # fmt: skip
    assert found.chat_template == "chat_template.jinja"
    assert described(llama, chat_template=None).chat_template is None
    assert described(llama, chat_templates={"rag": "R"}).chat_templates == {"rag": "chat_template.rag.jinja"}


def test_an_answer_ends_where_transformers_ends_it(llama: Captured) -> None:
    """generation_config.json alone where there is one, even without an end; config.json as it is written otherwise."""
    with open_source("sample:tiny-llama") as source:
        config = source.config | {"eos_token_id": 9}

    def ends(generation: dict[str, Any] | None, **fields: Any) -> tuple[int, ...]:
        return described(llama, generation_config=generation, config=config | fields).eos_token_ids

    assert ends({"eos_token_id": [TURN, 7]}) == (TURN, 7)
    assert ends({"eos_token_id": TURN}) == (TURN,)
    assert ends({"temperature": 1.0}) == ends({}) == ends({"eos_token_id": None}) == ()
    assert ends(None) == (9,)
    assert ends(None, eos_token_id=[TURN, 7]) == (TURN, 7)
    assert ends(None, eos_token_id=None) == ()  # what the tokenizer calls its end, `generate` does not know
    assert ends(None, eos_token_id=None, text_config={"eos_token_id": 5}) == (5,)
    assert ends(None, text_config={"eos_token_id": 5}) == (9,)


def test_ids_outside_the_vocabulary_are_left_out(llama: Captured) -> None:
    found = described(llama, generation_config={"eos_token_id": [512, -1, 2, True], "bos_token_id": 100_000})
    assert found.eos_token_ids == (1, 2)
    assert found.bos_token_id == EOS


def test_tokens_of_the_tokenizer_alone_are_left_out(llama: Captured) -> None:
    """A tokenizer may have more tokens than the model, its padding among them."""
    with open_source("sample:tiny-llama") as source:
        tokenizer = json.loads(source.tokenizer_json)
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 600, "content": "<extra>"})
    texts = {"pad_token": "<extra>", "bos_token": "<extra>"}
    found = described(
        llama, tokenizer_config=texts, tokenizer_json=json.dumps(tokenizer).encode(), generation_config={}, config={}
    )
    assert (found.bos_token_id, found.pad_token_id) == (None, None)


def test_padding_follows_the_text_before_the_id(llama: Captured) -> None:
    named = described(llama, tokenizer_config={"pad_token": "<|mask|>"})
    assert named.pad_token_id == 6
    assert described(llama, tokenizer_config={"pad_token": "not a token"}).pad_token_id == 0


def test_a_decoders_record(llama: Captured) -> None:
    found = decoder_of(parts_of(llama), settings_of(llama, NOTHING))
    assert found is not None
    assert (found.vocab_size, found.max_seq_len, len(found.cache)) == (512, 300, 3)
    assert {(c.kv_heads, c.key_dim, c.value_dim, c.window) for c in found.cache} == {(2, 16, 16, None)}
    assert encoder_of(parts_of(llama), settings_of(llama, NOTHING)) is None
    assert {buffer.dtype for buffer in parts_of(llama, "int8")[0].buffers} == {"int8"}
    gemma = models.captured("tiny-gemma3")
    windows = decoder_of(parts_of(gemma), settings_of(gemma, NOTHING))
    assert windows is not None
    assert [c.window for c in windows.cache] == [8, 8, None, 8]


def test_encoders_records() -> None:
    classifier = models.captured("tiny-bert-classifier")
    found = encoder_of(parts_of(classifier), settings_of(classifier, NOTHING))
    assert found is not None
    assert found.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert (found.output, found.dim, found.max_seq_len) == ("logits", 3, 512)
    assert found.labels == ("bad", "neutral", "good")
    assert not found.multi_label
    sentence = models.captured("tiny-sentence", 100)
    assert decoder_of(parts_of(sentence), settings_of(sentence, NOTHING)) is None
    plain = encoder_of(parts_of(sentence), settings_of(sentence, NOTHING))
    assert plain is not None
    assert (plain.output, plain.dim, plain.max_seq_len, plain.labels) == ("embeddings", 64, 100, ())


def test_classifiers_of_several_labels() -> None:
    captured = models.captured("tiny-bert-classifier")
    captured.config.problem_type = "multi_label_classification"
    captured.config.id2label = {0: "bad", 1: "bad", 2: 7}
    found = encoder_of(parts_of(captured), settings_of(captured, NOTHING))
    assert found is not None
    assert found.multi_label
    assert (found.labels, found.function) == (("bad", "bad", "7"), "sigmoid")
    captured.config.id2label = {}
    assert _labels(captured) == ("LABEL_0", "LABEL_1", "LABEL_2")
    captured.config.id2label = {0: "bad", 2: "good", 3: "better"}
    with pytest.raises(InputError, match="expected id2label to name the outputs 0 to 2, found none for 1"):
        _labels(captured)


def _labels(captured: Captured) -> tuple[str, ...]:
    found = encoder_of(parts_of(captured), settings_of(captured, NOTHING))
    assert found is not None
    return found.labels


def test_a_tokenizer_without_added_tokens(llama: Captured) -> None:
    from tokenizers import Tokenizer as Parsed
    from tokenizers.models import WordLevel

    plain = Parsed(WordLevel({"a": 0, "</s>": 1, "?": 2}, "?")).to_str().encode()
    source = Source("plain", {}, {}, {}, plain, {"bos_token": "</s>"})
    assert tokenizer_of(source, llama).bos_token_id == 1
