"""8-bit activations for TensorRT: the form that it fuses, run on the CPU, built into plans."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx_ir as ir
import pytest

from leptonc.build.to_artifact import build
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from leptonc.report import as_plain

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None


@pytest.mark.skipif(not HAS_RTX, reason="TensorRT-RTX (the extra rtx) is not installed")
@pytest.mark.parametrize(
    ("name", "target"),
    [("tiny-llama", "rtx-30"), ("tiny-bert", "rtx-30"), ("tiny-llama", "jetson-orin,jetpack=6.2")],
)
def test_pairs_on_both_sides_of_every_product(name: str, target: str, text: Path, tmp_path: Path) -> None:
    result = build(
        BuildOptions(
            f"sample:{name}", target, tmp_path / "m", "int8", "int8", max_seq_len=128, calibration=text, eval_text=text
        )
    )
    (variant,) = result.manifest.variants
    assert (variant.weights, variant.main.activations) == ("int8", "int8")
    model = ir.load(result.path / variant.main.file)
    about = as_plain(result.report)["variants"][variant.name]
    inputs = about["quantization"]["activations"]["inputs"]
    wanted = {path for each in inputs if each["bits"] == 8 for path in each["layers"]}
    found = set()
    for node in model.graph:
        if node.op_type != "MatMul" or node.metadata_props.get("lepton.module") not in wanted:
            continue
        rounded = node.inputs[0].producer()  # type: ignore[union-attr]
        turned = node.inputs[1].producer()  # type: ignore[union-attr]
        assert rounded is not None
        if str(node.name).endswith("outliers/MatMul"):  # the few features that go past the integers
            continue
        assert rounded.op_type == "DequantizeLinear"
        quantize = rounded.inputs[0].producer()  # type: ignore[union-attr]
        assert quantize is not None
        assert quantize.op_type == "QuantizeLinear"
        _, scale, zero = (value.const_value if value is not None else None for value in quantize.inputs)
        assert scale is not None
        assert zero is not None
        assert scale.shape == zero.shape == ()
        assert zero.dtype == ir.DataType.INT8
        assert not zero.numpy()
        assert turned is not None
        weight = turned.inputs[0].producer()  # type: ignore[union-attr]
        assert weight is not None
        assert weight.op_type == "DequantizeLinear"
        codes = weight.inputs[0].const_value  # type: ignore[union-attr]
        assert codes is not None
        assert codes.dtype == ir.DataType.INT8
        found.add(node.metadata_props["lepton.module"])
    assert found == wanted
    assert about["quantization"]["activations"]["int8_share"] >= 0.9
    fidelity = as_plain(result.report)["fidelity"]
    assert fidelity.get("cosine_min", 1) > 0.995
    assert fidelity.get("kl_divergence", 0) < 0.02
    assert about["rehearsal"]["done"] if target.startswith("jetson") else variant.engine.plans  # type: ignore[union-attr]


@pytest.mark.parametrize("target", ["rtx", "jetson-orin", "cpu"])
@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_weights_that_do_not_go_with_it(target: str, weights: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"weights .* with activations int8.*found (weights )?{weights}"):
        build(BuildOptions("sample:tiny-llama", target, tmp_path / "m", weights, "int8"))
    assert not (tmp_path / "m").exists()
