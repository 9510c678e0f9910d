"""Hugging Face directories: what is read, and what is said when something is missing or wrong."""

from __future__ import annotations

import json
import os
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


def test_two_sets_of_weights(model: Path) -> None:
    """The single file is taken, as transformers takes it."""
    other = write_directory(open_source("sample:tiny-qwen2"), model.parent / "other", shard_bytes=100_000)
    for file in other.glob("model*"):
        file.rename(model / file.name)
    single = open_source("sample:tiny-llama").weights["model.norm.weight"].read()
    with open_source(str(model)) as source:
        assert np.array_equal(source.weights["model.norm.weight"].read(), single)
        assert not any(name.endswith("q_proj.bias") for name in source.weights)  # Qwen2's
        assert "two sets of weights: model.safetensors is taken" in source.warnings[0]


def test_a_file_that_the_config_names(model: Path) -> None:
    (model / "model.safetensors").rename(model / "mine.safetensors")
    with pytest.raises(InputError, match=r"expected model\.safetensors or .*, found mine\.safetensors") as caught:
        open_source(str(model))
    assert "rename it to model.safetensors" in str(caught.value.hint)
    edit(model / "config.json", transformers_weights="mine.safetensors")
    with open_source(str(model)) as source:
        assert "model.norm.weight" in source.weights
        assert source.warnings == ()


def test_the_index_does_not_say_where_a_tensor_is(tmp_path: Path) -> None:
    """Whole shards are read, as by transformers: a tensor that the index has elsewhere, or not at all, is there."""
    path = write_directory(open_source("sample:tiny-llama"), tmp_path / "m", shard_bytes=100_000)
    index = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    names, files = list(index), sorted(set(index.values()))
    moved = dict.fromkeys(names[1:-1], files[0]) | dict(zip(names[1:-1], files, strict=False))
    edit(path / "model.safetensors.index.json", weight_map=moved)
    with open_source(str(path)) as source:
        assert set(source.weights) == set(names)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    path = write_directory(open_source("sample:tiny-llama"), tmp_path / "m", shard_bytes=100_000)
    files = sorted(path.glob("*.safetensors"))
    files[1].write_bytes(files[0].read_bytes())
    with pytest.raises(InputError, match="expected each tensor in one shard, found"):
        open_source(str(path))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_pipe_is_not_waited_for(name: str, model: Path) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    if name == "generation_config.json":
        with open_source(str(model)) as source:
            assert source.generation_config is None
        return
    with pytest.raises(InputError, match="my-model"):
        open_source(str(model))


def test_a_gguf_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")
    with pytest.raises(InputError, match="expected a file with weights, found something else"):
        open_source(str(tmp_path / "a.gguf"))


UNQUANTIZED: list[dict[str, object]] = [
    {"quantization_config": None},
    {"text_config": {"quantization_config": None}},
    {"compression_config": {"quant_method": "compressed-tensors"}},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False}},
]


@pytest.mark.parametrize("fields", UNQUANTIZED, ids=str)
def test_unquantized_as_transformers_takes_it(model: Path, fields: dict[str, object]) -> None:
    edit(model / "config.json", **fields)
    with open_source(str(model)) as source:
        assert source.config["model_type"] == "llama"


QUANTIZED: list[dict[str, object]] = [
    {"quantization_config": {}},
    {"quantization_config": "awq"},
    {"quantization_config": {"bits": 4}},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
]


@pytest.mark.parametrize("fields", QUANTIZED, ids=str)
def test_quantized_weights_are_refused(model: Path, fields: dict[str, object]) -> None:
    edit(model / "config.json", **fields)
    with pytest.raises(InputError, match="expected unquantized weights, found weights quantized by"):
        open_source(str(model))


@pytest.mark.parametrize("found", [[True], "LlamaForCausalLM", [None], {}, [["LlamaForCausalLM"]]], ids=str)
def test_architectures_that_are_no_names(model: Path, found: object) -> None:
    edit(model / "config.json", architectures=found)
    with pytest.raises(InputError, match="expected `architectures` to be a list of names"):
        open_source(str(model))


def remove(*names: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return change


def put(name: str, text: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(text) and None


def index(*place: str) -> Callable[[Path], None]:
    """Leaves an index with one entry, and the weights under another name."""

    def change(path: Path) -> None:
        (path / "model.safetensors").rename(path / "whole.safetensors")
        fields = {"weight_map": {place[0]: place[1]}} if place else {}
        (path / "model.safetensors.index.json").write_text(json.dumps(fields))

    return change


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
    "adapter beside": (put("adapter_config.json", "{}"), "expected a model or an adapter, found both", "merge"),
    "adapter": (only("adapter_config.json"), "expected a whole model, found an adapter", "merge"),
    "no tokenizer": (remove("tokenizer.json"), "found no tokenizer", "tokenizer.save_pretrained"),
    "config not JSON": (put("config.json", "{"), "config.json: expected JSON", "fetch it again"),
    "config a list": (put("config.json", "[]"), "expected a JSON object, found list", "fetch it again"),
    "no model_type": (put("config.json", "{}"), "expected a `model_type`, found none", "transformers"),
    "quantized": (
        put("config.json", '{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}'),
        "found weights quantized by 'gptq'",
        "original model",
    ),
    "tokenizer not JSON": (put("tokenizer.json", "nope"), "tokenizer.json: expected JSON", None),
    "tokenizer without model": (put("tokenizer.json", "{}"), "expected a tokenizer with a `model`", None),
    "shard missing": (
        index("w", "model-1.safetensors"),
        "expected the shard model-1.safetensors, found none",
        "download it",
    ),
    "shard elsewhere": (
        index("w", "../model.safetensors"),
        "expected files beside it, found '../model.safetensors'",
        "into the index",
    ),
    "tensor not in its shard": (
        index("w", "whole.safetensors"),
        "expected tensor 'w' in whole.safetensors",
        "of another model",
    ),
    "shard of a long name": (index("w", "m" * 300), "expected files beside it, found 'mmm", "into the index"),
    "shard of no text": (index("w", "\ud800"), "expected files beside it, found '\\ud800'", "into the index"),
    "shard with a zero": (index("w", "m\0"), "expected files beside it", "into the index"),
    "no weight map": (index(), "expected a weight_map", None),
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
