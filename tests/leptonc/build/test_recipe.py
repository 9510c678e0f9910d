"""Recipes: what they may say, what is refused before anything long begins, and that they are the options' equal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime_edge
from leptonc.build.recipe import _KINDS, NO_RECIPE, as_record, shipped, with_recipe
from leptonc.build.to_artifact import build
from leptonc.errors import InputError
from leptonc.options import BuildOptions, LayerRule
from leptonc.report import as_plain
from runtime_edge.toml_writer import toml

LLAMA = "sample:tiny-llama"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def to_file(text: str) -> str:
        (tmp_path / "r.toml").write_text(text)
        return str(tmp_path / "r.toml")

    return to_file


def test_every_option_has_a_kind_that_recipes_read() -> None:
    for record in (BuildOptions, LayerRule):
        for field in dataclasses.fields(record):
            if field.name not in (*NO_RECIPE, "match"):
                assert str(field.type).split(" | ")[0] in _KINDS, field.name


def test_a_recipe_fills_options_and_what_is_given_stays(write: Callable[[str], str], tmp_path: Path) -> None:
    path = write(
        'weights = "int4"\nmethod = "gptq"\nsymmetric = false\nblock_size = 64\nmemory_gb = 1\nseed = 3\n'
        'max_loss = "2.5%"\ncalibration = "texts.txt"\n'
        '[[layers]]\nmatch = "*.down_proj"\nweights = "int8"\n'
        '[[layers]]\nmatch = ["*.q_proj", "*.k_proj"]\nblock_size = 32\n'
    )
    found = with_recipe(BuildOptions("m", block_size=16, seed=0), path, given={"source", "block_size", "seed"})
    assert found == BuildOptions(
        "m", weights="int4", method="gptq", symmetric=False, block_size=16, memory_gb=1.0, seed=0, max_loss=2.5,
        calibration=tmp_path / "texts.txt",
        layers=(LayerRule(("*.down_proj",), weights="int8"), LayerRule(("*.q_proj", "*.k_proj"), block_size=32)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('weihgts = "int4"', "unknown field 'weihgts'", "did you mean weights"),
        ('target = "cpu"', "unknown field 'target'", "on the command line"),
        ("block_size = true", "expected block_size to be a whole number, found True", None),
        ("max_loss = nan", "expected max_loss to be a number, found nan", None),
        ("max_loss = 'much'", "expected max_loss to be a number, found 'much'", None),
        ("weights = ", "expected a TOML file, found", None),
        ("layers = 3", "expected `layers` to be tables, found 3", "[[layers]]"),
        ('[[layers]]\nweights = "int8"', "expected `match` to be a pattern", "match = "),
        ('[[layers]]\nmatch = "*"', "found match alone", None),
        ('[[layers]]\nmatch = "*"\nbits = 8', r"\[\[layers\]\] 1: unknown field 'bits'", "weights"),
    ],
)
def test_recipes_that_cannot_be_read(write: Callable[[str], str], text: str, message: str, hint: str | None) -> None:
    with pytest.raises(InputError, match=message) as caught:
        with_recipe(BuildOptions("m"), write(text))
    assert hint is None or hint in str(caught.value.hint)


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none shipped named 'int4-gtpq'") as caught:
        with_recipe(BuildOptions("m"), "int4-gtpq")
    assert "int4-gptq" in str(caught.value.hint)
    with pytest.raises(InputError, match=r"found no file at .*none\.toml"):
        with_recipe(BuildOptions("m"), str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="expected a TOML file"):
        with_recipe(BuildOptions("m"), str(tmp_path / "binary.toml"))


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_are_whole_and_those_of_targets_are_their_defaults(name: str) -> None:
    import targets

    found = with_recipe(BuildOptions("m"), name)
    assert found != BuildOptions("m")
    if name in targets.names():
        assert found == BuildOptions("m", weights=targets.load(name).weights)


def test_a_record_is_a_recipe_that_says_the_same(write: Callable[[str], str], tmp_path: Path) -> None:
    options = BuildOptions(
        "m", out=tmp_path, weights="int4", symmetric=False, max_loss=2.5, calibration=tmp_path / "a.txt", method="gptq",
        layers=(LayerRule(("*.v_proj", 'odd"\\path'), weights="int8", block_size=64, symmetric=True),),
    )  # fmt: skip
    assert with_recipe(BuildOptions("m", out=tmp_path), write(toml(as_record(options)))) == options
    record = as_record(BuildOptions("m", prune=f"{tmp_path}/plan.json", weights="auto:95MB"))
    assert record == {"prune": "plan.json", "weights": "auto:95MB"}


def refused(tmp_path: Path, *rules: LayerRule, source: str = LLAMA, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        build(BuildOptions(source, out=tmp_path / "m", check=False, layers=rules, **{"weights": "int4", **options}))
    assert not (tmp_path / "m").exists()
    return caught.value


def test_every_pattern_matches_something(tmp_path: Path) -> None:
    rules = (
        LayerRule(("model.layers.*.mlp.dwon_proj", "*.q_proj"), weights="int8"),
        LayerRule(("model.embed_tokens",), weights="int8"),
    )
    error = refused(tmp_path, *rules, method="gptq")  # and before the model has written its text
    assert "found none for model.layers.*.mlp.dwon_proj, model.embed_tokens" in error.message
    assert "did you mean model.layers.*.mlp.down_proj" in str(error.hint)
    assert 'embeddings = "int8"' in str(error.hint)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ({"weights": "fp8"}, {}, "expected weights among fp32, int8, int4, int2 for layers on ONNX Runtime, found fp8"),
        ({"block_size": 48}, {}, "expected a block size among 16, 32, 64, 128, 256 for int4"),
        ({"weights": "fp32", "block_size": 32}, {}, "of integers alone, found fp32"),
        ({"weights": "int8"}, {"weights": "fp32"}, "layers of a recipe, found fp32"),
        ({"weights": "int8"}, {"weights": "fp16", "target": "rtx"}, "with layers of a recipe, found fp16"),
        ({"symmetric": False}, {"target": "rtx"}, "expected symmetric weights for TensorRT-RTX"),
        ({"block_size": 256}, {"target": "rtx"}, "expected a block size among 16, 32, 64, 128 for int4"),
        ({"weights": "int8", "block_size": 64}, {"target": "rtx"}, "expected a block size among none"),
        ({"block_size": 128}, {"target": "rtx"}, "expected blocks that divide the inputs of each layer"),
    ],
)
def test_forms_that_the_target_does_not_have(
    tmp_path: Path, rule: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    error = refused(tmp_path, LayerRule(("*.q_proj",), **rule), **options)
    assert message in error.message
    assert error.hint


@pytest.mark.parametrize("target", ["rtx", "jetson-orin"])
@pytest.mark.parametrize("weights", ["int3", "int2", "bf16"])
@pytest.mark.parametrize("rules", [(), (LayerRule(("*.q_proj",), weights="int8"),)], ids=len)
def test_weights_that_are_not_made_for_the_target(
    tmp_path: Path, target: str, weights: str, rules: tuple[LayerRule, ...]
) -> None:
    """Formats that the GPU could have and Lepton does not make among them."""
    error = refused(tmp_path, *rules, target=target, weights=weights)
    assert error.message.startswith("expected weights among ")
    assert f"for target {target}, found {weights}" in error.message
    assert weights not in error.message.partition(" for target")[0]


@pytest.mark.parametrize(
    "values",
    [
        {"method": "gptq2"}, {"embeddings": "int3"}, {"memory_gb": -1}, {"memory_gb": math.nan},
        {"memory_gb": math.inf}, {"seed": -1}, {"max_loss": math.nan},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_no_backend_takes(tmp_path: Path, values: dict[str, Any]) -> None:
    (name,) = values
    error = refused(tmp_path, **values)
    assert f"expected {name} " in error.message
    assert error.hint


def test_a_bound_on_what_is_not_measured(write: Callable[[str], str], tmp_path: Path) -> None:
    """A recipe's bound beside --no-check: it would hold nothing."""
    found = with_recipe(BuildOptions("sample:tiny-llama", check=False), write("max_loss = 3.0"))
    error = refused(tmp_path, max_loss=found.max_loss)
    assert "expected the measurement that a loss of at most 3 % is told by, found it left out" in error.message
    assert "--no-check" in str(error.hint)


