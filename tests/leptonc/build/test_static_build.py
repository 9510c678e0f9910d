"""Builds with 8-bit activations: what runs, what the report says, and requests that cannot be met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import runtime_edge
from leptonc.build.to_artifact import BuildResult, build
from leptonc.calibrate.activations import choices, divergences, kept_higher, widened
from leptonc.calibrate.calibrators import Grid
from leptonc.calibrate.choice import CAPS, OUTLIERS, STRENGTHS, Choice, cap_scales, choose
from leptonc.calibrate.statistics import Statistics
from leptonc.errors import InputError
from leptonc.ir.structure import linears
from leptonc.options import BuildOptions
from leptonc.passes.quantize.smooth import Place, places
from leptonc.report import as_plain
from tests.leptonc import models

pytestmark = pytest.mark.usefixtures("short_windows")


def built(source: str, text: Path, out: Path, **options: object) -> BuildResult:
    given = {"weights": "int8", "activations": "int8", "calibration": text, "eval_text": text, **options}
    return build(BuildOptions(f"sample:{source}", out=out, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("calibrator", ["entropy", "search"])  # which tries all the others
def test_a_decoder_says_of_each_input_what_became_of_it(calibrator: str, text: Path, tmp_path: Path) -> None:
    result = built("tiny-llama", text, tmp_path / "a", calibrator=calibrator)
    (variant,) = result.manifest.variants
    assert (variant.weights, variant.main.activations) == ("int8", "int8")
    about = as_plain(result.report)["variants"]["cpu"]["quantization"]["activations"]
    assert about["calibrator"] == calibrator
    assert about["int8_share"] >= 0.9
    inputs = about["inputs"]
    first = [each["layers"][0].rpartition(".")[2] for each in inputs[:4]]
    assert first == ["q_proj", "o_proj", "gate_proj", "down_proj"]
    assert len(inputs) == 12
    for each in inputs:
        assert each["range"][0] <= 0 <= each["range"][1]
        assert 0 < each["error"] <= each["error_unsmoothed"] < 0.1
        assert each["divergence"] >= 0
        assert each["smoothing"] in (0, *(STRENGTHS if len(each["layers"]) > 1 else CAPS))
    (record,) = (each for each in result.manifest.passes if each.name == "quantize-activations")
    for key, bits in (("layers", {8, 16}), ("wide", {16})):
        paths = {each[0] if key == "layers" else each for each in record.config[key]}
        assert paths == {path for each in inputs if each["bits"] in bits for path in each["layers"]}, key
    assert {each["bits"] for each in inputs} == {8, 16}
    assert about["int8_share"] + about["int16_share"] == pytest.approx(1)
    assert as_plain(result.report)["fidelity"]["kl_divergence"] < 0.02
    runtime_edge.verify(result.path)


@pytest.mark.parametrize(("source", "lead"), [("tiny-gemma3", [1]), ("tiny-llama", [])])
def test_divergences_are_of_texts_as_the_model_meets_them(
    source: str, lead: list[int], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text's middle without the token that comes before every text moves Gemma a hundred times as far."""
    given: list[list[int]] = []

    def seen(model: ir.Model, windows: list[np.ndarray], wanted: list[Choice], *rest: object, **more: object) -> object:
        given.extend(window.tolist() for window in windows)
        return {each.path: 0.0 for each in wanted}

    monkeypatch.setattr("leptonc.build.static_inputs.divergences", seen)
    built(source, text, tmp_path / "a", check=False)
    assert [len(each) for each in given] == [64, 64]
    assert all(each[: len(lead)] == lead for each in given)
    assert all(token not in each[len(lead) :] for each in given for token in lead)


def test_an_encoder(text: Path, tmp_path: Path) -> None:
    result = built("tiny-bert", text, tmp_path / "a", method="gptq")
    assert as_plain(result.report)["fidelity"]["cosine_min"] > 0.995
    assert as_plain(result.report)["operations"]["cpu"]["com.microsoft.MatMulIntegerToFloat"] >= 10
    with runtime_edge.load(result.path) as model:
        assert model.encode(["The valves close."]).shape == (1, 64)


