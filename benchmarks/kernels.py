#!/usr/bin/env python3
"""Times what an encoder's lowering for ONNX Runtime chooses beside what it does not: microseconds, and ratios.

    python benchmarks/kernels.py --threads 1 --batch 32 --length 16

All forms in turn in one process, on random numbers; the median of each. Widths are MiniLM-L6's unless given.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from runtime_edge import ort
from runtime_edge.backends.onnxruntime import SLOWER

MS = "com.microsoft"
ROUNDS, REPETITIONS = 5, 30


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """A node; names are separated by spaces, - is an input that is left out, ms: is ONNX Runtime's own domain."""
    names = ["" if name == "-" else name for name in inputs.split()]
    domain = MS if op.startswith("ms:") else ""
    return helper.make_node(op.removeprefix("ms:"), names, outputs.split(), domain=domain, **attributes)


class Form:
    """One way to compute something: nodes that make `y` of arrays, of which those in `held` are initializers."""

    def __init__(self, nodes: list[Any], arrays: dict[str, np.ndarray], threads: int, held: tuple[str, ...]) -> None:
        used = {name for each in nodes for name in each.input if name}
        self.given = {name: array for name, array in arrays.items() if name in used and name not in held}
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in self.given.items()
        ]
        graph = helper.make_graph(
            nodes, "form", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(arrays[name], name) for name in held if name in used],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 24), helper.make_opsetid(MS, 1)]
        options = ort.load().SessionOptions()
        options.intra_op_num_threads = threads
        model = helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
        self.session = ort.load().InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER
        )
        self.microseconds: list[float] = []

    def run(self) -> None:
        for _ in range(REPETITIONS):
            started = time.perf_counter()
            self.session.run(None, self.given)
            self.microseconds.append(1e6 * (time.perf_counter() - started))


def forms(heads: int, width: int) -> dict[str, dict[str, list[Any]]]:
    """What is compared, the chosen way first."""
    attention = {"scale": width**-0.5}
    multi = {"num_heads": heads, **attention}
    counts = {"q_num_heads": heads, "kv_num_heads": heads, **attention}
    integer = "x8 {0}8 step {0}s zero"
    return {
        "a sum and its norm": {
            "Add, LayerNormalization": [node("Add", "x r", "s"), node("LayerNormalization", "s gain bias", "y")],
            "SkipLayerNormalization": [node("ms:SkipLayerNormalization", "x r gain bias", "y")],
        },
        "attention with padding": {
            "Attention, numbers": [node("Attention", "q k v numbers", "y", **counts)],
            "Attention, truth values": [node("Attention", "q k v truths", "y", **counts)],
            "MultiHeadAttention": [node("ms:MultiHeadAttention", "q k v - keys", "y", **multi)],
        },
        "queries, keys and values": {
            "three products": [
                *(node("ms:MatMulIntegerToFloat", integer.format("w"), name) for name in "abc"),
                node("Sum", "a b c", "y"),
            ],
            "one product and a Split": [
                node("ms:MatMulIntegerToFloat", integer.format("wide"), "all"),
                node("Split", "all sizes", "a b c", axis=-1),
                node("Sum", "a b c", "y"),
            ],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("threads", 2), ("batch", 32), ("length", 16), ("heads", 12), ("width", 32)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    args = parser.parse_args()
    shape, random = (args.batch, args.length, args.heads * args.width), np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name in ("x", "r", "q", "k", "v")}
    keys = np.arange(args.length) < max(1, args.length - 2)
    truths = np.broadcast_to(keys, (args.batch, 1, args.length, args.length)).copy()
    held: dict[str, np.ndarray] = {
        "gain": np.ones(shape[2], np.float32), "bias": np.zeros(shape[2], np.float32),
        "step": np.array(0.1, np.float32), "zero": np.array(128, np.uint8),
        "w8": random.integers(-127, 128, (shape[2], shape[2])).astype(np.int8),
        "ws": np.full(shape[2], 0.1, np.float32), "sizes": np.full(3, shape[2], np.int64),
    }  # fmt: skip
    held |= {"wide8": np.concatenate([held["w8"]] * 3, axis=1), "wides": np.concatenate([held["ws"]] * 3)}
    arrays |= {
        "x8": random.integers(0, 256, shape).astype(np.uint8), "truths": truths,
        "numbers": np.where(truths, 0, np.finfo(np.float32).min).astype(np.float32),
        "keys": np.broadcast_to(keys, shape[:2]).astype(np.int32),
    }  # fmt: skip
    for what, ways in forms(args.heads, args.width).items():
        made = {name: Form(nodes, {**arrays, **held}, args.threads, tuple(held)) for name, nodes in ways.items()}
        for form in [*made.values()] * ROUNDS:
            form.run()
        medians = {name: statistics.median(form.microseconds) for name, form in made.items()}
        first = next(iter(medians.values()))
        for name, median in medians.items():
            print(f"{what:26} {name:26} {median:8.0f} us  {median / first:.2f}")


if __name__ == "__main__":
    main()
