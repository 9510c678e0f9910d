"""Stop strings against transformers' own criterion, and against a search of the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

import runtime_edge
from runtime_edge.detokenize import Detokenizer
from runtime_edge.stops import Answer, Pieces, StopStrings
from tests.runtime_edge import tiny
from tests.runtime_edge.test_detokenize import TOKENIZERS


def byte_level() -> Tokenizer:
    """The tiny tokenizer with tokens of several bytes and added ones, special and not."""
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens(["tool", " call", "ends.", "日本", AddedToken("x\u00e9y", normalized=False)])
    tokenizer.add_special_tokens(["<|im_end|>", "<｜end▁of▁text｜>"])
    return tokenizer


ALL = {**TOKENIZERS, "byte-level": byte_level()}
STOPS = [
    *("<|turn|>", "end", "\n\n", " a", "a<|turn|>b", "日本", "é", "€", "tool call", "ool c", ".<eos>"),
    *("</s>a", "ll w", "s.", "xéy"),
]
TEXTS = [
    *("go on<|turn|>and on", "the end is near", "one\n\ntwo", "is a word", "a<|turn|>b", "a<|turn|>c", "in 日本 it is"),
    *("café au lait", "5 € or 6", "a tool call ends.", "ends.<eos>more", "x</s>a", "tell wo", "<|turn|>", "axéyb"),
]


class Reference:
    """transformers' criterion for one stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: str) -> None:
        pytest.importorskip("transformers", reason="the reference is transformers")
        from transformers import PreTrainedTokenizerFast
        from transformers.generation.stopping_criteria import StopStringCriteria

        self._criterion = StopStringCriteria(PreTrainedTokenizerFast(tokenizer_object=tokenizer), [stop])

    def count(self, prompt: Sequence[int], new: Sequence[int]) -> int | None:
        """How many new tokens are made until the stop string is complete; None where it never is."""
        import torch

        counts = range(1, len(new) + 1)
        ended = (count for count in counts if self._criterion(torch.tensor([[*prompt, *new[:count]]]), None)[0])
        return next(ended, None)


def answered(
    tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int], stops: list[str]
) -> tuple[str, int | None]:
    """The text up to a stop string, and how many tokens were made until it was complete."""
    special = frozenset(index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    answer = Answer(Detokenizer(tokenizer, special, prompt), StopStrings(stops, Pieces(tokenizer), prompt))
    text = ""
    for count, token in enumerate(new, 1):
        text += answer.push(token)
        if answer.is_stopped:
            return text, count
    return text + answer.end(), None


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("stop", STOPS)
def test_the_same_token_ends_an_answer_as_in_transformers(kind: str, stop: str) -> None:
    tokenizer = ALL[kind]
    reference = Reference(tokenizer, stop)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        for cut in (0, 2, len(ids) // 2):
            prompt, new = ids[:cut], ids[cut:]
            given, count = answered(tokenizer, prompt, new, [stop])
            assert count == reference.count(prompt, new), (text, cut)
            if count is None:
                assert given == answered(tokenizer, prompt, new, ["never in there"])[0]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(ALL)))
def test_any_tokens_end_as_in_transformers(data: st.DataObject, kind: str) -> None:
    tokenizer = ALL[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), min_size=2, max_size=12))
    cut = data.draw(st.integers(0, len(ids) - 1))
    raw = tokenizer.decode(ids, skip_special_tokens=False)
    start = data.draw(st.integers(0, max(0, len(raw) - 1)))
    stop = raw[start : start + data.draw(st.integers(1, 6))].replace("\ufffd", "") or "a"
    found = answered(tokenizer, ids[:cut], ids[cut:], [stop])[1]
    assert found == Reference(tokenizer, stop).count(ids[:cut], ids[cut:])


