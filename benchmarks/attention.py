#!/usr/bin/env python3
"""Times attention over a cache: our kernel in each format beside ONNX Runtime's, microseconds and ratios.

    python benchmarks/attention.py --heads 9 --kv-heads 3 --dim 64 --tokens 1 256 --past 0 512

Random numbers, keys and values written in place; all kernels in turn in one process, the median of each. SmolLM2-135M
has 9 heads of 64 that share 3 of keys, Gemma-3-270M 4 of 256 that share one. Below 16 tokens bfloat16 is not used. ONNX
Runtime's kernel uses what the CPU has: on one with AVX-512 it is no measure of what ours gains with AVX2 alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
from onnx import TensorProto, helper

from runtime_edge import kernels, ort

ROUNDS = 12


def model(heads: int, kv_heads: int, dim: int) -> bytes:
    """GroupQueryAttention as artifacts have it: rotation inside, queries, keys and values side by side, a sink."""
    shapes = {
        "query": [1, None, (heads + 2 * kv_heads) * dim], "past_key": [1, kv_heads, None, dim],
        "past_value": [1, kv_heads, None, dim], "last": [1], "total": [], "cos": [None, dim // 2],
        "sin": [None, dim // 2], "sinks": [heads],
    }  # fmt: skip
    node = helper.make_node(
        "GroupQueryAttention",
        ["query", "", "", "past_key", "past_value", "last", "total", "cos", "sin", "", "", "sinks"],
        ["output", "key", "value"],
        domain="com.microsoft", num_heads=heads, kv_num_heads=kv_heads, do_rotary=1, scale=1.0,
    )  # fmt: skip
    types = {"last": TensorProto.INT32, "total": TensorProto.INT32}
    inputs = [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), shape) for n, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("output", "key", "value")]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


class Kernel:
    """A session over one kernel and its own buffers; `format` None is ONNX Runtime's, avx2 float32 with AVX2 alone."""

    def __init__(self, args: argparse.Namespace, format: str | None, tokens: int, past: int) -> None:
        random, dim = np.random.default_rng(0), args.dim
        options = ort.load().SessionOptions()
        options.intra_op_num_threads = args.threads
        if format is not None:
            os.environ[kernels.VARIABLE] = "avx2" if format == "avx2" else ""
            kernels.register(options, ["attention.bfloat16" if format == "bfloat16" else "attention.float32"])
            os.environ[kernels.VARIABLE] = ""
        graph = model(args.heads, args.kv_heads, dim)
        self.session = ort.load().InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        angles = np.arange(past + tokens)[:, None] / 1e4 ** (np.arange(dim // 2) * 2 / dim)
        query = random.standard_normal((1, tokens, (args.heads + 2 * args.kv_heads) * dim)) * dim**-0.5
        given = {
            "query": query.astype(np.float32), "last": np.array([past + tokens - 1], np.int32),
            "total": np.array(past + tokens, np.int32), "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32), "sinks": np.full(args.heads, -np.inf, np.float32),
        }  # fmt: skip
        self.binding = self.session.io_binding()
        for name, array in given.items():
            self.binding.bind_cpu_input(name, array)
        self.buffers = []
        for name in ("key", "value"):
            buffer = random.standard_normal((1, args.kv_heads, past + tokens + 64, dim)).astype(np.float32)
            self.buffers.append(buffer)
            self.binding.bind_input(f"past_{name}", "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
            self.binding.bind_output(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        self.binding.bind_output("output", "cpu")
        self.microseconds: list[float] = []
        self.repetitions = 60 if tokens < 16 else 6

    def run(self) -> None:
        time.sleep(0.02)  # threads of the session before spin for a while
        for repetition in range(3 + self.repetitions):
            started = time.perf_counter()
            self.session.run_with_iobinding(self.binding)
            if repetition >= 3:
                self.microseconds.append(1e6 * (time.perf_counter() - started))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("threads", 2), ("heads", 9), ("kv-heads", 3), ("dim", 64)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--past", type=int, nargs="+", default=[0, 256, 512, 2048])
    args = parser.parse_args()
    if (missing := kernels.lacking()) is not None:
        raise SystemExit(f"expected a machine with our kernels: {missing}")
    formats = {"ONNX Runtime": None, "avx2": "avx2", "float32": "float32"}
    if kernels.tiles():
        formats["bfloat16"] = "bfloat16"
    for tokens in args.tokens:
        for past in args.past:
            made = {name: Kernel(args, format, tokens, past) for name, format in formats.items()}
            for kernel in [*made.values()] * ROUNDS:
                kernel.run()
            medians = {name: statistics.median(kernel.microseconds) for name, kernel in made.items()}
            for name, median in medians.items():
                ratio = medians["ONNX Runtime"] / median
                print(f"{tokens:5} tokens after {past:5}  {name:13} {median:8.0f} us  {ratio:.2f} x")


if __name__ == "__main__":
    main()
