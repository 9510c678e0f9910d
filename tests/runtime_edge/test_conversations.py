"""Conversations that take turns: each goes on in its own cache, and answers as a fresh model does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_edge
from runtime_edge.backends.onnxruntime import PREFILL_CHUNK
from runtime_edge.cache import TokenCache
from runtime_edge.errors import RequestError
from runtime_edge.tasks import decoding as decoding_module
from runtime_edge.tasks.conversations import Conversations
from tests.runtime_edge import tiny
from tests.runtime_edge.test_generate import tokens

ANSWER = 6
Fresh = Callable[..., list[int]]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    """What a model says that has read nothing before."""
    root = tiny.write_decoder(tmp_path_factory.mktemp("fresh"), weights=tiny.Weights.seeded())
    with runtime_edge.load(root, threads=1) as opened:

        def answer(prompt: list[int], **options: Any) -> list[int]:
            return opened.context().generate(prompt, max_new_tokens=ANSWER, **options).token_ids

        yield answer


class Talk:
    """One conversation: each turn sends all that was said before, and some new tokens."""

    def __init__(self, model: runtime_edge.Model, fresh: Fresh, start: list[int], **options: Any) -> None:
        self._model, self._fresh, self._options = model, fresh, options
        self.said = list(start)

    def turn(self, more: list[int]) -> int:
        """Checks the answer; returns how many tokens were read."""
        self.said += more
        made = self._model.generate(self.said, max_new_tokens=ANSWER, **self._options)
        assert made.token_ids == self._fresh(self.said, **self._options)
        read = len(self.said) - made.stats.cached_tokens
        self.said += made.token_ids
        return read


def states(model: runtime_edge.Model) -> int:
    return len(model._decoding()._conversations._states)


@pytest.mark.parametrize("options", [{}, {"drafts": True}, {"temperature": 0.7, "seed": 3}])
def test_conversations_that_take_turns_read_only_what_is_new(
    model: runtime_edge.Model, fresh: Fresh, options: dict[str, Any]
) -> None:
    talks = [Talk(model, fresh, tokens(300 + 90 * index, seed=index), **options) for index in range(3)]
    assert [talk.turn([1, 2]) for talk in talks] == [302, 392, 482]
    for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0)):
        for index in order:
            assert talks[index].turn(tokens(10, seed=index)) == 11  # the last token made was never run
    assert states(model) == 3


@pytest.mark.parametrize("shared", [1, 63, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1])
def test_a_common_start_is_copied_and_not_read_again(model: runtime_edge.Model, fresh: Fresh, shared: int) -> None:
    """As a system prompt; at the edges of what one run takes."""
    system = tokens(shared, seed=8)
    first = Talk(model, fresh, [*system, 7, *tokens(2 * shared + 40, seed=1)])
    second = Talk(model, fresh, [*system, 9, *tokens(30, seed=2)])
    first.turn([3])
    assert second.turn([4]) == 32
    assert first.turn([5, 6]) == 3
    assert second.turn([5, 6]) == 3


def test_an_answer_made_again_stays_in_its_state(model: runtime_edge.Model, fresh: Fresh) -> None:
    prompt = tokens(20)
    for seed in range(5):
        made = model.generate(prompt, max_new_tokens=100, temperature=1.0, seed=seed)
        assert made.stats.cached_tokens == (19 if seed else 0)
    assert states(model) == 1
    assert model.generate(prompt, max_new_tokens=ANSWER).token_ids == fresh(prompt)


def test_a_branch_within_an_answer(model: runtime_edge.Model, fresh: Fresh) -> None:
    talk = Talk(model, fresh, tokens(60))
    talk.turn([1])
    middle = [*talk.said[:-3], 5]  # inside of the answer: most of the state stays
    made = model.generate(middle, max_new_tokens=ANSWER)
    assert (made.token_ids, made.stats.cached_tokens) == (fresh(middle), len(middle) - 1)
    assert states(model) == 1


def test_the_least_recently_used_goes(built: Path, fresh: Fresh) -> None:
    with runtime_edge.load(built, threads=1, conversations=2) as model:
        talks = [Talk(model, fresh, tokens(50, seed=index)) for index in range(3)]
        assert [talk.turn([1]) for talk in talks] == [51, 51, 51]  # the third takes the first one's place
        assert talks[1].turn([2]) == 2
        assert talks[2].turn([2]) == 2
        assert talks[0].turn([2]) > 50
        assert talks[2].turn([2]) == 2
        assert talks[1].turn([2]) > 50
        assert states(model) == 2


def test_one_conversation_is_as_before(built: Path, fresh: Fresh) -> None:
    with runtime_edge.load(built, threads=1, conversations=1) as model:
        talks = [Talk(model, fresh, tokens(50, seed=index)) for index in range(2)]
        assert [talk.turn([1]) for talk in talks] == [51, 51]
        assert talks[0].turn([2]) > 50
        assert states(model) == 1


def test_bytes_bound_the_caches(built: Path, fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    row = 2 * tiny.LAYERS * tiny.KV_HEADS * tiny.HEAD_DIM * 4
    monkeypatch.setattr(decoding_module, "usable_memory", lambda: decoding_module._MEMORY_SHARE * 300 * row)
    with runtime_edge.load(built, threads=1, conversations=8) as model:
        talks = [Talk(model, fresh, tokens(50, seed=index)) for index in range(5)]
        assert [talk.turn([1]) for talk in talks] == [51] * 5
        assert states(model) == 4  # of 64 rows each
        assert talks[4].turn([2]) == 2
        assert talks[4].turn(tokens(150)) == 151  # a longer one makes others go, and never itself
        assert states(model) < 4
        assert talks[4].turn(tokens(500)) == 501
        assert states(model) == 1
        assert talks[4].turn([2]) == 2


def test_scores_leave_conversations_alone(model: runtime_edge.Model, fresh: Fresh) -> None:
    talk = Talk(model, fresh, tokens(80))
    talk.turn([1])
    for seed in range(6):
        model.score(tokens(300, seed=seed))
        model.logits(tokens(5, seed=seed))
    assert states(model) == 2
    assert talk.turn([2]) == 2


def test_contexts_keep_their_own(model: runtime_edge.Model, fresh: Fresh) -> None:
    context = model.context()
    prompt = tokens(100)
    model.generate(prompt, max_new_tokens=1)
    assert context.generate(prompt, max_new_tokens=1).stats.cached_tokens == 0
    context.generate(tokens(90, seed=2), max_new_tokens=1)
    assert context.generate(prompt, max_new_tokens=ANSWER).stats.cached_tokens == 0
    assert model.generate(prompt, max_new_tokens=1).stats.cached_tokens == 99


def test_threads_with_a_conversation_each(model: runtime_edge.Model, fresh: Fresh) -> None:
    def talk(index: int) -> list[int]:
        one = Talk(
            model, lambda prompt: model.generate(prompt, max_new_tokens=ANSWER).token_ids, tokens(70, seed=index)
        )
        for turn in range(5):
            one.turn([turn])
        return one.said

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(talk, range(4)))
    for each in said:
        assert each[-ANSWER:] == fresh(each[:-ANSWER])


def test_a_graph_for_prefill_serves_all(tmp_path: Path, fresh: Fresh) -> None:
    weights = tiny.Weights.seeded()
    root = tiny.write_decoder(tmp_path, weights=weights, prefill=weights)
    with runtime_edge.load(root, threads=1) as model:
        talks = [Talk(model, fresh, tokens(120, seed=index)) for index in range(2)]
        for talk in (*talks, *talks):
            talk.turn(tokens(40, seed=5))
        assert [talk.turn(tokens(40, seed=6)) for talk in talks] == [41, 41]


def test_an_interrupted_turn_costs_no_other_conversation(model: runtime_edge.Model, fresh: Fresh) -> None:
    talks = [Talk(model, fresh, tokens(60, seed=index)) for index in range(2)]
    for talk in talks:
        talk.turn([1])
    stream = model.stream([*talks[0].said, 3], max_new_tokens=20)
    for _ in range(4):
        next(stream)
    stream.close()
    assert talks[1].turn([2]) == 2
    assert talks[0].turn([2]) <= 2


class OnDevice:
    """A state whose cache is not in the host's memory."""

    def __init__(self) -> None:
        self.cache = TokenCache(1000)

    def reserve(self, length: int) -> None:
        self.cache.check(length)


def test_a_cache_on_a_device_stays_alone() -> None:
    class Session:
        made = 0

        def new_state(self) -> OnDevice:
            self.made += 1
            return OnDevice()

    session: Any = Session()
    pool = Conversations(session, 4, 2**40)
    for seed in range(3):
        state, shared = pool.take(tokens(20, seed=seed), 30)
        state.cache.token_ids += tokens(20, seed=seed)[shared:]
    assert session.made == 1
    assert pool.take(tokens(20, seed=2), 30)[1] == 19


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2", 10**9])
def test_bad_number_of_conversations(built: Path, count: Any) -> None:
    with pytest.raises(RequestError, match="conversations: expected a whole number from 1 to 1024, found"):
        runtime_edge.load(built, conversations=count)


def test_copied_rows_are_the_other_ones(model: runtime_edge.Model) -> None:
    start = tokens(40)
    model.generate([*start, *tokens(100, seed=3)], max_new_tokens=1)
    model.generate([*start, 1, 2], max_new_tokens=1)
    first, second = (state.cache for state in model._decoding()._conversations._states)
    for ours, theirs in zip(second.buffers, first.buffers, strict=True):
        np.testing.assert_array_equal(ours[:, :, :40], theirs[:, :, :40])
        assert ours is not theirs