@pytest.mark.parametrize(
    ("prompt", "new", "stops", "text", "count"),
    [
        ("", "go on<|turn|>and", ["<|turn|>"], "go on", 6),
        ("", "go on<|turn|>and", ["n<|turn|>a"], "go o", 7),  # special tokens are text to the search, and have none
        ("", "go on<|turn|>and", ["|turn|>a"], "go on", 7),  # begins within a special token, which has no text
        ("", "a b tool call", ["ool"], "a b t", 5),  # of a token its first characters stay
        ("", "a b tool call", ["l call"], "a b too", 6),
        ("", "ends. now", ["nd"], "e", 1),
        ("say th", "e end", ["the"], "", 1),  # begins in the prompt
        ("say the", " end", ["the"], " end", None),  # is complete in the prompt: nothing new is part of it
        ("", "caf\u00e9s", ["\u00e9"], "caf", 5),  # two bytes
        ("", "xéy", ["\u00e9"], "xéy", None),  # an added token's characters stand for bytes that are no such character
        ("", "abcd", ["cd", "bcd"], "a", 4),  # the earliest of those complete at once
        ("", "abcd", ["bcx", "d"], "abc", 4),
        ("", "ab日本c", ["本c"], "ab日", 4),
    ],
)  # fmt: skip
def test_text_before_a_stop_string(prompt: str, new: str, stops: list[str], text: str, count: int | None) -> None:
    tokenizer = ALL["byte-level"]
    before, after = (tokenizer.encode(one, add_special_tokens=False).ids for one in (prompt, new))
    found = answered(tokenizer, before, after, stops)
    if new == "xéy":
        assert found[1] is None
    else:
        assert found == (text, count)


def test_a_partial_character_after_a_stop_string_delays_nothing() -> None:
    """As in byte-level vocabularies: one token is a full stop and the first bytes of a quotation mark."""
    pieces = {0: b"a", 1: b".\xe2\x80", 2: b"\x9d", 3: b"\xff"}
    stops = StopStrings(["."], pieces.__getitem__)
    assert [stops.push(0), stops.push(1)] == [[0], []]
    assert stops.is_complete
    stops = StopStrings(["\ufffd"], pieces.__getitem__)
    assert [*stops.push(3), *stops.flush()] == [3]
    assert not stops.is_complete


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=10),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1),
)
def test_tokens_are_held_back_until_they_are_certain(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops, lambda token: pieces[token].encode())
    released: list[int] = []
    for token in range(len(pieces)):
        released += matcher.push(token)
        text = "".join(pieces[: token + 1])
        starts = [text.find(stop) for stop in stops if stop in text]
        assert matcher.is_complete == bool(starts)
        given = "".join(pieces[index] for index in released)
        if starts:
            assert given[: len(given) - matcher.cut] == text[: min(starts)]
            return
        assert released == list(range(len(released)))
        held = len(text) - len(given)
        assert not held or any(stop.startswith(text[start:]) for stop in stops for start in range(len(text)))
    assert [*released, *matcher.flush()] == list(range(len(pieces)))


def forever(weights: tiny.Weights, token: int) -> tiny.Weights:
    """Weights of a model that says one token for ever."""
    head = np.zeros_like(weights.head)
    embedding = np.abs(weights.embedding)
    head[:, token] = 1
    return tiny.Weights(embedding, weights.qkv, [np.zeros_like(out) for out in weights.out], head)


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_decoder(tmp_path_factory.mktemp("turns"), weights=forever(tiny.Weights.seeded(), tiny.TURN))


@pytest.mark.parametrize(
    ("prompt", "stop", "count"),
    [("abc", "<|turn|>", 1), ("abc", "turn|><|", 2), ("abc", "c<|turn", 1), ("<|turn|>", "<|turn|><|turn|>", 1)],
)
def test_a_special_token_stops(turns: Path, prompt: str, stop: str, count: int) -> None:
    with runtime_edge.load(turns, threads=1) as model:
        made = model.generate(prompt, max_new_tokens=6, stop=[stop])
        assert (made.token_ids, made.text, made.finish_reason) == ([tiny.TURN] * count, "", "stop")
        assert model.generate(prompt, max_new_tokens=6, stop=["other"]).finish_reason == "length"


def test_a_stop_token_completes_a_stop_string_and_has_no_text(turns: Path) -> None:
    with runtime_edge.load(turns, threads=1) as model:
        made = model.generate("ab", stop=["never"], stop_token_ids=[tiny.TURN])
        assert (made.token_ids, made.text, made.finish_reason) == ([tiny.TURN], "", "stop")
