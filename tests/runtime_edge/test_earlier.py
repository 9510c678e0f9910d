"""Manifests of formats before 9 say the same in parts, and are refused where they contradict themselves."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from runtime_edge.errors import ArtifactError
from runtime_edge.manifest import FORMAT_VERSION, Engine, EngineSpec, Plan, decode, encode
from tests.runtime_edge.test_formats import STORED


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """Stored manifests of format 8, by the artifact's name."""
    names = ("llama-shared", "sentence-int8", "classifier-int8")
    with tarfile.open(STORED) as archive:
        return {name: json.load(archive.extractfile(f"8/{name}.lepton/manifest.json")) for name in names}  # type: ignore[arg-type]


def read(manifest: dict[str, Any], change: Callable[[dict[str, Any]], object] = lambda _: None) -> Any:
    own = json.loads(json.dumps(manifest))
    change(own)
    return decode(json.dumps(own).encode())


def test_a_decoder_becomes_a_part_with_states_and_two_graphs(manifests: dict[str, dict[str, Any]]) -> None:
    old, found = manifests["llama-shared"], read(manifests["llama-shared"])
    (part,) = found.parts
    assert [port.role for port in part.inputs] == ["token_ids", "past_length"]
    assert part.outputs[0].dims[-1] == old["decoder"]["vocab_size"]
    assert len(part.states) == len(old["decoder"]["cache"])
    assert {buffer.dtype for buffer in part.buffers} == {"int8"}
    (variant,) = found.variants
    assert [(graph.purpose, graph.file, graph.derived) for graph in variant.graphs] == [
        ("any", "cpu.onnx", None), ("prompts", "cpu.prefill.onnx", "cpu.prefill.json"),
    ]  # fmt: skip
    assert found.decoder.max_seq_len == old["decoder"]["max_seq_len"]


@pytest.mark.parametrize("name", ["sentence-int8", "classifier-int8"])
def test_an_encoder_becomes_a_part_and_settings(name: str, manifests: dict[str, dict[str, Any]]) -> None:
    old, found = manifests[name]["encoder"], read(manifests[name]).encoder
    for field, value in old.items():
        given = getattr(found, field)
        assert (list(given) if isinstance(given, tuple) else given) == value, field


def test_a_record_of_format_7_reads_as_before(manifests: dict[str, dict[str, Any]]) -> None:
    def shorten(data: dict[str, Any]) -> None:
        kept = ("inputs", "output", "dim", "max_seq_len", "labels", "multi_label")
        data["encoder"] = {name: data["encoder"][name] for name in kept}
        data["format_version"] = 7

    found = read(manifests["classifier-int8"], shorten).encoder
    assert (found.score_function, found.segments, found.default_prompt) == ("sigmoid", True, None)
    plain = read(manifests["classifier-int8"], lambda data: (shorten(data), data["encoder"].pop("multi_label")))
    assert plain.encoder.score_function == "softmax"


SPEC = {
    "flavour": "tensorrt", "versions": ">=10.3", "compute_capabilities": ["8.7"], "sparse_weights": True,
    "profiles": [{"name": "batch", "inputs": []}],
}  # fmt: skip
PLAN = {"file": "tokenizer.json", "version": "10.3.0", "compute_capabilities": ["8.7"]}


def with_engine(manifest: dict[str, Any], **engine: Any) -> None:
    manifest["variants"][0] |= {"backend": "tensorrt", "engine": engine}


def test_the_recipe_of_an_engine_becomes_its_spec(manifests: dict[str, dict[str, Any]]) -> None:
    def change(data: dict[str, Any]) -> None:
        with_engine(data, recipe=SPEC, cache_dtype="float32", cache_in_place=False, plans=[PLAN])

    (variant,) = read(manifests["classifier-int8"], change).variants
    assert variant.engine == Engine(
        spec=msgspec.convert(SPEC, EngineSpec), cache_dtype="float32", cache_in_place=False,
        plans=(msgspec.convert(PLAN, Plan),),
    )  # fmt: skip
    (graph,) = variant.graphs
    assert graph.added == ()


def test_what_was_read_can_be_written_in_the_latest_format(manifests: dict[str, dict[str, Any]]) -> None:
    for manifest in manifests.values():
        found = msgspec.structs.replace(read(manifest), format_version=FORMAT_VERSION)
        assert decode(encode(found)) == found


CASES: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "no decoder": ("llama-shared", lambda d: d.pop("decoder"), "task text-generation: expected `decoder`, found none"),
    "no encoder": ("sentence-int8", lambda d: d.pop("encoder"), "task text-embedding: expected `encoder`, found none"),
    "an unknown task": ("llama-shared", lambda d: d.update(task="x"), "task: expected one of text-generation, .* 'x'"),
    "an unknown field": ("llama-shared", lambda d: d.update(parts=[]), "unknown field `parts`"),
    "an unknown field of a decoder": ("llama-shared", lambda d: d["decoder"].update(x=1), "unknown field `x`"),
    "an unknown field of an encoder": ("sentence-int8", lambda d: d["encoder"].update(x=1), "unknown field `x`"),
    "an input that is none": (
        "sentence-int8", lambda d: d["encoder"].update(inputs=["input_ids", "y"]), "encoder.inputs: expected some of",
    ),
    "another output": (
        "classifier-int8", lambda d: d["encoder"].update(output="embeddings"), "encoder.output: expected 'logits'",
    ),
    "no token ids": (
        "sentence-int8", lambda d: d["encoder"].update(inputs=["attention_mask"]),
        "expected one part, an encoder that gives embeddings, found none",
    ),
    "fewer labels": ("classifier-int8", lambda d: d["encoder"]["labels"].pop(), "settings.labels: expected 3 labels"),
    "heads below one": ("llama-shared", lambda d: d["decoder"]["cache"][0].update(kv_heads=0), ">= 1.*kv_heads"),
    "weights to make without a graph": (
        "llama-shared", lambda d: d["variants"][0].update(prefill=None), "derived: expected it beside a graph",
    ),
    "an engine with a spec": ("classifier-int8", lambda d: with_engine(d, spec=SPEC), "unknown field `spec`"),
    "an engine with no recipe": ("classifier-int8", lambda d: with_engine(d, plans=[]), "required field `recipe`"),
    "a graph that is not listed": (
        "llama-shared", lambda d: d["variants"][0].update(prefill="x.onnx"), "expected a file listed in `files`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refuses(case: str, manifests: dict[str, dict[str, Any]]) -> None:
    name, change, message = CASES[case]
    with pytest.raises(ArtifactError, match=message):
        read(manifests[name], change)
