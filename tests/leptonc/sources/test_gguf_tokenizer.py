"""Tokenizers made of GGUF vocabularies, of both kinds, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer

from leptonc.errors import InputError
from leptonc.sources.gguf_file import GgufFile
from leptonc.sources.gguf_pretokenizers import PRE_TOKENIZERS
from leptonc.sources.gguf_tokenizer import build_tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
BYTES = [(f"<0x{byte:02X}>", 0.0, _BYTE) for byte in range(256)]
CHARS = [(char, -100.0 - index, _NORMAL) for index, char in enumerate("▁abcdehlo12é")]
PIECES = [("he", -1.0, _NORMAL), ("ll", -2.0, _NORMAL), ("▁he", -3.0, _NORMAL), ("▁hell", -4.0, _NORMAL)]
OWN = [("  ", -1000.0, _USER), ("<b>", -1000.0, _USER), ("\n\n", -1000.0, _USER)]
CONTROL = [("<unk>", 0.0, _UNKNOWN), ("<s>", 0.0, _CONTROL), ("</s>", 0.0, _CONTROL)]


def sentencepiece(tmp_path: Path, arch: str = "llama", **flags: bool) -> Tokenizer:
    # Vocabularies with a prefix space have no tokens for runs of spaces.
    own = [row for row in OWN if row[0].strip(" ") or not flags.get("add_space_prefix", True)]
    rows = CONTROL + own + BYTES + PIECES + CHARS
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", arch)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([row[0] for row in rows])
    writer.add_token_scores([row[1] for row in rows])
    writer.add_token_types([row[2] for row in rows])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, value in flags.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    return _finish(writer, tmp_path, arch)


def byte_level(
    tmp_path: Path, pre: str | None, tokens: list[tuple[str, int]], merges: list[str], **ids: Any
) -> Tokenizer:
    alphabet = sorted(gpt2_alphabet())
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in tokens] + alphabet)
    writer.add_token_types([kind for _, kind in tokens] + [_NORMAL] * len(alphabet))
    writer.add_token_merges(merges)
    for key, value in ids.items():
        (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(f"tokenizer.ggml.{key}", value)
    return _finish(writer, tmp_path, "llama")


def gpt2_alphabet() -> set[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())


def _finish(writer: gguf.GGUFWriter, tmp_path: Path, arch: str) -> Tokenizer:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with (tmp_path / "m.gguf").open("ab") as file:
        file.write(b"\0" * 64)
    return Tokenizer.from_buffer(build_tokenizer(GgufFile([tmp_path / "m.gguf"]), arch)[0])


def test_sentencepiece_with_a_prefix_space(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    assert tokenizer.encode("hello").tokens == ["<s>", "▁hell", "o"]
    assert tokenizer.encode(" hello").tokens == ["<s>", "▁", "▁hell", "o"]
    assert tokenizer.encode("a hello").tokens == ["<s>", "▁", "a", "▁hell", "o"]
    for text in ("hello", " hello", "abc hello 12", "日本é\n"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_sentencepiece_without_a_prefix_space(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path, add_space_prefix=False, add_bos_token=False)
    assert tokenizer.encode("hello").tokens == ["he", "ll", "o"]
    assert tokenizer.encode(" hello").tokens == ["▁hell", "o"]
    # The author's own tokens are whole wherever they stand; a run of spaces is one of them.
    assert tokenizer.encode("a<b>\n\nb").tokens == ["a", "<b>", "\n\n", "b"]
    assert tokenizer.encode("a  b").tokens == ["a", "▁▁", "b"]
    assert tokenizer.encode("日").tokens == ["<0xE6>", "<0x97>", "<0xA5>"]
    for text in ("hello", " hello", "  a<b>  日é\t\n\n\n12  "):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_control_tokens_are_special_and_whole(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path, add_space_prefix=False, add_eos_token=True)
    encoded = tokenizer.encode("a</s>b")
    assert encoded.tokens == ["<s>", "a", "</s>", "b", "</s>"]
    assert tokenizer.decode(encoded.ids) == "ab"
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == "<s>a</s>b</s>"
    assert tokenizer.encode("a<b>", "b").type_ids == [0, 0, 0, 0, 1, 1, 1]


def test_phi3s_control_tokens_take_the_space_after_them(tmp_path: Path) -> None:
    phi3, llama = (sentencepiece(tmp_path, arch) for arch in ("phi3", "llama"))
    space, letter = phi3.token_to_id("▁"), phi3.token_to_id("a")
    assert phi3.encode("</s> a").ids == [1, 2, space, letter]
    assert llama.encode("</s> a").ids == [1, 2, space, space, letter]


def test_texts_that_are_control_tokens_whatever_the_file_says(tmp_path: Path) -> None:
    rows = [("<|im_end|>", _NORMAL), ("<fim_prefix>", _UNUSED), ("</s>", _USER), ("<|message|>", _CONTROL)]
    tokenizer = byte_level(tmp_path, "gpt-2", rows, [])
    ids = tokenizer.encode("<|im_end|><fim_prefix></s><|message|>").ids
    assert ids == [0, 1, 2, 3]
    assert tokenizer.decode(ids) == "</s><|message|>"


def test_ids_that_the_file_does_not_name(tmp_path: Path) -> None:
    rows = [(f"<{index}>", _NORMAL) for index in range(12)]
    assert byte_level(tmp_path, "llama-bpe", rows, []).encode("").tokens == ["<11>"]
    assert byte_level(tmp_path, "gpt-2", rows, []).encode("").tokens == []
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([row[0] for row in CONTROL + BYTES + CHARS])
    writer.add_token_scores([row[1] for row in CONTROL + BYTES + CHARS])
    writer.add_token_types([row[2] for row in CONTROL + BYTES + CHARS])
    assert _finish(writer, tmp_path, "llama").encode("a").tokens == ["<s>", "▁", "a"]


def test_tokens_without_text_have_a_name(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, "gpt-2", [("", _UNUSED), ("", _UNUSED)], [])
    assert [tokenizer.id_to_token(index) for index in range(2)] == ["[EMPTY_0]", "[EMPTY_1]"]


SPLITS = {  # how "It's 1234 x!\n\n y" is cut, the pre-tokenizer being all that differs
    "gpt-2": ["It", "'s", "Ġ1234", "Ġx", "!", "Ċ", "Ċ", "Ġy"],
    "smollm": ["It", "'s", "Ġ", "1", "2", "3", "4", "Ġx", "!", "ĊĊ", "Ġy"],
    "llama-bpe": ["It", "'s", "Ġ", "123", "4", "Ġx", "!ĊĊ", "Ġy"],
    "qwen2": ["It", "'s", "Ġ", "1", "2", "3", "4", "Ġx", "!ĊĊ", "Ġy"],
    "default": ["It", "'", "s", "Ġ", "123", "4", "Ġx", "!", "ĊĊ", "Ġy"],
    "tekken": ["It", "'s", "Ġ", "1", "2", "3", "4", "Ġx", "!ĊĊ", "Ġy"],
    "gpt-4o": ["It's", "Ġ", "123", "4", "Ġx", "!ĊĊ", "Ġy"],
}


@pytest.mark.parametrize("pre", SPLITS)
def test_pre_tokenizers_cut_as_the_models_do(pre: str, tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, pre, [], [], add_bos_token=False)
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("It's 1234 x!\n\n y")]
    if pre == "gpt-2":
        pieces = [part for piece in pieces for part in (["Ċ", "Ċ"] if piece == "ĊĊ" else [piece])]
    assert pieces == SPLITS[pre]


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_is_accepted_and_loses_nothing(pre: str, tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, pre, [], [], add_bos_token=False)
    for text in ("Hello  world\n\n\t12345 it's 日本 é🦙 <|x|>", " ", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the pre-tokenizer 'klingon' is not supported"):
        byte_level(tmp_path, "klingon", [], [])


def test_merges_specials_and_fillers_of_a_byte_level_vocabulary(tmp_path: Path) -> None:
    tokens = [("<|im_start|>", _CONTROL), ("<think>", _USER), ("ab", _NORMAL), ("abc", _NORMAL), ("[PAD4]", _UNUSED)]
    tokenizer = byte_level(tmp_path, "gpt-2", tokens, ["a b", "ab c"], bos_token_id=0)
    assert tokenizer.encode("abcab<think>[PAD4]").tokens[:3] == ["abc", "ab", "<think>"]
    assert tokenizer.encode("<|im_start|>ab").ids == [0, 2]  # no bos where the file does not ask for one
    assert tokenizer.decode([0, 1, 2]) == "<think>ab"
    assert tokenizer.token_to_id("[PAD4]") is None


def test_llama3_takes_whole_words_and_begins_with_bos(tmp_path: Path) -> None:
    tokens = [("<|begin_of_text|>", _CONTROL), ("cab", _NORMAL)]  # no merges lead to "cab"
    assert byte_level(tmp_path, "llama-bpe", tokens, [], bos_token_id=0).encode("cab").ids == [0, 1]
    assert byte_level(tmp_path, "gpt-2", tokens, [], bos_token_id=0).encode("cab").tokens == ["c", "a", "b"]


def test_qwen2_normalizes_to_composed_characters(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, "qwen2", [], [])
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids


def test_repeated_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="distinct tokens"):
        byte_level(tmp_path, "gpt-2", [("ab", _NORMAL), ("ab", _NORMAL)], [])
