"""Passes on real graphs: what they count, what they leave, and that the numbers are what they should be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.errors import InputError
from leptonc.ir import edit
from leptonc.ir.dialect import DialectError, count_ops, verify
from leptonc.ir.structure import embeddings, layer_of, linears
from leptonc.passes.base import Config, Manager, Pass
from leptonc.passes.cleanup import Cleanup
from leptonc.passes.fuse_linears import FuseLinears, joinable
from leptonc.passes.last_logits import LastLogits, head_of
from leptonc.passes.quantize.blocks import Format, dequantize, round_to_nearest
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig, quantized_of
from leptonc.sources import open_source
from tests.leptonc import models

IDS = models.token_ids(24)


def logits(model: ir.Model, folder: Path) -> models.Floats:
    return models.Graph(model, folder).logits(IDS, (13, 1, 10), capacity=30)


# Quantization


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "expected weights of 2, 4 or 8 bits and embeddings of 4 or 8, found 3"),
        ({"block_size": 48}, "expected a block size of 16, 32, 64, 128 or 256, found 48"),
        ({"floating": True}, "expected 8 signed bits and whole channels for float8"),
        ({"signed": True, "symmetric": False}, "expected symmetric weights for signed codes"),
        ({"method": "gptq2"}, "expected a method among rtn, gptq, awq, found 'gptq2'"),
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantizeWeightsConfig(**changes)  # type: ignore[arg-type]


def test_a_configs_record() -> None:
    record = QuantizeWeights(QuantizeWeightsConfig(bits=8, symmetric=False, skip=("lm_head",))).record()
    assert (record.name, record.version) == ("quantize-weights", 7)
    assert record.config == {
        "bits": 8, "block_size": 32, "symmetric": False, "signed": False, "floating": False, "embeddings": True,
        "method": "rtn", "embedding_bits": 0, "layers": (), "channels": (), "half_scales": False, "skip": ("lm_head",),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True)])
def test_the_graph_computes_with_the_dequantized_weights(name: str, bits: int, symmetric: bool, tmp_path: Path) -> None:
    """Against transformers, given the weights that a reference in numpy rounds."""
    form = Format(bits, 32, symmetric)
    with open_source(f"sample:{name}") as source:
        model = models.reference_of(source)
    found = models.captured(name).model
    linear = {q.weight.name: q.transposed for q in linears(found)}
    with models.torch.no_grad():
        for key, parameter in model.named_parameters():
            turned = linear.get(key, True)
            if key in linear or key in ("model.embed_tokens.weight", "transformer.wte.weight"):
                weight = parameter.numpy() if turned else np.ascontiguousarray(parameter.numpy().T)
                rounded = dequantize(round_to_nearest(weight, form), form)
                parameter.copy_(models.torch.from_numpy(rounded if turned else rounded.T.copy()))
    Manager().run(found, [QuantizeWeights(QuantizeWeightsConfig(bits, 32, symmetric))])
    verify(found)
    got = logits(found, tmp_path)
    assert np.abs(got - models.reference_logits(model, IDS)).max() <= 1e-4
    plain = models.reference_logits(models.reference(name), IDS)
    assert np.abs(got - plain).max() > 1e-2 / 16 ** (bits == 8)  # and not with the weights as they were


def test_a_tied_weight_stays_one() -> None:
    model = models.captured("tiny-llama").model
    before = len(linears(model))
    Manager().run(model, [QuantizeWeights(QuantizeWeightsConfig())])
    heads = [q for q in linears(model) if q.path == "lm_head"]
    (look_up,) = embeddings(model)
    assert heads[0].dequantize is edit.producer(look_up.inputs[0])
    assert len(linears(model)) == before
    assert count_ops(model)["DequantizeLinear"] == before  # the head's is the embedding's
    assert all(quantized_of(q.weight) is not None for q in linears(model))
    codes = heads[0].weight
    assert (codes.dtype, codes.shape) == (ir.DataType.UINT4, [512, 64])


def test_what_is_skipped() -> None:
    model = models.captured("tiny-qwen3").model
    Manager().run(model, [QuantizeWeights(QuantizeWeightsConfig(skip=("lm_head", "layers.1.mlp")))])
    floats = {q.path for q in linears(model) if q.dequantize is None}
    assert floats == {"lm_head", *(f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up", "down"))}


@pytest.mark.parametrize(
    ("columns", "size", "options"),
    [
        (576, 64, {"block_size": 128}),
        (576, 64, {"block_size": 64}),
        (576, 32, {"block_size": 64, "symmetric": False}),  # nine zero points of four bits are no whole bytes
        (576, 64, {"block_size": 128, "embedding_bits": 8, "symmetric": False}),  # those of 8 bits have none
        (1024, 256, {"block_size": 256, "symmetric": False}),
        (40, 32, {}),  # no blocks fill this row
        (576, 128, {"block_size": 128, "signed": True}),
    ],
)
def test_blocks_of_embeddings_fill_their_rows(columns: int, size: int, options: dict[str, Any]) -> None:
    config = QuantizeWeightsConfig(**options)
    assert config.form(columns, table=True).size == size
    assert config.form(columns).size == config.block_size


def test_quantizing_twice_changes_nothing_more() -> None:
    model = models.captured("tiny-llama").model
    each = QuantizeWeights(QuantizeWeightsConfig(bits=8))
    assert each(model).modified
    ops = count_ops(model)
    assert not each(model).modified
    assert count_ops(model) == ops


# Joined linear layers


def test_linears_of_one_input_are_joined(tmp_path: Path) -> None:
    model = models.captured("tiny-llama").model
    before, want = count_ops(model), logits(model, tmp_path)
    assert FuseLinears().run(model) == 3  # queries with keys and values, in three layers
    edit.cleanup(model)
    verify(model)
    after = count_ops(model)
    assert (before["MatMul"], after["MatMul"]) == (22, 16)
    assert (before.get("Split", 0), after["Split"]) == (0, 3)
    joined = {q.path: q.shape for q in linears(model)}
    assert joined["model.layers.0.self_attn.q_proj+k_proj+v_proj"] == (128, 64)
    assert joined["model.layers.2.mlp.gate_proj"] == joined["model.layers.2.mlp.up_proj"] == (160, 64)
    assert np.abs(logits(model, tmp_path) - want).max() <= 1e-5
    assert FuseLinears().run(model) == 0


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-starcoder2"])
def test_biases_are_joined(name: str, tmp_path: Path) -> None:
    model = models.captured(name).model
    want = logits(model, tmp_path)
    assert FuseLinears().run(model) > 0
    edit.cleanup(model)
    joined = [q for q in linears(model) if "q_proj+k_proj+v_proj" in q.path]
    assert all(q.bias is not None and q.bias.shape == [q.shape[0]] for q in joined)
    assert joined
    assert np.abs(logits(model, tmp_path) - want).max() <= 1e-5


@pytest.mark.parametrize("symmetric", [True, False])
def test_quantized_linears_are_joined(symmetric: bool, tmp_path: Path) -> None:
    model = models.captured("tiny-llama").model
    Manager().run(model, [QuantizeWeights(QuantizeWeightsConfig(symmetric=symmetric))])
    want = logits(model, tmp_path)
    Manager().run(model, [FuseLinears()])
    assert count_ops(model)["DequantizeLinear"] == 16
    assert np.abs(logits(model, tmp_path) - want).max() <= 1e-5


def test_what_is_not_joined() -> None:
    model = models.captured("tiny-llama").model
    Manager().run(model, [QuantizeWeights(QuantizeWeightsConfig(skip=("k_proj",)))])
    by_name = {q.path.rpartition("layers.0.")[2]: q for q in linears(model)}
    q, k, v, o = (by_name[f"self_attn.{n}_proj"] for n in "qkvo")
    assert joinable([q, v])
    assert not joinable([q])
    assert not joinable([q, k])  # codes and floats
    assert not joinable([q, o])  # of different inputs
    assert not joinable([q, q])  # one weight
    assert not joinable([q, dataclasses.replace(v, bias=q.weight)])
    assert not joinable([q, dataclasses.replace(v, transposed=False)])


# Logits


# Of the last layer, what stands behind its attention: Gemma 2 has norms before additions and a soft cap behind the
# head, Phi-3 gate and up in one weight. GPT-2's linear layers flatten what they read.
@pytest.mark.parametrize(
    ("name", "cut"),
    [("tiny-llama", "o_proj gate_proj up_proj down_proj"), ("tiny-gemma2", "o_proj gate_proj up_proj down_proj"),
     ("tiny-phi3", "o_proj gate_up_proj down_proj"), ("tiny-starcoder2", "o_proj c_fc c_proj"), ("tiny-gpt2", "")],
)  # fmt: skip
def test_logits_of_the_last_positions(name: str, cut: str, tmp_path: Path) -> None:
    model = models.captured(name).model
    want = logits(model, tmp_path)
    Manager().run(model, [LastLogits()])
    verify(model)
    assert [v.name for v in model.graph.inputs][-1] == "logits_to_keep"
    kept = [each.path for each in linears(model) if each.x.shape is not None and each.x.shape[1] == "kept"]
    assert " ".join(path.rpartition(".")[2] for path in kept) == f"{cut} lm_head".strip()
    assert len({layer_of(path) for path in kept[:-1]}) == (1 if cut else 0)
    head = head_of(model.graph)
    assert head is not None
    nodes = list(model.graph)
    behind = [value for node in nodes[nodes.index(head.node) :] for value in node.outputs]
    assert behind[-1].name == "logits"
    assert all(value.shape is not None and value.shape[1] == "kept" for value in behind)
    graph = models.Graph(model, tmp_path)
    given = {"input_ids": np.array([IDS]), "past_length": np.array([0]), **graph.caches(24)}
    for keep in (0, 1, 5, 24):
        got = graph(**given, logits_to_keep=np.array([keep]))["logits"][0]
        assert got.shape == (keep, 512)
        assert np.abs(got - want[24 - keep :]).max(initial=0) <= 1e-5


def test_encoders_keep_their_outputs() -> None:
    model = models.captured("tiny-bert").model
    before = count_ops(model)
    assert not LastLogits()(model).modified
    assert count_ops(model) == before


# The manager


class Breaking(Pass):
    name = "breaking"

    def run(self, model: ir.Model) -> int:
        model.graph.append(ir.node("Det", [model.graph.inputs[0]]))
        return 0


class Raising(Pass):
    name = "raising"

    def run(self, model: ir.Model) -> int:
        raise InputError("expected another weight")


@dataclasses.dataclass(frozen=True)
class Factor(Config):
    factor: float = 2.0


class Scaling(Pass):
    """Multiplies the output."""

    name = "scaling"
    version = 3

    def __init__(self, config: Factor) -> None:
        super().__init__(config)

    def run(self, model: ir.Model) -> int:
        output = model.graph.outputs[0]
        assert isinstance(self.config, Factor)
        factor = edit.initializer(model.graph, "factor", ir.tensor(np.float32(self.config.factor), name="factor"))
        node = ir.node("Mul", [output, factor], name="scaled")
        model.graph.append(node)
        edit.replace(output, node.outputs[0])
        node.replace_input_with(0, output)
        return 1


def test_the_manager_runs_times_records_and_dumps(tmp_path: Path) -> None:
    model = models.captured("tiny-llama").model
    manager, steps = Manager(tmp_path / "dump" / "ir"), []
    manager.write(model, "capture")
    manager.run(model, [LastLogits(), FuseLinears(), Cleanup()], steps.append)
    assert steps == [1, 1, 1]
    assert [r.name for r in manager.records] == list(manager.seconds) == ["last-logits", "fuse-linears", "cleanup"]
    assert all(seconds > 0 for seconds in manager.seconds.values())
    files = sorted((tmp_path / "dump" / "ir").iterdir())
    names = ("capture", "last-logits", "fuse-linears", "cleanup")
    assert [f.name for f in files] == [f"{i:02}-{name}.onnx.txt" for i, name in enumerate(names)]
    texts = [f.read_text() for f in files]
    assert "logits_to_keep" not in texts[0]
    assert "logits_to_keep" in texts[1]
    assert "q_proj+k_proj+v_proj" not in texts[1]
    assert "model.layers.0.self_attn.q_proj+k_proj+v_proj" in texts[2]
    assert all(len(text) < 60_000 for text in texts)  # shapes, no weights


def test_configs_are_recorded() -> None:
    model, manager = models.captured("tiny-bert").model, Manager()
    manager.run(model, [Scaling(Factor(3.0))])
    (record,) = manager.records
    assert (record.name, record.version, record.config) == ("scaling", 3, {"factor": 3.0})
    assert [v.name for v in model.graph.outputs] == ["embeddings"]


def test_a_pass_that_leaves_the_dialect_is_named() -> None:
    manager = Manager()
    with pytest.raises(DialectError, match=r"after breaking: expected an op of the dialect, found ai\.onnx\.Det"):
        manager.run(models.captured("tiny-bert").model, [LastLogits(), Breaking()])
    assert [r.name for r in manager.records] == ["last-logits"]


def test_errors_of_passes_come_through_as_they_are() -> None:
    with pytest.raises(InputError, match="expected another weight"):
        Manager().run(models.captured("tiny-bert").model, [Raising()])