def test_blocks_that_do_not_divide_are_listed_with_what_to_add(tmp_path: Path, write: Callable[[str], str]) -> None:
    error = refused(tmp_path, target="rtx", block_size=128)
    assert "found 128 for model.layers.*.self_attn.q_proj (3 layers of 64 inputs)," in error.message
    assert "model.layers.*.mlp.down_proj (3 layers of 160 inputs)" in error.message
    few = refused(tmp_path, LayerRule(("*.1.*.q_proj", "*.down_proj"), block_size=128), target="rtx")
    listed = "found 128 for model.layers.0.mlp.down_proj (160 inputs), model.layers.1.self_attn.q_proj (64 inputs),"
    assert listed in few.message
    snippet = str(error.hint).removeprefix("add to the recipe:\n")
    rules = with_recipe(BuildOptions("m"), write(snippet)).layers
    assert rules[0].block_size == 32  # 64 inputs, and 160
    assert "model.layers.*.mlp.down_proj" in rules[0].match


def test_layers_have_what_the_recipe_says(tmp_path: Path) -> None:
    import onnx_ir as ir

    rules = (
        LayerRule(("model.layers.*.mlp.*",), weights="int8", block_size=64),
        LayerRule(("model.layers.1.mlp.down_proj",), weights="fp32"),
        LayerRule(("*.q_proj",), symmetric=False, block_size=16),
    )
    result = build(BuildOptions(LLAMA, out=tmp_path / "m", weights="int4", check=False, layers=rules))
    runtime_edge.verify(result.path)
    graph = ir.load(result.path / "cpu.onnx").graph
    forms = {
        node.inputs[1].name: (node.attributes["bits"].value, node.attributes["block_size"].value, len(node.inputs))
        for node in graph
        if node.op_type == "MatMulNBits"
    }
    bits = {str(name).removesuffix(".nbits.codes"): form[:2] for name, form in forms.items()}
    assert bits["model.layers.0.mlp.down_proj.weight"] == (8, 64)
    assert bits["model.layers.1.self_attn.q_proj.weight"] == (4, 16)
    assert bits["model.layers.1.self_attn.o_proj.weight"] == (4, 32)
    assert not any("layers.1.mlp.down_proj" in name for name in bits)
    (variant,) = result.manifest.variants
    assert variant.weights == "int4, 1 layer float, 8 layers int8"
    (record,) = (each for each in result.manifest.passes if each.name == "quantize-weights")
    assert {tuple(each["paths"]) for each in record.config["layers"] if each["bits"] == 32} == {
        ("model.layers.1.mlp.down_proj",)
    }
    assert as_plain(result.report)["recipe"]["layers"][0] == {
        "match": ["model.layers.*.mlp.*"], "weights": "int8", "block_size": 64,
    }  # fmt: skip


