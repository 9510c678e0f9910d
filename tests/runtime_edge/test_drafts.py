"""Drafts: what is looked up, how much of it is checked, and that an answer is the same with them and without."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_edge
from runtime_edge.backends.onnxruntime import PREFILL_LEAST
from runtime_edge.cache import TokenCache
from runtime_edge.drafts import MOST, Lookup, Steps
from runtime_edge.errors import RequestWarning
from tests.runtime_edge import tiny

VOCAB = 16
PROMPT = [int(token) for token in np.random.default_rng(1).integers(0, 256, 40)]
COUNT = 200


def naive(token_ids: Sequence[int]) -> int | None:
    """Where the newest 3 tokens, or else the newest 2, went on at their last occurrence; by searching all the text."""
    for count in (3, 2):
        newest = token_ids[-count:]
        for end in range(len(token_ids) - 1, count - 1, -1):
            if len(newest) == count and token_ids[end - count : end] == newest:
                return end
    return None


@pytest.mark.parametrize("vocab", [2, 3, 8])
def test_the_index_finds_what_a_search_finds(vocab: int) -> None:
    text = [int(token) for token in np.random.default_rng(vocab).integers(0, vocab, 300)]
    lookup = Lookup(text[:5])
    for length in range(5, len(text)):
        lookup.push(text[length])
        lookup._right = 0.99  # long drafts
        at, so_far = naive(text[: length + 1]), text[: length + 1]
        expected: list[int] = []
        for index in range(6 if at is not None else 0):
            assert at is not None
            expected.append((so_far + expected)[at + index])  # a copy may run into itself
        assert lookup.draft(6) == expected


@pytest.mark.parametrize("text", [[], [1], [1, 1], [1, 2, 3, 4, 1], [1, 2, 3, 2]])
def test_without_an_earlier_pair_there_is_no_draft(text: list[int]) -> None:
    assert Lookup(text).draft(8) == []


def test_a_first_draft_is_of_one_token_and_right_guesses_make_it_longer() -> None:
    text = list(range(12))
    lookup = Lookup(text)
    lengths = []
    for token in text:
        lookup.push(token)
        lengths.append(len(lookup.draft(MOST)))
    # As long as the share that was right, to the power of the length, is 0.5 or more.
    assert lengths == [0, 1, 1, 1, 2, 3, 3, 4, 6, 7, 8, 8]
    assert lookup.draft(3) == [0, 1, 2]  # a place where it ends goes on with the copy
    assert lookup.draft(0) == []


def test_wrong_guesses_end_drafts_and_right_ones_bring_them_back() -> None:
    lookup = Lookup([1, 2, 3, 1, 2])
    assert lookup.draft(8) == [3]
    lookup.push(4)  # a wrong guess
    for token in (1, 2, 5, 1, 2):
        lookup.push(token)
    assert lookup.draft(8) == []  # found, and not trusted
    text = list(range(6, 16))
    for token in text:
        lookup.push(token)
    lengths = []
    for token in text:
        lookup.push(token)
        lengths.append(len(lookup.draft(8)))
    assert lengths[:3] == [0, 0, 0]
    assert lengths[-1] > 1


class Scripted:
    """A decoder's state whose next token follows from the position alone, and which keeps what it was asked."""

    def __init__(self, script: Sequence[int], prompt: Sequence[int], most_drafts: int = 14) -> None:
        self.chunk = 512
        self.most_drafts = most_drafts
        self.cache = TokenCache(10_000)
        self.cache.token_ids.extend(prompt)
        self.script = script
        self.start = len(prompt)
        self.runs: list[int] = []

    def _row(self, position: int) -> np.ndarray:
        row = np.zeros(VOCAB, np.float32)
        row[self.script[position + 1 - self.start]] = 1
        return row

    def step(self, token_id: int) -> np.ndarray:
        self.runs.append(1)
        self.cache.token_ids.append(token_id)
        return self._row(len(self.cache.token_ids) - 1)

    def all_logits(self, token_ids: Sequence[int], out: np.ndarray) -> None:
        self.runs.append(len(token_ids))
        assert out.shape == (len(token_ids), VOCAB)
        for index, token_id in enumerate(token_ids):
            self.cache.token_ids.append(token_id)
            out[index] = self._row(len(self.cache.token_ids) - 1)


