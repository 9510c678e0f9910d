"""Threads that share a model, streams that are left, interrupts."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import runtime_edge
from runtime_edge.errors import RequestError
from runtime_edge.tasks import generate as generate_module


def test_threads_that_share_a_model_take_turns(model: runtime_edge.Model) -> None:
    prompts = [f"prompt {index} " * (1 + index % 3) for index in range(12)]
    alone = [model.generate(prompt, max_new_tokens=25).token_ids for prompt in prompts]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda prompt: model.generate(prompt, max_new_tokens=25).token_ids, prompts))
    assert together == alone


def test_contexts_generate_at_the_same_time_and_apart(model: runtime_edge.Model) -> None:
    expected = model.generate("one", max_new_tokens=40).token_ids
    contexts = [model.context() for _ in range(3)]
    streams = [context.stream("one", max_new_tokens=40) for context in contexts]
    together = list(zip(*streams, strict=True))  # a token of each in turn, in one thread
    for stream in zip(*together, strict=True):
        assert [chunk.token_id for chunk in stream] == expected
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda context: context.generate("one", max_new_tokens=40).token_ids, contexts))
    assert found == [expected] * 3


def test_a_second_generation_in_the_thread_of_an_open_stream_is_refused(model: runtime_edge.Model) -> None:
    stream = model.stream("a", max_new_tokens=5)
    next(stream)
    with pytest.raises(RequestError, match="expected no stream of this model open in this thread") as caught:
        model.generate("b")
    assert "model.context()" in str(caught.value.hint)
    assert model.context().generate("b", max_new_tokens=1).token_ids
    assert len(list(stream)) == 4  # and it is unharmed
    assert model.generate("b", max_new_tokens=1).token_ids


@pytest.mark.parametrize("how", ["close", "forget", "never started"])
def test_a_stream_that_is_left_gives_the_turn_back(model: runtime_edge.Model, how: str) -> None:
    stream = model.stream("a")
    if how != "never started":
        next(stream)
    if how == "close":
        stream.close()
    del stream
    gc.collect()
    assert len(model.generate("b", max_new_tokens=3).token_ids) == 3


def test_interrupt_by_the_consumer_leaves_the_model_usable(model: runtime_edge.Model) -> None:
    expected = model.generate("a", max_new_tokens=20).token_ids

    def consume() -> None:
        for index, _ in enumerate(model.stream("a")):
            if index == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    gc.collect()
    assert model.generate("a", max_new_tokens=20).token_ids == expected


def test_interrupt_within_a_step_leaves_the_model_usable(
    model: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes after the cache was written and before its tokens were counted."""
    expected = model.generate("a", max_new_tokens=20).token_ids
    session = model._decoding()._state._owner.session
    run, calls = session.run, []

    def interrupted(binding: object, stop: object) -> None:
        run(binding, stop)
        calls.append(binding)
        if len(calls) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "run", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        model.generate("b", max_new_tokens=50)
    assert caught.tb is not None  # it still holds the frames of the call
    assert model.generate("a", max_new_tokens=20).token_ids == expected


def test_interrupt_between_steps_leaves_the_model_usable(
    model: runtime_edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes while `generate` collects, when its stream waits for the next call."""

    def collect(chunks: Iterator[runtime_edge.Chunk]) -> list[runtime_edge.Chunk]:
        next(chunks)
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_module, "list", collect, raising=False)
    with pytest.raises(KeyboardInterrupt) as caught:
        model.generate("a")
    monkeypatch.undo()
    assert caught.tb is not None  # it still holds the frames, and with them the stream
    assert len(model.generate("a", max_new_tokens=3).token_ids) == 3


def test_cancel_from_another_thread(model: runtime_edge.Model) -> None:
    cancel, started = threading.Event(), threading.Event()

    def generate() -> runtime_edge.Generation:
        stream = model.stream("a", cancel=cancel)
        made = [next(stream)]
        started.set()
        made += stream
        last = made[-1]
        assert last.finish_reason is not None
        assert last.stats is not None
        return runtime_edge.Generation("", [], last.finish_reason, last.stats)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(generate)
        started.wait(10)
        cancel.set()
        made = future.result(10)
    assert made.finish_reason == "cancelled"
    assert made.stats.new_tokens < 2047


def test_cancel_while_waiting_for_the_turn(model: runtime_edge.Model) -> None:
    stream = model.stream("a")
    next(stream)
    cancel = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(model.generate, "b", cancel=cancel)
        time.sleep(0.02)
        assert not future.done()
        cancel.set()
        made = future.result(10)
    assert (made.finish_reason, made.token_ids) == ("cancelled", [])
    stream.close()


def test_a_stream_may_move_between_threads(model: runtime_edge.Model) -> None:
    expected = model.generate("a", max_new_tokens=10).token_ids
    stream = model.stream("a", max_new_tokens=10)
    made = [next(stream).token_id]
    with ThreadPoolExecutor(1) as pool:
        made += [chunk.token_id for chunk in pool.submit(list, stream).result(10)]
    assert made == expected
    assert model.generate("a", max_new_tokens=10).token_ids == expected