@pytest.mark.parametrize("strengths", [(0.5,), STRENGTHS])
def test_smoothing_lowers_the_error_where_features_differ(strengths: tuple[float, ...]) -> None:
    """The paper's property, on inputs whose features differ as they do in a language model."""
    model = models.captured("tiny-llama").model
    linear = next(each for each in linears(model) if each.path.endswith("gate_proj"))
    place = places(model)[str(linear.x.name)]
    random = np.random.default_rng(0)
    x = (random.standard_normal((120, 64)) * np.where(np.arange(64) % 16 == 3, 60, 1)).astype(np.float32)
    seen = Statistics("layer", 64)
    seen.add(x)
    found = choose(seen, (linear,), place, "minmax", symmetric=False, strengths=strengths)
    assert found.strength in strengths
    assert found.error < 0.1 * found.unsmoothed
    # Straight from the definition, in float64.
    weight = linear.weight.const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
    assert found.scales is not None
    moved = weight * found.scales
    step = np.abs(moved).max(1, keepdims=True) / 127
    rows = (x / found.scales).astype(np.float64)
    grid = Grid.over(min(0.0, float(rows.min())), max(0.0, float(rows.max())), False)
    assert (found.grid.scale, found.grid.zero) == (pytest.approx(grid.scale, rel=1e-5), grid.zero)
    codes = np.clip(np.rint(rows / grid.scale) + grid.zero, 0, 255) - grid.zero
    off = codes * grid.scale @ (np.rint(moved / step) * step).T - x.astype(np.float64) @ weight.T
    whole = np.square(x.astype(np.float64) @ weight.T).sum()
    assert found.error == pytest.approx(np.square(off).sum() / whole, rel=0.02)


def test_features_that_reach_far_go_past_the_integers() -> None:
    """A few tokens with massive activations in two features, as language models have them before `down_proj`."""
    model = models.captured("tiny-llama").model
    linear = next(each for each in linears(model) if each.path.endswith("down_proj"))
    width = linear.shape[1]
    x = np.random.default_rng(0).standard_normal((200, width)).astype(np.float32)
    x[:3, [5, 9]] = 3000
    seen = Statistics("layer", width)
    seen.add(x)
    found = choose(seen, (linear,), None, "search", symmetric=False)
    assert len(found.outliers) == min(OUTLIERS, width // 64)
    assert {5, 9} <= set(found.outliers)
    assert found.error < 0.01 * found.unsmoothed
    assert max(np.abs(found.ends)) < 6
    assert not found.importance[list(found.outliers)].any()
    # A weight that another layer reads too stays whole.
    second = ir.node("Identity", [linear.weight])
    assert choose(seen, (linear,), None, "search", symmetric=False).outliers == ()
    second.replace_input_with(0, None)
    # Features alike need none.
    plain = Statistics("layer", width)
    plain.add(x[3:])
    assert choose(plain, (linear,), None, "search", symmetric=False).outliers == ()


def test_caps_bring_down_what_reaches_furthest() -> None:
    inputs = np.array([1, 8, 2, 4, 0], np.float32)
    assert cap_scales(inputs, 0.2).tolist() == [1, 2, 1, 1, 1]
    assert cap_scales(inputs, 0.4).tolist() == [1, 4, 1, 2, 1]
    assert cap_scales(inputs, 0.2, 1).tolist() == [1, 4, 1, 2, 1]
    assert cap_scales(inputs, 0.0).tolist() == [1] * 5
    assert np.isfinite(cap_scales(np.zeros(5, np.float32), 0.2)).all()


def test_an_input_that_cannot_be_divided_is_not() -> None:
    model = models.captured("tiny-bert").model
    linear = next(each for each in linears(model) if each.path.endswith("query"))
    seen = Statistics("layer", 64)
    seen.add(np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32))
    place: Place | None = places(model).get(str(linear.x.name))
    found = choose(seen, (linear,), place, "mse", symmetric=True)
    assert place is None
    assert (found.strength, found.scales) == (0, None)
    assert found.error == found.unsmoothed