def follow(state: Scripted, prompt: list[int], most: int) -> tuple[list[int], Steps]:
    """Makes the script's tokens through `Steps`, with the cache checked after each."""
    steps = Steps(state, VOCAB, prompt, most)  # type: ignore[arg-type]
    made = [state.script[0]]
    while len(made) < len(state.script):
        logits = steps.after(made[-1], len(state.script) - len(made) - 1)
        assert state.cache.token_ids[: len(prompt) + len(made)] == prompt + made
        made.append(int(logits.argmax()))
    steps.close()
    assert state.cache.token_ids == prompt + made[:-1]
    return made, steps


def test_a_text_that_repeats_takes_few_runs() -> None:
    prompt = list(range(12))
    script = prompt * 5
    state = Scripted(script, prompt)
    made, steps = follow(state, prompt, MOST)
    assert made == script
    assert len(state.runs) < len(script) / 4
    assert max(state.runs) == 1 + MOST
    assert len(state.runs) + steps.accepted == len(script) - 1  # each token but the first is of a run, or was drafted
    assert sum(state.runs) == len(state.runs) + steps.drafted
    assert steps.drafted - steps.accepted < MOST


@pytest.mark.parametrize("seed", range(4))
def test_a_text_that_breaks_off_is_followed_all_the_same(seed: int) -> None:
    random = np.random.default_rng(seed)
    script: list[int] = []
    while len(script) < 300:  # copies of its own text, of any length, between tokens of chance
        start = int(random.integers(0, max(1, len(script))))
        script += script[start : start + int(random.integers(1, 30))]
        script += random.integers(0, VOCAB, int(random.integers(1, 4))).tolist()
    state = Scripted(script, [3, 1])
    made, steps = follow(state, [3, 1], MOST)
    assert made == script
    assert 0 < steps.accepted < steps.drafted
    assert len(state.runs) == len(script) - 1 - steps.accepted


def test_what_never_repeats_is_stepped() -> None:
    script = [int(token) for token in np.random.default_rng(0).permutation(VOCAB)]
    state = Scripted(script, [0])
    made, steps = follow(state, [0], MOST)
    assert (made, steps.drafted) == (script, 0)
    assert state.runs == [1] * (len(script) - 1)


@pytest.mark.parametrize(("most", "most_drafts"), [(0, 14), (8, 0)])
def test_no_draft_is_made_where_none_is_wanted_or_none_can_be_checked(most: int, most_drafts: int) -> None:
    script = [1, 2, 3] * 10
    state = Scripted(script, [1, 2, 3], most_drafts)
    made, steps = follow(state, [1, 2, 3], most)
    assert (made, steps.drafted, steps.accepted) == (script, 0, 0)
    assert state.runs == [1] * 29


def sure(weights: tiny.Weights) -> tiny.Weights:
    return tiny.Weights(weights.embedding, weights.qkv, [out / 2 for out in weights.out], weights.head * 6)


@pytest.fixture(scope="module")
def looping(tmp_path_factory: pytest.TempPathFactory, weights: tiny.Weights) -> Path:
    """A decoder that soon repeats itself, and is sure of what it says."""
    return tiny.write_decoder(tmp_path_factory.mktemp("looping"), weights=sure(weights))


@pytest.fixture
def loops(looping: Path) -> Iterator[runtime_edge.Model]:
    with runtime_edge.load(looping, threads=1) as opened:
        yield opened


