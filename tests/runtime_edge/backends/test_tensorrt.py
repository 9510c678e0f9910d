"""The order of calls, the addresses bound, and what is freed, against a stand-in that computes nothing."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_edge.backends.tensorrt import TrtEncoder
from runtime_edge.cuda import Cuda
from runtime_edge.errors import ClosedError, EngineError, PromptTooLongError
from runtime_edge.manifest import Encoder
from tests.runtime_edge.backends.bench import (
    CACHE_BYTES,
    DECODE,
    LENGTH,
    PAST,
    PLAN,
    PREFILL,
    PRESENT,
    VOCAB,
    Bench,
    engine,
    names,
)
from tests.runtime_edge.backends.standin import Api, Status, Tensor, Trt


def test_a_run_of_tokens_uploads_ids_and_brings_back_one_row(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    state = bench.open().new_state()
    start = len(bench.api.calls)
    row = state.prefill([5, 6, 7])
    assert row.shape == (VOCAB,)
    assert names(bench.since(start)) == ["shape", "shape", "bind", "up", "run", "down", "wait"]
    first, second, bind, upload, run, download, _ = bench.since(start)
    assert first[1:] == (PREFILL, "input_ids", (1, 3))
    assert second[1:] == (PREFILL, "logits_at", (1,))
    addresses = run[2]
    assert bind[2:] == ("logits", addresses["logits"])
    sent, block = upload[2], upload[1]
    at = {name: (addresses[name] - block) // 8 for name in ("input_ids", "past_length", "logits_at")}
    assert sent[at["input_ids"] :][:3].tolist() == [5, 6, 7]
    assert (sent[at["past_length"]], sent[at["logits_at"]]) == (0, 2)
    assert download[1:] == (addresses["logits"], 4 * VOCAB)
    assert state.cache.token_ids == [5, 6, 7]
    state.prefill([8, 9])
    assert bench.of("up")[-1][2][at["past_length"]] == 3


def test_the_cache_is_one_buffer_in_and_out_zeroed_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    state = bench.open().new_state()
    state.prefill([1, 2])
    state.step(3)
    zeroed = bench.of("zero")
    assert [(value, size) for _, _, value, size in zeroed] == [(0, CACHE_BYTES)]
    first = zeroed[0][1]
    assert bench.api.memory[first] == CACHE_BYTES
    sizes = [2 * LENGTH * (8 if index % 2 else 16) * 2 for index in range(4)]
    expected = [first + sum(sizes[:index]) for index in range(4)]
    for _, _, addresses in bench.of("run"):
        assert [addresses[name] for name in PAST] == expected
        assert [addresses[name] for name in PRESENT] == expected
    bound = [call for call in bench.of("bind") if call[2] in PAST]
    assert len(bound) == 2 * len(PAST)  # once a context: nothing is bound again


@pytest.mark.parametrize(("dtype", "item"), [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_cache_dtypes(tmp_path: Path, dtype: str, item: int) -> None:
    bench = Bench(tmp_path, dtype={"float16": "float16", "bfloat16": "bfloat16", "float32": "float32"}[dtype])
    bench.open().new_state()
    assert [call[3] for call in bench.of("zero")] == [CACHE_BYTES // 2 * item]


def test_a_cache_that_is_not_updated_in_place_is_swapped_after_every_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, in_place=False)
    state = bench.open().new_state()
    sets = [call[1] for call in bench.of("zero")]
    assert len(set(sets)) == 2
    state.prefill([1, 2])
    state.step(3)
    state.prefill([4, 5])
    runs = bench.of("run")
    assert [run[1] for run in runs] == [PREFILL, DECODE, PREFILL]
    assert [run[2][PAST[0]] for run in runs] == [sets[0], sets[1], sets[0]]
    assert [run[2][PRESENT[0]] for run in runs] == [sets[1], sets[0], sets[1]]
    assert all(run[2][PAST[3]] - run[2][PAST[0]] == run[2][PRESENT[3]] - run[2][PRESENT[0]] for run in runs)


def test_a_step_is_captured_after_one_plain_run_and_then_replayed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    state = bench.open().new_state()
    marks = []
    for token in range(4):
        marks.append(len(bench.api.calls))
        state.step(token)
    plain = bench.since(marks[0])[: marks[1] - marks[0]]
    assert names(plain) == ["up", "run", "down", "wait"]
    captured = bench.since(marks[1])[: marks[2] - marks[1]]
    expected = ["begin capture", "up", "run", "down", "end capture", "cudaGraphInstantiate", "cudaGraphDestroy"]
    assert names(captured) == [*expected, "launch", "wait"]
    assert captured[0][1] == "thread"
    assert names(bench.since(marks[2])) == ["launch", "wait"] * 2
    assert len({call[1] for call in bench.of("launch")}) == 1
    assert state.cache.token_ids == [0, 1, 2, 3]
    assert bench.why == []


def test_a_replayed_step_reads_the_token_and_its_position(tmp_path: Path) -> None:
    """The graph copies from the pinned block, so that is where a step writes."""
    bench = Bench(tmp_path)
    state = bench.open().new_state()
    for token in (11, 12, 13):
        state.step(token)
    views = state._one.views
    assert (views["input_ids"][0], views["past_length"][0], views["logits_at"][0]) == (13, 2, 0)


def test_swapped_caches_have_a_graph_each(tmp_path: Path) -> None:
    bench = Bench(tmp_path, in_place=False)
    state = bench.open().new_state()
    for token in range(8):
        state.step(token)
    runs = bench.of("run")
    sets = [call[1] for call in bench.of("zero")]
    assert [run[2][PAST[0]] for run in runs] == [sets[0], sets[1]] * 2  # two plain, two captured
    first, second = (call[1] for call in bench.of("launch")[:2])
    assert first != second
    assert [call[1] for call in bench.of("launch")] == [first, second] * 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda bench: setattr(bench.trt, "capturable", False), "TensorRT says that this engine cannot be captured"),
        (lambda bench: setattr(bench.trt, "runs_captured", False), "tiny.plan: expected TensorRT-RTX 1.7.1 to run"),
        (
            lambda bench: bench.api.fails.update({"end capture": Status.cudaErrorStreamCaptureInvalidated}),
            "cudaStreamEndCapture: expected the GPU to do it, found cudaErrorStreamCaptureInvalidated",
        ),
    ],
)
def test_where_capture_fails_steps_run_plainly_and_say_so_once(tmp_path: Path, fault: Any, reason: str) -> None:
    bench = Bench(tmp_path)
    fault(bench)
    state = bench.open().new_state()
    state.step(0)
    state.step(1)
    start = len(bench.api.calls)
    state.step(2)
    state.step(3)
    assert names(bench.since(start)) == ["up", "run", "down", "wait"] * 2
    assert state.cache.token_ids == [0, 1, 2, 3]
    assert not bench.api.capturing
    assert len(bench.why) == 1
    assert bench.why[0].startswith(f"tiny.plan: decodes without a CUDA graph: {reason}")
    state.close()
    assert not bench.api.live


def test_an_input_that_the_cpu_reads_is_bound_in_pinned_memory_and_no_graph_is_made(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.trt.tensors["past_length"].on_host = True
    state = bench.open().new_state()
    for token in range(3):
        state.step(token)
    address = bench.of("run")[-1][2]["past_length"]
    assert any(start <= address < start + len(memory) for start, memory in bench.api.pinned.items())
    assert bench.of("begin capture") == []
    assert bench.why == ["tiny.plan: decodes without a CUDA graph: past_length: read by the CPU in every step"]


def test_logits_of_all_tokens_come_in_runs_that_the_engine_takes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    state = bench.open().new_state()
    out = np.empty((6, VOCAB), np.float32)
    start = len(bench.api.calls)
    state.all_logits([1, 2, 3, 4, 5, 6], out)
    assert [call[2:] for call in bench.of("shape", start)] == [
        ("input_ids", (1, 4)), ("logits_at", (4,)), ("input_ids", (1, 2)), ("logits_at", (2,))
    ]  # fmt: skip
    runs, uploads = bench.of("run", start), bench.of("up", start)
    at = (runs[0][2]["logits_at"] - uploads[0][1]) // 8
    assert uploads[0][2][at : at + 4].tolist() == [0, 1, 2, 3]
    assert uploads[1][2][at : at + 2].tolist() == [0, 1]
    address = runs[0][2]["logits"]
    assert [call[1:] for call in bench.of("down", start)] == [(address, 16 * VOCAB), (address, 8 * VOCAB)]
    assert bench.api.memory[address] == 16 * VOCAB
    assert state.cache.token_ids == [1, 2, 3, 4, 5, 6]
    state.prefill([7, 8])
    assert bench.of("run")[-1][2]["logits"] != address  # a single row again
    assert state.most_drafts == 0  # such a run is not replayed as a step is


def test_the_contexts_share_one_workspace_and_tokens_beyond_the_length_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    state = bench.open().new_state()
    prefill, decode = bench.of("workspace")
    assert (prefill[1], decode[1]) == (PREFILL, DECODE)
    assert prefill[2:] == decode[2:]
    assert prefill[3] == bench.trt.workspace == bench.api.memory[prefill[2]]
    state.cache.token_ids.extend(range(LENGTH))
    with pytest.raises(PromptTooLongError, match="expected at most 128 tokens"):
        state.step(1)


def test_an_interrupted_run_is_waited_for_before_anything_is_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    state = bench.open().new_state()
    bench.api.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        state.step(1)
    assert state.cache.token_ids == []
    start = len(bench.api.calls)
    state.prefill([2, 3])
    assert names(bench.since(start))[0] == "wait"
    assert state.cache.token_ids == [2, 3]


@pytest.mark.parametrize("in_place", [True, False])
def test_closing_frees_everything_and_refuses_what_comes_after(tmp_path: Path, in_place: bool) -> None:
    bench = Bench(tmp_path, in_place=in_place)
    decoder = bench.open()
    states = [decoder.new_state(), decoder.new_state()]
    for state in states:
        for token in range(5):
            state.step(token)
        state.all_logits([1, 2], np.empty((2, VOCAB), np.float32))
    row = states[0].step(6)
    decoder.close()
    assert not bench.api.memory
    assert not bench.api.live
    with pytest.raises(ClosedError):
        states[0].step(7)
    with pytest.raises(ClosedError):
        states[1].prefill([7, 8])
    row += 1  # logits that someone still reads are not taken away
    decoder.close()
    del row, states, state, decoder
    assert bench.is_free()


def test_a_sequence_that_is_dropped_frees_its_memory(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    decoder = bench.open()
    held = decoder.new_state()
    kept = dict(bench.api.memory)
    other = decoder.new_state()
    other.step(1)
    del other
    gc.collect()
    assert bench.api.memory == kept
    held.step(1)


def test_a_plan_that_tensorrt_refuses(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.trt.loads = False
    message = "tiny.plan: expected TensorRT-RTX 1.7.1 to load the plan, found: the engine is of another version"
    with pytest.raises(EngineError, match=message) as caught:
        bench.open()
    assert "lepton-edge finish" in str(caught.value.hint)
    assert bench.trt.plans == [PLAN]


def test_an_engine_with_other_tensors_or_profiles_is_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.trt.tensors["past_length"].dtype = "int32"
    with pytest.raises(EngineError, match=r"past_length: expected int64 \[1\], found int32 \[1\]"):
        bench.open()
    del bench.trt.tensors["past_length"]
    with pytest.raises(EngineError, match=r"expected the inputs that its task has, found 1 missing \['past_length'\]"):
        bench.open()
    bench = Bench(tmp_path)
    bench.trt.profiles.pop()
    with pytest.raises(EngineError, match="expected 2 profiles, found 1"):
        bench.open()


def test_a_run_that_fails_is_an_error_of_ours(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    state = bench.open().new_state()
    bench.api.fails["wait"] = Status.cudaErrorLaunchFailure
    with pytest.raises(EngineError, match=r"cudaStreamSynchronize: .* cudaErrorLaunchFailure"):
        state.step(1)
    assert names(bench.api.calls)[-1] == "cudaGetLastError"
    bench.api.fails.clear()
    bench.trt.runs = False
    with pytest.raises(EngineError, match=r"expected TensorRT-RTX 1\.7\.1 to run"):
        state.prefill([1, 2])
    assert state.cache.token_ids == []


def test_an_encoder_runs_batches_of_any_size_in_parts(tmp_path: Path) -> None:
    plan = tmp_path / "encoder.plan"
    plan.write_bytes(PLAN)
    api = Api()
    tensors = {name: Tensor("input", "int64", (-1, -1)) for name in ("input_ids", "attention_mask")}
    tensors["embeddings"] = Tensor("output", "float32", (-1, 6))
    trt = Trt(api, tensors, [dict.fromkeys(("input_ids", "attention_mask"), (4, 16))])
    inputs, roles = ("input_ids", "attention_mask"), ("token_ids", "attention_mask")
    encoder = Encoder(inputs=inputs, roles=roles, output="embeddings", dim=6, max_seq_len=16)
    session = TrtEncoder(plan, engine(names=("batch",)), encoder, None, trt=trt, cuda=Cuda(api))
    ids = np.arange(1, 31).reshape(6, 5)
    start = len(api.calls)
    rows = session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert rows.shape == (6, 6)
    calls = api.calls[start:]
    part = ["wait", "shape", "shape", "up", "run", "down", "wait"]
    assert names(calls) == part * 2
    assert [call[3] for call in calls if call[0] == "shape"] == [(4, 5), (4, 5), (2, 5), (2, 5)]
    upload, run = calls[3], calls[4]
    at = (run[2]["input_ids"] - upload[1]) // 8
    assert upload[2][at : at + 20].tolist() == ids[:4].reshape(-1).tolist()
    assert [call[1:] for call in calls if call[0] == "down"] == [(run[2]["embeddings"], size * 24) for size in (4, 2)]
    session.close()
    assert not api.memory
    assert not api.live
    with pytest.raises(ClosedError):
        session.run({"input_ids": ids, "attention_mask": ids})
