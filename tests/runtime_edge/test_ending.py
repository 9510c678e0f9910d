"""`cancel` and `timeout` end a run of the model, even one that would never end; what was there before can be used."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import runtime_edge
from runtime_edge.backends.onnxruntime import PREFILL_CHUNK
from runtime_edge.ending import Ending
from runtime_edge.errors import RequestError, RunEndedError
from tests.runtime_edge import tiny
from tests.runtime_edge.test_generate import tokens

ENDLESS = 299  # a token with which the graph runs for years
SOON = 10.0  # seconds; an end takes some hundredths


def with_endless_loop(graph: bytes, value: str, token: int) -> bytes:
    """Adds a Loop to a graph of text whose every turn adds nothing to `value`, of 2**50 turns for each `token`."""
    model = onnx.load_from_string(graph)
    nodes = model.graph.node
    for made in nodes:
        made.output[:] = [f"{value}.before" if name == value else name for name in made.output]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"]),
            helper.make_node("Mul", ["sum", "half"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, []),
        ],
    )
    constants = {
        "endless": np.array(token),
        "turns": np.array(2**50),
        "half": np.array(0.5, np.float32),
        "nothing": np.array(0, np.float32),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(each, name) for name, each in constants.items())
    added = [
        helper.make_node("Equal", ["input_ids", "endless"], ["is_endless"]),
        helper.make_node("Cast", ["is_endless"], ["ones"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["ones"], ["times"], keepdims=0),
        helper.make_node("Mul", ["times", "turns"], ["trips"]),
        helper.make_node("Loop", ["trips", "", "nothing"], ["added"], body=body),
        helper.make_node("Add", [f"{value}.before", "added"], [value]),
    ]
    at = next(index for index, made in enumerate(nodes) if f"{value}.before" in made.output) + 1
    rest = list(nodes[at:])
    del nodes[at:]
    nodes.extend([*added, *rest])
    return model.SerializeToString()


@pytest.fixture(autouse=True)
def _any_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets graphs with a Loop in, which `load` refuses: it stands for whatever else takes too long."""
    monkeypatch.setattr("runtime_edge.graph.check_graph", lambda *arguments: None)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder that never ends where it reads the token `ENDLESS`."""
    make = tiny.decoder_graph

    def graph(*arguments: Any, **options: Any) -> tuple[bytes, str, bytes]:
        made, path, blob = make(*arguments, **options)
        return with_endless_loop(made, "stream0", ENDLESS), path, blob

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "decoder_graph", graph)
        return tiny.write_decoder(tmp_path_factory.mktemp("endless"), weights=tiny.Weights.seeded())


@pytest.fixture
def loop(endless: Path) -> Iterator[runtime_edge.Model]:
    with runtime_edge.load(endless, threads=1) as opened:
        yield opened


def ended(reason: str, call: Callable[..., Any]) -> tuple[Any, float]:
    """Calls with what ends a call; returns what it gave and the seconds that it took."""
    began = time.monotonic()
    if reason == "timeout":
        made = call(timeout=0.2)
    else:
        cancel = threading.Event()
        timer = threading.Timer(0.2, cancel.set)
        timer.start()
        made = call(cancel=cancel)
        timer.join()
    return made, time.monotonic() - began


@pytest.mark.parametrize("reason", ["timeout", "cancelled"])
@pytest.mark.parametrize("where", ["prefill", "second run of a prefill", "one token"])
def test_a_run_that_never_ends_is_ended(
    loop: runtime_edge.Model, model: runtime_edge.Model, reason: str, where: str
) -> None:
    start = tokens(PREFILL_CHUNK + 40) if where == "second run of a prefill" else tokens(40)
    answer = loop.generate(start, max_new_tokens=5).token_ids
    ids = {"prefill": [*tokens(20, seed=4), ENDLESS, *tokens(20)], "one token": [ENDLESS]}
    prompt = ids.get(where, [*start, *tokens(300, seed=5), ENDLESS])
    made, seconds = ended(reason, lambda **options: loop.generate(prompt, max_new_tokens=5, **options))
    assert (made.token_ids, made.text, made.finish_reason) == ([], "", reason)
    assert 0.15 < seconds < SOON
    # What a run wrote that was ended is not there, all else is.
    longer = [*start, *answer, *tokens(5, seed=9)]
    again = loop.generate(longer, max_new_tokens=8)
    assert again.stats.cached_tokens >= len(start)
    assert again.token_ids == model.generate(longer, max_new_tokens=8).token_ids


def test_a_step_that_never_ends_is_ended(tmp_path: Path, endless: Path) -> None:
    """The model makes the token that it then reads for ever."""
    with runtime_edge.load(endless, threads=1) as loop:
        made = loop.generate(tokens(30), max_new_tokens=200, temperature=1e30, seed=1, timeout=1.0)
        assert made.finish_reason == "timeout"
        assert made.token_ids[-1] == ENDLESS
        assert ENDLESS not in made.token_ids[:-1]
        assert made.text == loop.detokenize(made.token_ids)
        assert loop.generate(tokens(30), max_new_tokens=2).finish_reason == "length"


@pytest.mark.parametrize("reason", ["timeout", "cancelled"])
def test_other_calls_raise_where_they_are_ended(loop: runtime_edge.Model, reason: str) -> None:
    with pytest.raises(RunEndedError, match="the model: expected to end "):
        ended(reason, lambda **options: loop.score([1, 2, ENDLESS, 3], **options))
    assert loop.score([1, 2, 3]).shape == (2,)


def test_several_prompts_have_one_clock(loop: runtime_edge.Model) -> None:
    made = loop.generate([[1, 2], [3, ENDLESS], [4, 5]], max_new_tokens=2, timeout=0.5)
    assert [each.finish_reason for each in made] == ["length", "timeout", "timeout"]


def test_a_drafted_check_that_never_ends_is_ended(loop: runtime_edge.Model) -> None:
    prompt = [*(5, 6, 7, ENDLESS) * 3, 5, 6, 7]
    made = loop.generate(prompt, timeout=0.2, drafts=True)
    assert (made.token_ids, made.finish_reason) == ([], "timeout")


def test_waiting_for_a_turn_ends_too(model: runtime_edge.Model) -> None:
    stream = model.stream("a")
    next(stream)
    made: list[runtime_edge.Generation] = []
    thread = threading.Thread(target=lambda: made.append(model.generate("b", timeout=0.1)))
    thread.start()
    thread.join(SOON)
    assert [(each.finish_reason, each.token_ids) for each in made] == [("timeout", [])]
    stream.close()


def test_a_deadline_between_tokens(model: runtime_edge.Model) -> None:
    made = []
    for chunk in model.stream("a", timeout=0.3):
        made.append(chunk)
        if len(made) == 3:
            time.sleep(0.4)
    assert [chunk.finish_reason for chunk in made] == [None, None, None, "timeout"]


def test_a_timeout_that_is_long_changes_nothing(model: runtime_edge.Model) -> None:
    prompt = tokens(600)
    expected = model.generate(prompt, max_new_tokens=20).token_ids
    made = model.generate(prompt, max_new_tokens=20, timeout=1e300, cancel=threading.Event())
    assert (made.token_ids, made.finish_reason) == (expected, "length")


def test_no_thread_is_left_and_none_is_made_without_need(model: runtime_edge.Model) -> None:
    def watchers() -> int:
        return sum(thread.name == "lepton-ending" for thread in threading.enumerate())

    stream = model.stream("a", max_new_tokens=3)
    next(stream)
    assert watchers() == 0
    stream.close()
    stream = model.stream("a", max_new_tokens=3, timeout=60)
    next(stream)
    assert watchers() == 1
    stream.close()
    for _ in range(100):
        if not watchers():
            break
        time.sleep(0.02)
    assert watchers() == 0


def test_what_was_told_once_stays() -> None:
    cancel = threading.Event()
    ending = Ending(cancel, 1000.0)
    ending.begin()
    assert ending.reason() is None
    cancel.set()
    assert ending.reason() == "cancelled"
    cancel.clear()
    assert ending.reason() == "cancelled"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1", True, [1.0]])
def test_bad_timeout(model: runtime_edge.Model, timeout: Any) -> None:
    with pytest.raises(RequestError, match="timeout: expected a number of seconds > 0, found"):
        model.generate("a", timeout=timeout)


def encoder(root: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    """An encoder that never ends where it reads the word `six`."""
    write = tiny.write

    def changed(root: Path, fields: dict[str, Any], files: dict[str, bytes]) -> Path:
        return write(root, fields, {**files, "cpu.onnx": with_endless_loop(files["cpu.onnx"], "rows", 9)})

    monkeypatch.setattr(tiny, "write", changed)
    return tiny.write_encoder(root, **options)


@pytest.mark.parametrize("reason", ["timeout", "cancelled"])
@pytest.mark.parametrize("threads", [1, 2])
def test_encoders_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, threads: int) -> None:
    many = ["one two three"] * 40
    with runtime_edge.load(encoder(tmp_path, monkeypatch), threads=threads) as model:
        expected = model.encode(many)
        with pytest.raises(RunEndedError):
            ended(reason, lambda **options: model.encode([*many, "one six"], batch_size=2, **options))
        np.testing.assert_array_equal(model.encode(many, timeout=60.0), expected)


def test_classifiers_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runtime_edge.load(encoder(tmp_path, monkeypatch, labels=("a", "b")), threads=1) as model:
        with pytest.raises(RunEndedError, match=r"expected to end within 0\.2 seconds \(timeout\)"):
            ended("timeout", lambda **options: model.classify(["six"], **options))
        assert len(model.classify(["one"], timeout=60.0)) == 1
