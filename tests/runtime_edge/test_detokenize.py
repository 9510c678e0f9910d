"""Streamed text equals decoded text, character by character, for the two great families of tokenizers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from runtime_edge.detokenize import Detokenizer
from runtime_edge.tokenizer import BoundedTokenizer
from tests.runtime_edge import tiny

TEXTS = [
    "Hello, world",
    "  two spaces, then \n\n lines\t",
    "naïve café — “quotes”",
    "日本語のテキスト",
    "🙂👩‍👩‍👧 family, then 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "",
    " ",
    "a\ufffdb",
]


def byte_level() -> Tokenizer:
    return tiny.byte_tokenizer()


def sentencepiece(prepend: str = "always") -> Tokenizer:
    """Metaspace, byte fallback, as Llama 2's: a few pieces, all else as bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁▁", *"abcdefghijklmnopqrstuvwxyz,.H", "▁w", "▁wo", "ll", "▁ll"]
    merges = [("▁", "▁"), ("▁", "w"), ("▁w", "o"), ("l", "l"), ("▁", "ll")]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def metaspace() -> Tokenizer:
    """The same pieces with the Metaspace decoder alone."""
    tokenizer = sentencepiece()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    return tokenizer


TOKENIZERS = {"byte-level": byte_level(), "sentencepiece": sentencepiece(), "metaspace": metaspace()}


def special(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(tokenizer.get_added_tokens_decoder())


def streamed(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, special(tokenizer), prompt)
    return [*map(detokenizer.push, new), detokenizer.flush()]


def in_context(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> str:
    before = tokenizer.decode(prompt)
    whole = tokenizer.decode(prompt + new)
    assert whole.startswith(before)
    return whole[len(before) :]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prompt", ["", "a", "Hello wo", "日本", "ends in space "])
def test_pieces_join_to_what_decoding_all_gives(kind: str, text: str, prompt: str) -> None:
    tokenizer = TOKENIZERS[kind]
    before, new = encode(tokenizer, prompt), encode(tokenizer, text)
    pieces = streamed(tokenizer, before, new)
    assert "".join(pieces) == in_context(tokenizer, before, new)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30), prompt=st.text(max_size=12), kind=st.sampled_from(sorted(TOKENIZERS)))