def test_what_rounding_does_is_what_the_quantized_graph_does(tmp_path: Path) -> None:
    """The divergence of one rounded input, against a build in which it alone is rounded."""
    from leptonc.calibrate.activations import static_of
    from leptonc.calibrate.output_change import divergence
    from leptonc.passes.base import Manager
    from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig

    ids = np.array(models.token_ids(32))
    model = models.captured("tiny-llama").model
    found = choices(model, [ids], "minmax", tmp_path, symmetric=False)
    errors = divergences(model, [ids], found, tmp_path, paired=True)
    assert errors.keys() == {each.path for each in found}
    one = next(each for each in found if each.path.endswith("1.mlp.down_proj"))
    static = static_of(found, {each.path for each in found} - {one.path}, symmetric=False)
    others = tuple(each.path for each in linears(model) if each.path != one.path)
    config = QuantizeWeightsConfig(bits=8, channels=static.layers, embeddings=False, skip=others)
    Manager().run(model, [*static.passes(), QuantizeWeights(config, importance=static.importance)])
    got = models.Graph(model, tmp_path, optimize=False).logits(list(ids), [len(ids)], 40)
    want = models.reference_logits(models.reference("tiny-llama"), ids.tolist())
    assert errors[one.path] == pytest.approx(divergence(want, got, logits=True, first=1), rel=0.05)
    assert errors[one.path] > 0


def test_what_hurts_most_for_its_work_is_kept() -> None:
    model = models.captured("tiny-llama").model
    seen = Statistics("layer", 64)
    seen.add(np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32))
    inputs = [each for each in linears(model) if each.path.endswith(("q_proj", "o_proj"))]
    found = [choose(seen, (each,), None, "minmax", symmetric=False) for each in inputs]
    errors = {each.path: 0.001 * (i + 1) for i, each in enumerate(found)}
    assert len(found) == 6  # of the same work
    worst = [each.path for each in found[::-1]]
    assert kept_higher(found, errors, share=0.6, tolerance=0) == set(worst[:2])
    assert kept_higher(found, errors, share=0.9, tolerance=0) == set()
    assert kept_higher(found, errors, share=0.0, tolerance=0.012) == set(worst[:2])
    assert kept_higher(found, errors, share=0.0, tolerance=0.03) == set()
    assert widened(found, errors) == set(worst[:1])
    assert widened(found, {path: error / 2 for path, error in errors.items()}) == set()  # all together do little


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "int4"}, "expected symmetric weights of 8 bits with activations int8, found weights int4"),
        ({"weights": "fp32"}, "found weights fp32"),
        ({"weights": "auto:1MB"}, "found weights int4"),
        ({"symmetric": False}, "found asymmetric ones"),
        ({"activations": "fp8"}, "expected activations among none, int8, found"),
        ({"calibrator": "best"}, "expected calibrator among minmax, percentile, entropy, mse, search, found 'best'"),
    ],
)
def test_requests_that_cannot_be_met(changes: dict[str, object], message: str, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        built("tiny-llama", text, tmp_path / "a", **changes)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "found"),
        ("tiny.txt", b"Hello.", "at least 64 tokens"),
        ("latin.txt", "naïve café ".encode("latin-1") * 50, "UTF-8"),
        ("text.pdf", b"It is a text.", r"text\.pdf"),
        ("missing.txt", None, r"missing\.txt"),
    ],
)
def test_texts_that_cannot_be_read(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        built("tiny-llama", path, tmp_path / "a", eval_text=None)
    assert not (tmp_path / "a").exists()
