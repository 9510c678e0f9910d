"""What an engine needs of the GPU, what it keeps on the device, and what is told where it lacks something."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_edge.backends.engine import Memory
from runtime_edge.cuda import Cuda, DeviceMemoryError
from runtime_edge.errors import EngineError, MissingDependencyError, RequestError
from tests.runtime_edge.backends.bench import (
    CACHE_BYTES,
    LENGTH,
    PLAN,
    Bench,
)
from tests.runtime_edge.backends.standin import Api, Status


def test_memory_is_counted_before_anything_is_deserialized(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.api.free = len(PLAN) + CACHE_BYTES * 70 // LENGTH
    with pytest.raises(DeviceMemoryError, match="a cache of 128 tokens") as caught:
        bench.open()
    assert isinstance(caught.value, RequestError)
    assert caught.value.hint == "64 tokens would fit: build with `--max-seq-len 64`, or free memory on the GPU"
    assert bench.of("deserialize") == []
    bench.api.free = 500
    with pytest.raises(DeviceMemoryError) as caught:
        bench.open()
    assert "no length would fit" in str(caught.value.hint)


def test_an_empty_plan_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.plan.write_bytes(b"")
    with pytest.raises(EngineError, match=r"tiny\.plan: expected a plan, found an empty file"):
        bench.open()


def test_a_plan_without_weights_is_refused_before_it_computes_with_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, spec={"strip": True})
    with pytest.raises(EngineError, match="expected a plan that has its weights"):
        bench.open()
    assert bench.trt.plans == []


def test_memory_message_says_what_is_needed_and_what_is_free() -> None:
    memory = Memory(weights=300_000_000, cache=4096 * 250_000, workspace=50_000_000, length=4096)
    error = memory.error("a.plan", 600_000_000)
    assert error.message == (
        "a.plan: expected 1,374.0 MB of free GPU memory (weights 300.0, a cache of 4096 tokens 1,024.0, "
        "workspace 50.0), found 600.0 MB"
    )
    assert memory.fitting_length(600_000_000) == 960  # 250 MB are 1000 tokens, in steps of 64
    assert memory.fitting_length(350_000_000 + 40 * 250_000) == 40
    assert memory.fitting_length(350_000_000) == memory.fitting_length(0) == 0
    assert memory.fitting_length(10**10) == 4096


def test_workspace_that_does_not_fit_and_an_allocation_that_fails(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.trt.workspace = 2 * 10**9
    with pytest.raises(DeviceMemoryError, match=r"workspace 2,000\.0\), found 1,000\.0 MB"):
        bench.open().new_state()
    bench.trt.workspace = 5000
    decoder = bench.open()
    bench.api.fails["cudaMalloc"] = Status.cudaErrorMemoryAllocation
    with pytest.raises(DeviceMemoryError, match="a cache of 128 tokens"):
        decoder.new_state()
    assert not bench.api.memory
    assert not bench.api.live


def test_memory_that_cpu_and_gpu_share_counts_what_the_system_can_give_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 8000000 kB\nMemAvailable:    4000 kB\n")
    monkeypatch.setattr("runtime_edge.cuda._MEMORY_INFO", info)
    assert Cuda(Api(free=1000)).free_memory() == 1000
    assert Cuda(Api(free=1000, integrated=1)).free_memory() == 4000 * 1024
    assert Cuda(Api(free=10**9, integrated=1)).free_memory() == 10**9


def test_weights_are_streamed_where_the_spec_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, spec={"weight_streaming": True})
    bench.api.free = CACHE_BYTES + bench.trt.workspace + 600
    decoder = bench.open()
    assert decoder.engine._engine.weight_streaming_budget_v2 == 600


def test_no_driver() -> None:
    with pytest.raises(MissingDependencyError, match="cudaErrorInsufficientDriver") as caught:
        Cuda(Api(fails={"cudaSetDevice": Status.cudaErrorInsufficientDriver}))
    assert caught.value.exit_code == 4
    assert "driver" in str(caught.value.hint)


def test_compiled_kernels_are_kept_and_loaded(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.trt.kernels = b"kernels"
    bench.jit_cache.write_bytes(b"from before")
    decoder = bench.open()
    state = decoder.new_state()
    prefill, decode = bench.trt.configs
    assert [context.given for context in bench.trt.contexts] == [prefill, decode]
    assert prefill.strategy == decode.strategy == "user"
    assert prefill.cache is decode.cache
    assert prefill.cache.known == b"from before"
    assert prefill.dynamic_shapes_kernel_specialization_strategy == "lazy"
    assert decode.dynamic_shapes_kernel_specialization_strategy == "eager"  # a graph keeps what it captured
    state.step(1)
    state.step(2)
    assert bench.jit_cache.read_bytes() == b"kernels"  # when the step is compiled, however the process ends
    bench.trt.kernels = b"more"
    decoder.close()
    assert bench.jit_cache.read_bytes() == b"more"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jit.cache", "tiny.plan"]


def test_standard_tensorrt_has_no_kernels_to_keep(tmp_path: Path) -> None:
    bench = Bench(tmp_path, spec={"flavour": "tensorrt"})
    decoder = bench.open()
    decoder.new_state().step(1)
    decoder.close()
    assert [context.given for context in bench.trt.contexts] == ["user", "user"]
    assert not bench.jit_cache.exists()
