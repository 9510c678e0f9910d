#!/usr/bin/env python3
"""Times products of 8-bit integers: our kernel beside ONNX Runtime's, microseconds and ratios.

    python benchmarks/products.py --shapes 576x1536 1536x576 --rows 1 256

Random numbers, inputs by channels; both kernels in turn in one process, the median of each. SmolLM2-135M has products
of 576x960, 576x576, 576x1536 and 1536x576, Gemma-3-270M of 640x1536, 1024x640, 640x2048 and 2048x640.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from runtime_edge import kernels, ort
from runtime_edge.backends.ort_session import SPIN_US

ROUNDS, REPETITIONS = 40, 6


def model(inputs: int, channels: int) -> bytes:
    """MatMulIntegerToFloat as artifacts have it."""
    random = np.random.default_rng(0)
    arrays = {
        "weight": random.integers(-127, 128, (inputs, channels)).astype(np.int8), "step": np.float32(0.01),
        "scales": np.full(channels, 0.01, np.float32), "zero": np.uint8(128), "bias": np.ones(channels, np.float32),
    }  # fmt: skip
    names = ["codes", "weight", "step", "scales", "zero", "", "bias"]
    node = helper.make_node("MatMulIntegerToFloat", names, ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node], "product", [helper.make_tensor_value_info("codes", TensorProto.UINT8, [1, None, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


class Kernel:
    """A session over one kernel."""

    def __init__(self, graph: bytes, codes: np.ndarray, output: np.ndarray, threads: int, ours: bool) -> None:
        options = ort.load().SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
        kernels.register(options, [kernels.PRODUCT] if ours else [])
        self.session = ort.load().InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.binding.bind_cpu_input("codes", codes)
        self.binding.bind_output("y", "cpu", 0, np.float32, output.shape, output.ctypes.data)
        self.microseconds: list[float] = []

    def run(self) -> None:
        time.sleep(0.003)  # threads of the session before spin for a while
        for repetition in range(2 + REPETITIONS):
            started = time.perf_counter()
            self.session.run_with_iobinding(self.binding)
            if repetition >= 2:
                self.microseconds.append(1e6 * (time.perf_counter() - started))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--shapes", nargs="+", default=["576x1536", "1536x576", "576x960", "576x576"])
    args = parser.parse_args()
    if (missing := kernels.lacking()) is not None or not kernels.tiles():
        raise SystemExit(f"expected a machine with our kernels: {missing or 'this CPU has no AMX'}")
    for shape in args.shapes:
        inputs, channels = map(int, shape.split("x"))
        graph = model(inputs, channels)
        for rows in args.rows:
            codes = np.random.default_rng(1).integers(0, 256, (1, rows, inputs)).astype(np.uint8)
            output = np.empty((1, rows, channels), np.float32)
            theirs, ours = (Kernel(graph, codes, output, args.threads, own) for own in (False, True))
            for kernel in [theirs, ours] * ROUNDS:
                kernel.run()
            medians = [statistics.median(kernel.microseconds) for kernel in (theirs, ours)]
            print(
                f"{rows:5} rows of {shape:10} ONNX Runtime {medians[0]:7.0f} us, ours {medians[1]:7.0f} us"
                f"  {medians[0] / medians[1]:.2f} x"
            )


if __name__ == "__main__":
    main()