def test_gptq_and_a_budget_leave_the_recipes_layers_alone(tmp_path: Path) -> None:
    rules = (LayerRule(("*.v_proj",), weights="int8"), LayerRule(("model.layers.0.mlp.up_proj",), weights="fp32"))
    text = tmp_path / "text.txt"
    text.write_text("The valves close when the pressure falls, and a lamp tells the driver which of them did so. " * 30)
    asked = BuildOptions(LLAMA, out=tmp_path / "m", weights="auto:235kB", check=False, layers=rules, calibration=text)
    result = build(asked)
    (record,) = (each for each in result.manifest.passes if each.name == "quantize-weights")
    bits = {path: each["bits"] for each in record.config["layers"] for path in each["paths"]}
    assert bits["model.layers.0.mlp.up_proj"] == 32
    assert [bits[f"model.layers.{i}.self_attn.v_proj"] for i in range(3)] == [8] * 3
    named = {each["path"] for each in as_plain(result.report)["variants"]["cpu"]["quantization"]["sensitivity"]}
    assert not any(path.endswith("v_proj") for path in named)
    solved = {each["path"] for each in as_plain(result.report)["variants"]["cpu"]["quantization"]["linears"]}
    assert "model.layers.0.mlp.up_proj" not in solved
    assert "model.layers.0.self_attn.v_proj" in solved
    sizes = as_plain(result.report)["bytes"]
    assert sizes["weights"] + sizes["graph"] <= 235_000


def test_the_command_line_stands_above_the_recipe(
    leptonc: Callable[..., Any], write: Callable[[str], str], tmp_path: Path
) -> None:
    path = write('weights = "int4"\nseed = 9\nblock_size = 64\n[[layers]]\nmatch = "*.q_proj"\nweights = "int8"\n')
    out = tmp_path / "m.lepton"
    done = leptonc("build", LLAMA, "--recipe", path, "--block-size", "16", "--no-check", "-o", out)
    assert done.code == 0, done.err
    assert "weights int4, 3 layers int8" in leptonc("inspect", out).out
    assert leptonc("inspect", out, "--recipe").out == (
        'block_size = 16\nseed = 9\nweights = "int4"\n\n[[layers]]\nmatch = ["*.q_proj"]\nweights = "int8"\n'
    )
    shown = leptonc("targets", "jetson-orin-nano-8gb").out
    assert "jetson-orin: what a build does without options" in shown
