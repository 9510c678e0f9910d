"""Tiny ONNX graphs and engine specs for the builder, and artifacts that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime_edge.manifest import EngineSpec, InputShapes, Profile
from tests.runtime_edge import tiny

WIDTH = 128
DEVICE_VERSION = "10.16.1.11"

_FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def raw(name: str, dtype: int, shape: tuple[int, ...], size: int) -> TensorProto:
    """A tensor of zeros of `size` bytes."""
    return helper.make_tensor(name, dtype, shape, bytes(size), raw=True)


def weights_of(scheme: str, block: int) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes and initializers that give the weight `w`, [WIDTH, WIDTH]."""
    if scheme in _FLOATS:
        dtype = _FLOATS[scheme]
        return [], [raw("w", dtype, (WIDTH, WIDTH), WIDTH * WIDTH * (4 if scheme == "fp32" else 2))]
    node = helper.make_node
    if scheme == "int4":
        scale = numpy_helper.from_array(np.ones((WIDTH // block, WIDTH), np.float16), "scale")
        values = raw("q", TensorProto.INT4, (WIDTH, WIDTH), WIDTH * WIDTH // 2)
        return [node("DequantizeLinear", ["q", "scale"], ["w"], name="dq", axis=0, block_size=block)], [values, scale]
    dtype = TensorProto.INT8 if scheme == "int8" else TensorProto.FLOAT8E4M3FN
    shape = (WIDTH,) if scheme == "int8" else ()
    scale = numpy_helper.from_array(np.ones(shape, np.float16), "scale")
    values = raw("q", dtype, (WIDTH, WIDTH), WIDTH * WIDTH)
    zero = raw("zero", dtype, shape, WIDTH if shape else 1)
    nodes = [node("DequantizeLinear", ["q", "scale", "zero"], ["w"], name="dq", axis=1)]
    if scheme == "fp8":  # its products want both sides quantized
        nodes += [
            node("QuantizeLinear", ["x", "scale", "zero"], ["xq"], name="xq"),
            node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"], name="xd"),
        ]
    return nodes, [values, scale, zero]


def model(scheme: str = "fp16", *, op: str = "Relu", domain: str = "", block: int = 64) -> onnx.ModelProto:
    """A graph x [batch, WIDTH] -> MatMul `product` -> `op` `last` -> z; both nodes say which module they are of."""
    nodes, initializers = weights_of(scheme, block)
    dtype = _FLOATS.get(scheme, TensorProto.FLOAT16)
    product = helper.make_node("MatMul", ["xd" if scheme == "fp8" else "x", "w"], ["y"], name="product")
    last = helper.make_node(op, ["y"], ["z"], name="last", domain=domain)
    for node, module in ((product, "model.layers.0.mlp.up_proj"), (last, "model.layers.0.mlp.act_fn")):
        node.metadata_props.add(key="lepton.module", value=module)
    graph = helper.make_graph(
        [*nodes, product, last],
        "tiny",
        [helper.make_tensor_value_info("x", dtype, ["batch", WIDTH])],
        [helper.make_tensor_value_info("z", dtype, ["batch", WIDTH])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def saved(path: Path, **options: Any) -> Path:
    """Writes `model(**options)` to a file."""
    onnx.save(model(**options), path)
    return path


def profile(low: tuple[int, ...] = (1, WIDTH), high: tuple[int, ...] = (8, WIDTH), name: str = "x") -> Profile:
    """A profile of one input."""
    return Profile(name="batch", inputs=(InputShapes(name=name, min=low, opt=low, max=high),))


def engine_spec(*capabilities: str, **changes: Any) -> EngineSpec:
    """An engine's spec for TensorRT-RTX."""
    base: dict[str, Any] = {
        "flavour": "tensorrt-rtx",
        "versions": ">=1.4;<2.0",
        "compute_capabilities": capabilities or ("8.6",),
        "profiles": (profile(),),
    }
    return EngineSpec(**{**base, **changes})


def write_artifact(root: Path, **changes: Any) -> Path:
    """Writes an encoder's artifact whose second variant is for TensorRT 10.16 on compute capability 8.7.

    The graph of both is the CPU's: what is tested with it builds no real engine.
    """
    import json

    tiny.write_encoder(root)
    manifest = json.loads((root / "manifest.json").read_text())
    cpu = manifest["variants"][0]
    shapes = [{"name": name, "min": [1, 1], "opt": [1, 4], "max": [8, 5]} for name in ("input_ids", "attention_mask")]
    own_spec = {
        "flavour": "tensorrt",
        "versions": ">=10.16;<11.0",
        "compute_capabilities": ["8.7"],
        "profiles": [{"name": "batch", "inputs": shapes}],
    }
    engine = {"spec": {**own_spec, **changes.pop("spec", {})}, **changes}
    backend = engine["spec"]["flavour"]
    graphs = [{**cpu["graphs"][0], "engine": engine}]
    orin = {**cpu, "name": "jetson-orin", "target": "jetson-orin", "backend": backend, "graphs": graphs}
    manifest["variants"] = [cpu, orin]
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root