def counted(model: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of tokens of each run of the model from here on."""
    state, runs = model._decoding()._state, []
    step, many = state.step, state.all_logits

    def counting_step(token_id: int) -> np.ndarray:
        runs.append(1)
        return step(token_id)

    def counting_many(token_ids: Sequence[int], out: np.ndarray) -> None:
        runs.append(len(token_ids))
        many(token_ids, out)

    monkeypatch.setattr(state, "step", counting_step)
    monkeypatch.setattr(state, "all_logits", counting_many)
    return runs


SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3, "seed": 1},
    {"temperature": 0.5, "seed": 2, "top_p": 0.9},
    {"temperature": 0.5, "seed": 3, "top_k": 5, "min_p": 0.01},
    {"repetition_penalty": 1.03},
    {"temperature": 0.3, "seed": 1, "repetition_penalty": 1.05},
]


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_the_tokens_are_the_same(
    loops: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]
) -> None:
    plain = loops.generate(PROMPT, max_new_tokens=COUNT, **sampling)
    runs = counted(loops, monkeypatch)
    drafted = loops.generate(PROMPT, max_new_tokens=COUNT, drafts=True, **sampling)
    assert (drafted.token_ids, drafted.text) == (plain.token_ids, plain.text)
    assert (plain.stats.drafted, plain.stats.accepted) == (0, 0)
    assert 0 < drafted.stats.accepted < drafted.stats.drafted
    assert len(runs) == len(drafted.token_ids) - drafted.stats.accepted  # one of them ends the cached prompt
    assert loops._decoding()._state.cache.token_ids == [*PROMPT, *plain.token_ids[:-1]]


def test_the_same_seeds_draw_on_from_the_same_place(loops: runtime_edge.Model) -> None:
    """A draw that was made for a token that did not stay would move all that come after it."""
    for seed in range(12):
        sampling = {"temperature": 0.6, "seed": seed, "repetition_penalty": 1.01}
        plain = loops.generate(PROMPT, max_new_tokens=120, **sampling)
        assert loops.generate(PROMPT, max_new_tokens=120, drafts=3, **sampling).token_ids == plain.token_ids


def test_a_number_bounds_drafts_and_they_stay_below_the_graph_for_prefill(
    loops: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loops.generate(PROMPT, max_new_tokens=COUNT).token_ids
    runs = counted(loops, monkeypatch)
    for most, longest in ((1, 2), (3, 4), (1000, PREFILL_LEAST - 1), (False, 1), (0, 1)):
        runs.clear()
        assert loops.generate(PROMPT, max_new_tokens=COUNT, drafts=most).token_ids == plain
        assert max(runs) == longest


def test_drafts_are_checked_in_the_graph_that_decodes(tmp_path: Path, weights: tiny.Weights) -> None:
    """The graph for prefill is another model's: what went through it would be another answer."""
    both = tiny.write_decoder(tmp_path, weights=sure(weights), prefill=tiny.Weights.seeded(5))
    with runtime_edge.load(both, threads=1) as model:
        prompt = [1, 2, 3] * PREFILL_LEAST
        plain = model.context().generate(prompt, max_new_tokens=COUNT).token_ids
        for most in (True, 14, 100):
            made = model.context().generate(prompt, max_new_tokens=COUNT, drafts=most)
            assert made.token_ids == plain
            assert made.stats.accepted > 0


def test_max_new_tokens_within_a_draft(loops: runtime_edge.Model) -> None:
    start = [*PROMPT, *loops.generate(PROMPT, max_new_tokens=100).token_ids]
    for count in range(1, 25):
        plain = loops.generate(start, max_new_tokens=count)
        made = loops.generate(start, max_new_tokens=count, drafts=True)
        assert (made.token_ids, made.text, made.finish_reason) == (plain.token_ids, plain.text, "length")
        assert loops._decoding()._state.cache.token_ids == [*start, *plain.token_ids[:-1]]


def test_the_length_is_full_within_a_draft(tmp_path: Path, weights: tiny.Weights) -> None:
    for length in range(250, 260):
        artifact = tiny.write_decoder(tmp_path / f"{length}", max_seq_len=length, weights=sure(weights))
        with runtime_edge.load(artifact, threads=1) as model:
            plain = model.generate(PROMPT)
            made = model.generate(PROMPT, drafts=True)
            assert (made.token_ids, made.finish_reason) == (plain.token_ids, "length")
            assert len(made.token_ids) == length - len(PROMPT) + 1
            assert made.stats.accepted > 50


def test_a_stop_token_within_a_draft(loops: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token of the loop in turn: some of these stop inside a draft that would have been accepted."""
    start = [*PROMPT, *loops.generate(PROMPT, max_new_tokens=100).token_ids]
    free = loops.generate(start, max_new_tokens=60).token_ids
    runs = counted(loops, monkeypatch)
    inside = 0
    for stop in sorted(set(free)):
        runs.clear()
        made = loops.generate(start, max_new_tokens=60, stop_token_ids=[stop], drafts=True)
        assert (made.token_ids, made.finish_reason) == (free[: free.index(stop) + 1], "stop")
        assert loops._decoding()._state.cache.token_ids == [*start, *made.token_ids[:-1]]
        inside += sum(runs) > len(made.token_ids)
        again = loops.generate([*start, *made.token_ids, 5], max_new_tokens=8)
        assert again.stats.cached_tokens == len(start) + len(made.token_ids) - 1
        assert again.token_ids == loops.context().generate([*start, *made.token_ids, 5], max_new_tokens=8).token_ids
    assert inside > 3


def test_a_stop_string_within_a_draft(loops: runtime_edge.Model) -> None:
    start = [*PROMPT, *loops.generate(PROMPT, max_new_tokens=100).token_ids]
    text = loops.generate(start, max_new_tokens=60).text
    stops = sorted({character for character in text if character.isascii()})  # others are bytes that are no character
    assert len(stops) > 5
    for stop in stops:
        plain = loops.generate(start, max_new_tokens=60, stop=stop)
        made = loops.generate(start, max_new_tokens=60, stop=stop, drafts=True)
        assert (made.text, made.token_ids, made.finish_reason) == (plain.text, plain.token_ids, "stop")


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_stream_that_is_cancelled_or_left_keeps_what_it_gave(loops: runtime_edge.Model, how: str) -> None:
    plain = loops.generate(PROMPT, max_new_tokens=COUNT).token_ids
    for count in range(100, 120):  # some of these are in the middle of a draft
        cancel, made = threading.Event(), []
        stream = loops.stream(PROMPT, drafts=True, cancel=cancel)
        for chunk in stream:
            made.append(chunk)
            if len(made) == count:
                cancel.set()
                if how == "close":
                    stream.close()
        given = [chunk.token_id for chunk in made if chunk.token_id is not None]
        assert given == plain[:count]
        if how == "cancel":
            assert (made[-1].finish_reason, made[-1].token_id) == ("cancelled", None)
        assert loops._decoding()._state.cache.token_ids == [*PROMPT, *plain[: count - 1]]


def test_interrupt_within_a_check_leaves_the_model_usable(
    loops: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes after the cache was written and before its tokens were counted."""
    expected = loops.generate(PROMPT, max_new_tokens=COUNT, drafts=True).token_ids
    state = loops._decoding()._state
    run, checks = state._owner.session.run, []

    def interrupted(binding: object, stop: object) -> None:
        run(binding, stop)
        checks.append(binding is state._many)
        if sum(checks) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(state._owner.session, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loops.generate(PROMPT, max_new_tokens=COUNT, drafts=True)
    monkeypatch.undo()
    assert state.cache.token_ids[len(PROMPT) :] == expected[: len(state.cache.token_ids) - len(PROMPT)]
    assert loops.generate(PROMPT, max_new_tokens=COUNT, drafts=True).token_ids == expected


def test_a_chat_goes_on_from_what_was_drafted(loops: runtime_edge.Model) -> None:
    text, other = list(PROMPT), list(PROMPT)
    plain = loops.context()
    for turn in range(3):
        made = loops.generate(text, max_new_tokens=90, drafts=True)
        assert made.token_ids == plain.generate(other, max_new_tokens=90).token_ids
        assert made.stats.cached_tokens == (0 if turn == 0 else len(text) - 5)
        text += [*made.token_ids, 10, 20, 30, 40 + turn]
        other = list(text)


def test_contexts_draft_apart(loops: runtime_edge.Model) -> None:
    expected = loops.generate(PROMPT, max_new_tokens=COUNT).token_ids
    streams = [loops.context().stream(PROMPT, max_new_tokens=COUNT, drafts=most) for most in (0, 2, True)]
    for chunks, token in zip(zip(*streams, strict=True), expected, strict=True):
        assert [chunk.token_id for chunk in chunks] == [token] * 3


def test_a_session_that_checks_no_drafts_is_stepped(loops: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loops.generate(PROMPT, max_new_tokens=COUNT).token_ids
    monkeypatch.setattr(loops._decoding()._state, "most_drafts", 0)
    runs = counted(loops, monkeypatch)
    with pytest.warns(RequestWarning, match="drafts: without effect on this backend"):
        made = loops.generate(PROMPT, max_new_tokens=COUNT, drafts=True)
    assert (made.token_ids, made.stats.drafted) == (plain, 0)
    assert set(runs) == {1}
