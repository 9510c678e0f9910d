"""Plans on a real GPU against ONNX Runtime on the CPU. The graphs and the build need none, and are tried anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime_edge.backends.tensorrt import TrtDecoder, TrtEncoder
from runtime_edge.errors import LeptonError
from runtime_edge.manifest import CacheLayer, Encoder, Engine, EngineSpec, InputShapes, Profile
from runtime_edge.tensorrt import flavours
from runtime_edge.tensorrt.builder import build_plan
from runtime_edge.tensorrt.device import Device, this_device
from tests.runtime_edge import tiny

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (the extra rtx) is not installed")

VOCAB, HIDDEN, HEADS, DIM, LENGTH, LAYERS, CHUNK = 64, 64, 4, 16, 128, 2, 32
NUMPY = {"float32": np.float32, "float16": np.float16}
ONNX = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def decoder_model(dtype: str) -> onnx.ModelProto:
    """Two layers of attention over a static cache, as the compiler lowers a decoder for TensorRT."""
    random = np.random.default_rng(5)
    node = helper.make_node
    initializers = [
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in (
            ("zero", 0),
            ("one", 1),
            ("heads", [1, -1, HEADS, DIM]),
            ("merged", [1, -1, HIDDEN]),
            ("rows", [1, 1, -1, 1]),
        )
    ]
    initializers += [numpy_helper.from_array(np.arange(LENGTH, dtype=np.int64)[None, None, None], "slots")]

    def weight(name: str, *shape: int) -> str:
        values = random.standard_normal(shape) / np.sqrt(shape[0])
        initializers.append(numpy_helper.from_array(values.astype(NUMPY[dtype]), name))
        return name

    nodes = [
        node("Gather", [weight("embedding", VOCAB, HIDDEN), "input_ids"], ["stream0"]),
        node("Shape", ["input_ids"], ["length"], start=1, end=2),
        node("Squeeze", ["length"], ["count"]),
        node("Range", ["zero", "count", "one"], ["steps"]),
        node("Add", ["steps", "past_length"], ["places"]),
        node("Reshape", ["places", "rows"], ["columns"]),
        node("LessOrEqual", ["slots", "columns"], ["mask"]),  # four dimensions: of two, fp16 does not build (1.7.1)
    ]
    cache_in, cache_out = [], []
    for layer in range(LAYERS):
        stream = f"stream{layer}"
        for part in "qkv":
            name = f"{part}{layer}"
            nodes += [
                node("MatMul", [stream, weight(f"w{name}", HIDDEN, HIDDEN)], [f"{name}_flat"]),
                node("Reshape", [f"{name}_flat", "heads"], [f"{name}_split"]),
                node("Transpose", [f"{name}_split"], [name], perm=[0, 2, 1, 3]),
            ]
        for part, new in (("key", "k"), ("value", "v")):
            past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
            nodes += [node("TensorScatter", [past, f"{new}{layer}", "past_length"], [present], axis=2)]
            shape = (1, HEADS, LENGTH, DIM)
            cache_in.append(helper.make_tensor_value_info(past, ONNX[dtype], shape))
            cache_out.append(helper.make_tensor_value_info(present, ONNX[dtype], shape))
        nodes += [
            node("Attention", [f"q{layer}", f"present.{layer}.key", f"present.{layer}.value", "mask"], [f"a{layer}"]),
            node("Transpose", [f"a{layer}"], [f"a{layer}_back"], perm=[0, 2, 1, 3]),
            node("Reshape", [f"a{layer}_back", "merged"], [f"a{layer}_flat"]),
            node("MatMul", [f"a{layer}_flat", weight(f"wo{layer}", HIDDEN, HIDDEN)], [f"o{layer}"]),
            node("Add", [stream, f"o{layer}"], [f"stream{layer + 1}"]),
        ]
    nodes += [
        node("Gather", [f"stream{LAYERS}", "logits_at"], ["kept"], axis=1),
        node("MatMul", ["kept", weight("head", HIDDEN, VOCAB)], ["scores"]),
        node("Cast", ["scores"], ["logits"], to=TensorProto.FLOAT),
    ]
    inputs = [("input_ids", [1, "seq"]), ("past_length", [1]), ("logits_at", ["n"])]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [*(helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs), *cache_in],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "n", VOCAB]), *cache_out],
        initializer=initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


def encoder_model() -> onnx.ModelProto:
    """Averages the embeddings of the tokens."""
    table = np.random.default_rng(6).standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "first"], ["embeddings"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", HIDDEN])],
        initializer=[numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "first")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def shapes(name: str, least: list[int], usual: list[int], most: list[int]) -> InputShapes:
    return InputShapes(name=name, min=tuple(least), opt=tuple(usual), max=tuple(most))


PROFILES = (
    Profile(
        name="prefill",
        inputs=(shapes("input_ids", [1, 1], [1, 16], [1, CHUNK]), shapes("logits_at", [1], [1], [CHUNK])),
    ),
    Profile(name="decode", inputs=(shapes("input_ids", [1, 1], [1, 1], [1, 1]), shapes("logits_at", [1], [1], [1]))),
)
BATCH = (Profile(name="batch", inputs=(shapes("input_ids", [1, 1], [2, 8], [4, 16]),)),)
SPEC = tiny.decoder(VOCAB, LENGTH, (CacheLayer(kv_heads=HEADS, key_dim=DIM, value_dim=DIM),) * LAYERS)


def built(
    folder: Path, model: onnx.ModelProto, profiles: tuple[Profile, ...], capability: str
) -> tuple[Path, EngineSpec]:
    spec = EngineSpec(flavour="tensorrt-rtx", versions=">=1.4", compute_capabilities=(capability,), profiles=profiles)
    graph, plan = folder / "model.onnx", folder / "model.plan"
    onnx.save(model, graph)
    plan.write_bytes(build_plan(graph, spec).data)
    return plan, spec


@pytest.fixture
def device() -> Device:
    try:
        return this_device(flavours.flavour("tensorrt-rtx"))
    except LeptonError as error:
        pytest.skip(f"running a plan needs a GPU: {error.message}")


class Reference:
    """The same graph in ONNX Runtime on the CPU, token by token in the given runs."""

    def __init__(self, model: onnx.ModelProto, dtype: str) -> None:
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self._cache = {
            f"past_key_values.{layer}.{part}": np.zeros((1, HEADS, LENGTH, DIM), NUMPY[dtype])
            for layer in range(LAYERS)
            for part in ("key", "value")
        }
        self._past = 0

    def run(self, token_ids: list[int]) -> Any:
        """Logits of every token, [len, VOCAB]."""
        feeds = {
            "input_ids": np.array([token_ids]),
            "past_length": np.array([self._past]),
            "logits_at": np.arange(len(token_ids)),
        }
        names = [output.name for output in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(None, {**feeds, **self._cache}), strict=True))
        self._cache = {name: found[name.replace("past_key_values", "present")] for name in self._cache}
        self._past += len(token_ids)
        return found["logits"][0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_graph_is_the_same_in_one_run_and_in_steps(dtype: str) -> None:
    """The reference itself, on the CPU."""
    model, tokens = decoder_model(dtype), [3, 1, 4, 1, 5, 9, 2, 6]
    whole = Reference(model, dtype).run(tokens)
    stepped = Reference(model, dtype)
    parts = np.concatenate([stepped.run(part) for part in ([3, 1, 4], [1], [5, 9], [2], [6])])
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 if dtype == "float32" else 2e-2)
    assert np.abs(whole).max() > 0.5
    assert np.abs(whole[0] - whole[-1]).max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_plan_builds_and_nothing_of_it_is_read_by_the_cpu(tmp_path: Path, dtype: str) -> None:
    """An input that TensorRT takes for a shape would be read in the host's memory, and would rule out CUDA graphs."""
    import tensorrt_rtx as trt

    plan, _ = built(tmp_path, decoder_model(dtype), PROFILES, "8.6")
    assert plan.stat().st_size > 10_000
    log = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(tmp_path / "model.onnx"))
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    assert [tensor.name for tensor in tensors if tensor.is_shape_tensor] == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_decoder_on_the_gpu_agrees_with_the_cpu(tmp_path: Path, device: Device, dtype: str, in_place: bool) -> None:
    model = decoder_model(dtype)
    plan, spec = built(tmp_path, model, PROFILES, device.capability)
    why: list[str] = []
    engine = Engine(spec=spec, cache_dtype=dtype, cache_in_place=in_place)
    decoder = TrtDecoder(plan, engine, SPEC, tmp_path / "jit.cache", why)
    state, reference = decoder.new_state(), Reference(model, dtype)
    tolerance = 1e-3 if dtype == "float32" else 5e-2
    prompt = np.random.default_rng(7).integers(0, VOCAB, 20).tolist()
    np.testing.assert_allclose(state.prefill(prompt), reference.run(prompt)[-1], rtol=0, atol=tolerance)
    for token in (5, 6, 7, 8, 9, 10):  # plain, captured, replayed; with two caches, of both sets
        np.testing.assert_allclose(state.step(token), reference.run([token])[-1], rtol=0, atol=tolerance)
    assert why == []  # the graph was captured
    more = [1, 2, 3, 4, 5]
    out = np.empty((len(more), VOCAB), np.float32)
    state.all_logits(more, out)
    np.testing.assert_allclose(out, reference.run(more), rtol=0, atol=tolerance)
    other = decoder.new_state()  # its own cache
    np.testing.assert_allclose(other.step(3), Reference(model, dtype).run([3])[-1], rtol=0, atol=tolerance)
    before = decoder.engine.cuda.free_memory()
    cuda = decoder.engine.cuda
    decoder.close()
    assert cuda.free_memory() >= before
    assert (tmp_path / "jit.cache").stat().st_size > 0


def test_an_encoder_on_the_gpu_agrees_with_the_cpu(tmp_path: Path, device: Device) -> None:
    model = encoder_model()
    plan, spec = built(tmp_path, model, BATCH, device.capability)
    encoder = Encoder(inputs=("input_ids",), roles=("token_ids",), output="embeddings", dim=HIDDEN, max_seq_len=16)
    session = TrtEncoder(plan, Engine(spec=spec), encoder, None)
    ids = np.random.default_rng(8).integers(0, VOCAB, (6, 5))
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input_ids": ids})[0]
    np.testing.assert_allclose(session.run({"input_ids": ids}), expected, rtol=0, atol=1e-5)
    session.close()


def test_the_encoder_builds(tmp_path: Path) -> None:
    plan, _ = built(tmp_path, encoder_model(), BATCH, "8.6")
    assert plan.stat().st_size > 1000
