"""What AutoTokenizer makes of a directory's files is what the artifact gets, class by class; the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from leptonc.errors import InputError
from leptonc.sources.hf_tokenizer import read_tokenizer, read_written
from leptonc.sources.tokenizer_check import check_tokenizer
from runtime_edge.tokenizer import BoundedTokenizer
from sample_models.tiny_tokenizer import tokenizer_json

Json = dict[str, Any]
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
BERT = {"tokenizer_class": "BertTokenizer"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "Hello", "World", "cafe", "café", "'", "t"]
TEXTS = (
    "Hello World", " hello", "a <tool> b <note>c", "café cafe\u0301", "hello 你好", "<s>a</s>", "hello , n ' t .",
    "123", "",
)  # fmt: skip


def byte_level() -> Json:
    found: Json = json.loads(tokenizer_json())
    return found


def word_piece() -> Json:
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate([*WORDS, "你", "."])}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece("##")
    return read(tokenizer)


def pieces() -> list[str]:
    letters = ["▁", *"helowrdHW", "▁h", "▁he"]
    return ["<pad>", "</s>", "<s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]


def sentence_piece() -> Json:
    """As Llama 2's tokenizer.json was written before transformers 5: the prefix is the normalizer's."""
    merges = [("▁", "h"), ("▁h", "e")]
    vocab = {piece: index for index, piece in enumerate(pieces())}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(stages)
    return read(tokenizer)


def unigram() -> Json:
    scored = [(piece, -float(index)) for index, piece in enumerate(pieces()) if not piece.startswith("<0x")]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace()
    return read(tokenizer)


def read(tokenizer: Tokenizer) -> Json:
    found: Json = json.loads(tokenizer.to_str())
    return found


def token(content: str, **flags: bool) -> Json:
    plain = dict.fromkeys(("special", "lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": content} | plain | flags


def write(path: Path, model_type: str, tokenizer: Json | None, **files: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if tokenizer is not None:
        files["tokenizer"] = tokenizer
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / (name.replace("_txt", ".txt") if name.endswith("_txt") else f"{name}.json")).write_text(text)
    return path


def configured(config: Json, **fields: Any) -> Json:
    return {"tokenizer_config": config | fields}


ADDED = {"512": token("<tool>", special=True), "513": token("<note>")}
STRIPPING = {
    "512": token("<tool>", lstrip=True, rstrip=True), "513": token("<note>", single_word=True, normalized=True),
}  # fmt: skip
HOLES = {"700": token("<tool>"), "600": token("<note>")}
# Model type, tokenizer.json, the other files: in all of these AutoTokenizer changes what tokenizer.json says.
CHANGED: dict[str, tuple[str, Callable[[], Json], dict[str, Any]]] = {
    "added_tokens_decoder": ("llama", byte_level, configured(FAST, added_tokens_decoder=ADDED)),
    "flags of added tokens": ("llama", byte_level, configured(FAST, added_tokens_decoder=STRIPPING)),
    "ids with holes": ("llama", byte_level, configured(FAST, added_tokens_decoder=HOLES)),
    "one id twice": ("llama", byte_level, configured(FAST, added_tokens_decoder={"3": token("<tool>")})),
    "added_tokens.json": ("llama", byte_level, configured(FAST) | {"added_tokens": {"<tool>": 512, "<note>": 513}}),
    "special_tokens_map.json": (
        "llama", byte_level, configured(FAST) | {"special_tokens_map": {"additional_special_tokens": ["<tool>"]}},
    ),
    "extra_special_tokens": ("llama", byte_level, configured(FAST, extra_special_tokens={"tool_token": "<tool>"})),
    "a bos that is not in the file": ("llama", byte_level, configured(FAST, bos_token="<note>")),
    "Bert, cased": ("bert", word_piece, configured(BERT, do_lower_case=False)),
    "Bert, accents": ("bert", word_piece, configured(BERT, strip_accents=False)),
    "Bert, Chinese": ("bert", word_piece, configured(BERT, tokenize_chinese_chars=False)),
    "GPT2, a space before": ("gpt2", byte_level, configured(GPT2, add_prefix_space=True)),
    "Roberta, a space before": (
        "roberta", byte_level, configured({"tokenizer_class": "RobertaTokenizer"}, add_prefix_space=True),
    ),
    "Qwen2": ("qwen2", byte_level, configured({"tokenizer_class": "Qwen2Tokenizer"})),
    "Llama": ("llama", sentence_piece, configured({"tokenizer_class": "LlamaTokenizer"})),
    "Gemma": ("gemma", sentence_piece, configured({"tokenizer_class": "GemmaTokenizer"})),
    "T5": ("t5", unigram, configured({"tokenizer_class": "T5Tokenizer"}, extra_ids=0)),
    "clean_up_tokenization_spaces": ("bert", word_piece, configured(BERT, clean_up_tokenization_spaces=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_the_artifact_gets_what_transformers_makes_of_the_files(name: str, tmp_path: Path) -> None:
    model_type, tokenizer, files = CHANGED[name]
    path = write(tmp_path / "m", model_type, tokenizer(), **files)
    reference = AutoTokenizer.from_pretrained(path, local_files_only=True)
    found = read_tokenizer(path)
    ours, alone = BoundedTokenizer(found.data, "t"), Tokenizer.from_file(str(path / "tokenizer.json"))
    changed = False
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == reference(text)["input_ids"]
        assert ours.encode(text, add_special_tokens=False).ids == reference(text, add_special_tokens=False)["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)
        changed |= alone.encode(text).ids != ids or alone.decode(ids) != reference.decode(ids, skip_special_tokens=True)
    assert changed  # tokenizer.json alone says something else
    named = {key: value for key, value in found.config.items() if key.endswith("_token")}
    assert named == reference.special_tokens_map
    assert read_tokenizer(path) == found  # equal files give equal bytes


@pytest.mark.parametrize(
    "config",
    [
        None, {}, FAST, {"tokenizer_class": "NoSuchTokenizer"}, {"tokenizer_class": "LlamaTokenizer"},
        FAST | {"clean_up_tokenization_spaces": True, "model_max_length": 1e30},
    ],
)  # fmt: skip
def test_a_file_that_transformers_leaves_alone_keeps_its_bytes(config: Json | None, tmp_path: Path) -> None:
    files = {} if config is None else {"tokenizer_config": config}
    path = write(tmp_path / "m", "llama", byte_level(), **files)
    assert read_tokenizer(path).data == (path / "tokenizer.json").read_bytes()


def test_settings_that_the_runtime_needs(tmp_path: Path) -> None:
    config = {"tokenizer_class": "BertTokenizer", "truncation_side": "left", "model_max_length": 77}
    found = read_tokenizer(write(tmp_path / "m", "bert", word_piece(), tokenizer_config=config)).config
    assert (found["truncation_side"], found["model_max_length"]) == ("left", 77)
    assert "token_type_ids" in found["model_input_names"]


def test_a_class_that_is_chosen_by_the_id_on_the_hub(tmp_path: Path) -> None:
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
    path = write(tmp_path / "m", "gpt2", byte_level(), tokenizer_config=config)
    original = (path / "tokenizer.json").read_bytes()
    assert read_tokenizer(path).data != original
    # transformers reads tokenizer.json alone for these ids, whatever the class says.
    assert read_tokenizer(path, hub_id="deepseek-ai/deepseek-coder-1.3b-base").data == original


VOCABULARY = "\n".join(WORDS) + "\n"
REFUSED: dict[str, tuple[str, Json | None, dict[str, Any], str]] = {
    "code of its own": (
        "mystery", byte_level(), {"tokenizer_config": {"auto_map": {"AutoTokenizer": ["code.MyTokenizer", None]}}},
        "found one that is code of the model's own",
    ),
    "a class in Python": (
        "t5", byte_level(), {"tokenizer_config": {"tokenizer_class": "ByT5Tokenizer"}}, "found ByT5Tokenizer, which",
    ),
    "a class without files": (
        "t5", None, {"tokenizer_config": {"tokenizer_class": "ByT5Tokenizer"}}, "found ByT5Tokenizer, which",
    ),
    "a class for words of Japanese": (
        "bert", None, {"tokenizer_config": {"tokenizer_class": "BertJapaneseTokenizer"}, "vocab_txt": VOCABULARY},
        "found BertJapaneseTokenizer, which",
    ),
    "special tokens that are split": (
        "llama", byte_level(), configured(FAST, split_special_tokens=True), "found split_special_tokens",
    ),
    "files of another class": (
        "llama", None, {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}, "vocab_txt": VOCABULARY},
        "expected tokenizer.model or tokenizer.json for LlamaTokenizer, found none",
    ),
    "dropout": (
        "llama", byte_level() | {"model": byte_level()["model"] | {"dropout": 0.1}}, {}, "expected no dropout",
    ),
    "a hostile normalizer": (
        "llama", byte_level() | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, {},
        "expected a trie and texts",
    ),
    "an added token without an id": (
        "llama", byte_level(), {"tokenizer_config": {"added_tokens_decoder": {"x": token("a")}}},
        "expected a tokenizer that transformers can load",
    ),
    "a side that is none": (
        "llama", byte_level(), {"tokenizer_config": {"truncation_side": "top"}}, "Truncation side should be",
    ),
    "infilling, which is done in Python": (
        "llama", sentence_piece(), configured({"tokenizer_class": "CodeLlamaTokenizer"}), "tokens of 'A <FILL_ME> b'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_over_is_refused(name: str, tmp_path: Path) -> None:
    model_type, tokenizer, files, message = REFUSED[name]
    path = write(tmp_path / "m", model_type, tokenizer, **files)
    with pytest.raises(InputError) as caught:
        read_tokenizer(path)
    assert message in caught.value.message


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    path = write(tmp_path / "m", "bert", None, tokenizer_config=config, vocab_txt=VOCABULARY)
    found = BoundedTokenizer(read_tokenizer(path).data, "t")
    assert found.encode("Hello world").tokens == ["[CLS]", "Hello", "world", "[SEP]"]


def test_vocabulary_and_merges(tmp_path: Path) -> None:
    model = byte_level()["model"]
    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"])
    path = write(tmp_path / "m", "gpt2", None, vocab=model["vocab"], merges_txt=merges)
    expected = Tokenizer.from_str(tokenizer_json().decode()).encode("Hello World, don't!").ids
    assert BoundedTokenizer(read_tokenizer(path).data, "t").encode("Hello World, don't!").ids == expected


def test_the_check_says_what_differs(tmp_path: Path) -> None:
    path = write(tmp_path / "m", "llama", byte_level())
    reference = AutoTokenizer.from_pretrained(path, local_files_only=True)
    check_tokenizer(BoundedTokenizer(tokenizer_json(), "m"), reference, "m")
    for change, message in (
        ({"normalizer": {"type": "Lowercase"}}, r"m: tokens of 'A' \(with special .* \[73\] as .*found \[105\]"),
        ({"decoder": None}, "m: text of the tokens of ' ': expected ' ' as transformers has it, found 'Ġ'"),
        ({"added_tokens": byte_level()["added_tokens"][:-1]}, r"tokens of '<\|unk\|>'.*expected \[7\]"),
    ):
        with pytest.raises(InputError, match=message):
            check_tokenizer(BoundedTokenizer(json.dumps(byte_level() | change).encode(), "m"), reference, "m")


def test_a_directory_that_was_written_here_is_read_as_it_is(tmp_path: Path) -> None:
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "model_input_names": ["input_ids"]}
    path = write(tmp_path / "m", "qwen2", byte_level(), tokenizer_config=config)
    found = read_written(path)
    assert found.data == (path / "tokenizer.json").read_bytes()
    assert found.config == {"eos_token": "<|im_end|>", "model_input_names": ["input_ids"]}


def test_what_libraries_print_is_kept_from_the_user(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Transformers advises on lengths and clean-up, and its reading of an old special_tokens_map.json prints."""
    old = {"eos_token": {"__type": "AddedToken"} | token("<|endoftext|>", special=True)}
    config = configured(FAST, model_max_length=16, clean_up_tokenization_spaces=True)
    path = write(tmp_path / "m", "llama", byte_level(), special_tokens_map=old, **config)
    assert read_tokenizer(path).config["eos_token"] == "<|endoftext|>"
    assert capfd.readouterr() == ("", "")
    AutoTokenizer.from_pretrained(path, local_files_only=True)
    assert "unknown kwarg" in capfd.readouterr().out  # which is what was kept


def test_a_config_at_which_the_tokenizer_fails_is_told_of_as_such(tmp_path: Path) -> None:
    path = write(tmp_path / "m", "bert", word_piece(), **configured(BERT))
    config = {"model_type": "bert", "num_labels": 1, "problem_type": "single_label_classification"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json: expected a config that transformers takes, found: `problem_t"):
        read_tokenizer(path)


@pytest.mark.parametrize("length", ["512", -1, 0])
def test_a_length_that_is_none(length: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "m", "bert", word_piece(), **configured(BERT, model_max_length=length))
    with pytest.raises(InputError, match="expected model_max_length to be a number above 0, found") as caught:
        read_tokenizer(path)
    assert "tokenizer_config.json" in str(caught.value.hint)