def test_any_text_joins(text: str, prompt: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    before, new = encode(tokenizer, prompt), encode(tokenizer, text)
    assert "".join(streamed(tokenizer, before, new)) == in_context(tokenizer, before, new)


@settings(max_examples=150, deadline=None)
@given(data=st.lists(st.integers(0, 258), max_size=40))
def test_any_bytes_join_in_a_byte_level_tokenizer(data: list[int]) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    assert "".join(streamed(tokenizer, [], data)) == tokenizer.decode(data)


def test_characters_come_as_soon_as_they_are_whole() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    assert streamed(tokenizer, [], encode(tokenizer, "é€x")) == ["", "é", "", "", "€", "x", ""]
    tokenizer = TOKENIZERS["sentencepiece"]
    assert streamed(tokenizer, encode(tokenizer, "a"), encode(tokenizer, "€€x")[1:])[:7] == [
        "",
        "",
        "€",
        "",
        "",
        "€",
        "x",
    ]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_incomplete_character_at_the_end_is_marked(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    new = encode(tokenizer, "ab€")[:-1]
    pieces = streamed(tokenizer, [], new)
    assert "".join(pieces) == tokenizer.decode(new)
    assert pieces[-1].startswith("\ufffd")
    assert "".join(pieces[:-1]).strip() == "ab"


def test_a_word_after_a_special_token_keeps_its_space_as_in_context() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    word = tokenizer.token_to_id("▁wo")
    assert "".join(streamed(tokenizer, [1], [word])) == "wo"  # the first word of all
    prompt = [1, *encode(tokenizer, "hello"), 2, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert "".join(streamed(tokenizer, prompt, [word, 2, word])) == " wo wo"


def test_special_tokens_do_not_break_a_character() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    first, second = encode(tokenizer, "é")
    assert (
        "".join(streamed(tokenizer, [], [first, tiny.TURN, second]))
        == "é"
        == tokenizer.decode([first, tiny.TURN, second])
    )


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", ["é", "日本語", "🙂"])
@pytest.mark.parametrize("first", ["", "a", "ab", "abc"])
def test_a_long_prompt_of_many_bytes_a_character(kind: str, text: str, first: str) -> None:
    """Wherever the window of the prompt begins, it must not begin within a character."""
    tokenizer = TOKENIZERS[kind]
    before, new = encode(tokenizer, first + 9 * text), encode(tokenizer, "a" + text + text)[-2 * len(text.encode()) :]
    pieces = streamed(tokenizer, before, new)
    assert "".join(pieces) == text + text
    assert "".join(pieces[: len(new) // 2]) == text


def test_a_prompt_that_ends_within_a_character() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = encode(tokenizer, "a€b")
    assert "".join(streamed(tokenizer, ids[:2], ids[2:])) == "€b"


def test_a_whole_character_before_a_broken_one_in_a_run_of_bytes_stays() -> None:
    """Here decoding all would mark the whole run; what was given out cannot be taken back."""
    tokenizer = TOKENIZERS["sentencepiece"]
    new = encode(tokenizer, "a€€")[:-2]
    assert "".join(streamed(tokenizer, [], new)) == "a€\ufffd"
    assert tokenizer.decode(new) == "a" + 4 * "\ufffd"


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("unit", ["a", "é", "broken", "special"])
def test_work_is_linear(kind: str, unit: str) -> None:
    tokenizer = TOKENIZERS[kind]
    byte = {"byte-level": encode(tokenizer, "é")[0], "sentencepiece": 3 + 0xC3}[kind]
    new = {"broken": [byte], "special": [sorted(special(tokenizer))[0]]}.get(unit) or encode(tokenizer, unit)

    class Counted:
        decoded = 0

        def decode(self, ids: list[int], **options: bool) -> str:
            self.decoded += len(ids)
            return str(tokenizer.decode(ids, **options))

    def work(count: int) -> int:
        counted = Counted()
        detokenizer = Detokenizer(counted, special(tokenizer))  # type: ignore[arg-type]
        for token in (new * count)[:count]:
            detokenizer.push(token)
        detokenizer.flush()
        return counted.decoded

    assert work(2000) <= 3 * work(1000)  # 4 where it is quadratic, 2 where it is linear; special tokens are skipped


def test_the_window_stays_small() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    detokenizer = Detokenizer(tokenizer, special(tokenizer), list(range(200)))
    for token in np.random.default_rng(0).integers(0, 256, 3000):
        detokenizer.push(int(token))
        assert len(detokenizer._window) <= 20


# What transformers 5 replaces in decoded text, in this order.
CLEANED = ((" .", "."), (" ?", "?"), (" ' ", "'"), (" n't", "n't"), (" 's", "'s"))


def cleaning() -> BoundedTokenizer:
    """WordPiece, whose decoder replaces texts once tokens are joined, as that of a Chinese GPT-2."""
    words = ["do", "n", "'", "t", "s", ".", "?", "it", "##s", "n't"]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="it"))
    stages = [decoders.WordPiece("##", False), decoders.Fuse(), *(decoders.Replace(a, b) for a, b in CLEANED)]
    tokenizer.decoder = decoders.Sequence(stages)
    return BoundedTokenizer(tokenizer.to_str().encode(), "tokenizer.json")


def streamed_and_replaced(tokenizer: BoundedTokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer.joining, frozenset(), replacements=tokenizer.replacements)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


@given(st.lists(st.integers(0, 9), max_size=40))
@settings(max_examples=200, deadline=None)
def test_text_that_is_replaced_once_it_is_joined_is_held_back(ids: list[int]) -> None:
    tokenizer = cleaning()
    expected = tokenizer.joining.decode(ids)
    for pattern, content in CLEANED:
        expected = expected.replace(pattern, content)
    assert tokenizer.decode(ids) == expected
    assert "".join(streamed_and_replaced(tokenizer, ids)) == expected


def test_replaced_text_comes_early() -> None:
    tokenizer = cleaning()
    assert tokenizer.replacements == CLEANED
    # " n" and " '" may begin what is replaced: they wait for the next token, words do not.
    assert streamed_and_replaced(tokenizer, [7, 0, 1, 2, 3, 5]) == ["it", " do", "", "", "n't", ".", ""]
