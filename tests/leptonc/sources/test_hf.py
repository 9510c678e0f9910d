"""Hugging Face directories: what is read, and what is said when something is missing or wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from leptonc.errors import InputError
from leptonc.sources import open_source
from sample_models.export import write_directory


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_directory(open_source("sample:tiny-llama"), tmp_path / "my-model")


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_directory(model: Path) -> None:
    original = open_source("sample:tiny-llama")
    with open_source(str(model)) as source:
        assert source.name == "my-model"
        assert source.origin == {"kind": "directory", "id": "my-model"}
        assert source.config == original.config
        assert source.tokenizer_json == original.tokenizer_json
        assert source.tokenizer_config["eos_token"] == "<|im_end|>"
        assert source.chat_template == original.chat_template
        assert source.generation_config == original.generation_config
        assert source.modules is None
        assert source.weights.keys() == original.weights.keys()
        for name, tensor in source.weights.items():
            assert np.array_equal(tensor.read(), original.weights[name].read())


def test_shards_read_as_one(tmp_path: Path) -> None:
    original = open_source("sample:tiny-llama")
    path = write_directory(original, tmp_path / "m", shard_bytes=100_000)
    assert len(list(path.glob("*.safetensors"))) > 3
    with open_source(str(path)) as source:
        assert source.weights.keys() == original.weights.keys()
        assert all(
            np.array_equal(tensor.read(), original.weights[name].read()) for name, tensor in source.weights.items()
        )


def test_one_weights_file_of_another_name(model: Path) -> None:
    (model / "model.safetensors").rename(model / "weights.safetensors")
    with open_source(str(model)) as source:
        assert "model.norm.weight" in source.weights
    (model / "more.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected model\.safetensors or .*, found more.safetensors, weights"):
        open_source(str(model))


def remove(*names: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return change


def put(name: str, text: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(text) and None


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def only(*names: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        empty(path)
        for name in names:
            (path / name).write_text("{}")

    return change


def pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


BROKEN: dict[str, tuple[Callable[[Path], None], str, str | None]] = {
    "empty": (empty, "expected config.json, found an empty directory", "save_pretrained"),
    "weights alone": (remove("config.json"), "expected config.json, found only ", "save_pretrained"),
    "config alone": (remove("model.safetensors"), "found a config.json without weights", "download"),
    "pickle": (pickled, "found pytorch_model.bin: pickles can run code and are never read", "convert"),
    "gguf in it": (only("a.gguf"), "expected config.json, found GGUF files", "a.gguf"),
    "adapter": (only("adapter_config.json"), "expected a whole model, found an adapter", "merge"),
    "no tokenizer": (remove("tokenizer.json"), "found no tokenizer", "tokenizer.save_pretrained"),
    "config not JSON": (put("config.json", "{"), "config.json: expected JSON", None),
    "config a list": (put("config.json", "[]"), "expected a JSON object, found list", None),
    "no model_type": (put("config.json", "{}"), "expected a `model_type`, found none", "transformers"),
    "quantized": (
        put("config.json", '{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}'),
        "found weights quantized by 'gptq'",
        "original model",
    ),
    "tokenizer not JSON": (put("tokenizer.json", "nope"), "tokenizer.json: expected JSON", None),
    "tokenizer without model": (put("tokenizer.json", "{}"), "expected a tokenizer with a `model`", None),
    "shard missing": (
        put("model.safetensors.index.json", '{"weight_map": {"w": "model-1.safetensors"}}'),
        "expected the shard model-1.safetensors, found none",
        "download it",
    ),
    "shard elsewhere": (
        put("model.safetensors.index.json", '{"weight_map": {"w": "../model.safetensors"}}'),
        "expected files beside it, found '../model.safetensors'",
        None,
    ),
    "tensor not in its shard": (
        put("model.safetensors.index.json", '{"weight_map": {"w": "model.safetensors"}}'),
        "expected tensor 'w' in model.safetensors",
        None,
    ),
    "no weight map": (put("model.safetensors.index.json", "{}"), "expected a weight_map", None),
    "config not UTF-8": (lambda path: (path / "config.json").write_bytes(b"\xff") and None, "found byte 0xff", None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_directory(case: str, model: Path) -> None:
    change, message, hint = BROKEN[case]
    change(model)
    with pytest.raises(InputError) as caught:
        open_source(str(model))
    assert message in caught.value.message
    assert "my-model" in caught.value.message
    assert caught.value.hint is None if hint is None else hint in str(caught.value.hint)


def test_truncation_and_padding_are_taken_out_of_the_tokenizer(model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(model / "tokenizer.json"))
    with open_source(str(model)) as source:
        found = Tokenizer.from_buffer(source.tokenizer_json)
    assert found.truncation is None
    assert found.padding is None
    assert len(found.encode("A much longer text").ids) > 4


def test_special_tokens_are_given_as_text_as_transformers_has_them(model: Path) -> None:
    (model / "special_tokens_map.json").write_text('{"unk_token": {"content": "<u>"}, "eos_token": "<|sep|>"}')
    begin = {"__type": "AddedToken", "content": "<b>", "lstrip": False}
    edit(model / "tokenizer_config.json", bos_token=begin, pad_token=None, image_token="<|mask|>")
    with open_source(str(model)) as source:
        found = source.tokenizer_config
    # special_tokens_map.json decides over tokenizer_config.json, where that has no added_tokens_decoder.
    expected = {"bos_token": "<b>", "eos_token": "<|sep|>", "unk_token": "<u>", "image_token": "<|mask|>"}
    assert expected == AutoTokenizer.from_pretrained(model, local_files_only=True).special_tokens_map
    assert {name: text for name, text in found.items() if name.endswith("_token")} == expected
    assert (found["truncation_side"], found["model_input_names"]) == ("right", ["input_ids", "attention_mask"])


def test_where_chat_templates_are_found(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    for template, expected in (("one", "one"), (named, "D"), ([], None)):
        edit(model / "tokenizer_config.json", chat_template=template)
        with open_source(str(model)) as source:
            assert source.chat_template == expected
            assert "chat_template" not in source.tokenizer_config
    (model / "chat_template.json").write_text('{"chat_template": "J"}')
    with open_source(str(model)) as source:
        assert source.chat_template == "J"


@pytest.mark.parametrize("place", ["files", "config", "files without a default"])
def test_named_chat_templates_are_those_of_transformers(model: Path, tmp_path: Path, place: str) -> None:
    named = [{"name": name, "template": name} for name in ("tool_use", "default")]
    edit(model / "tokenizer_config.json", chat_template=named)
    (model / "chat_template.jinja").unlink()
    if place != "config":
        (model / "additional_chat_templates").mkdir()
        (model / "additional_chat_templates" / "rag.jinja").write_text("R")
    if place == "files":
        (model / "chat_template.jinja").write_text("E")
    reference = AutoTokenizer.from_pretrained(model, local_files_only=True).chat_template
    with open_source(str(model)) as source:
        found = source.chat_templates | ({} if source.chat_template is None else {"default": source.chat_template})
        assert found == reference
        again = write_directory(source, tmp_path / "again")
    with open_source(str(again)) as source:
        assert source.chat_templates == {name: text for name, text in reference.items() if name != "default"}


def test_the_name_of_a_chat_template_is_no_path(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    edit(model / "tokenizer_config.json", chat_template=[{"name": "../../up", "template": "T"}])
    with pytest.raises(InputError, match=r"expected names of chat templates of letters, .*, found '\.\./\.\./up'"):
        open_source(str(model))


def test_a_vocabulary_in_the_old_files_is_converted(tmp_path: Path) -> None:
    path = write_directory(open_source("sample:tiny-bert"), tmp_path / "m", tokenizer=False)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "wor", "##ld", "a"]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    with open_source(str(path)) as source:
        tokenizer = Tokenizer.from_buffer(source.tokenizer_json)
    assert tokenizer.encode("Hello world zzz").tokens == ["[CLS]", "hello", "wor", "##ld", "[UNK]", "[SEP]"]


def test_old_files_that_cannot_be_converted(tmp_path: Path) -> None:
    path = write_directory(open_source("sample:tiny-llama"), tmp_path / "m", tokenizer=False)
    (path / "tokenizer.model").write_bytes(b"not a sentencepiece model")
    with pytest.raises(InputError, match="expected a tokenizer that transformers can load"):
        open_source(str(path))
