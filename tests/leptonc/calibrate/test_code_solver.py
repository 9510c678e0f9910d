"""Codes chosen layer by layer, a head's among them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.calibrate import code_solver
from leptonc.calibrate.code_solver import Solver
from leptonc.calibrate.methods import gptq as gptq_method
from leptonc.calibrate.methods.gptq import LOOKED_UP
from leptonc.calibrate.moments import Moments
from leptonc.calibrate.staged_run import walk
from leptonc.calibrate.stages import Stage
from leptonc.calibrate.step_cache import StepCache
from leptonc.ir.ports import inputs_of
from leptonc.ir.structure import as_stored, embeddings, layer_of, linears, weight_of
from leptonc.passes.columns import factorize
from leptonc.passes.quantize.blocks import Codes, Format, dequantize, round_to_nearest
from leptonc.passes.quantize.gptq import DAMPINGS, clip_search, gptq, output_error
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig
from leptonc.report.quantization import Quantization
from leptonc.sources import open_source
from tests.leptonc import models

FORM = Format(4, 16, False)
WINDOWS, MANY, HELD_OUT = (
    [np.asarray(models.token_ids(48, seed), np.int64) for seed in seeds] for seeds in ((1, 2), range(20), range(20, 24))
)


def captured(name: str) -> ir.Model:
    with open_source(f"sample:{name}") as source:
        return models.capture(source, max_seq_len=64).model


@contextmanager
def stage(name: str, total: int) -> Any:
    yield lambda _: None


def solver(
    folder: Path, windows: list[np.ndarray] = WINDOWS, report: Quantization | None = None, method: str = "gptq"
) -> Solver:
    return Solver(windows, folder, 2**20, stage, report or Quantization(), method)


def head_moments(model: ir.Model, folder: Path, windows: list[np.ndarray]) -> np.ndarray:
    """Second moments of what the head reads, all weights as they are but those of layers before the last."""
    (head,) = [each for each in linears(model) if not layer_of(each.path)]
    moments = Moments("head", head.shape[1])

    def see(at: Stage, value: str, x: Any) -> None:
        if value == head.x.name:
            moments.add(x)

    walk(model, [inputs_of(model, each) for each in windows], see, lambda _: {}, folder, outside=True)
    return moments.hessian()


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-mistral"])  # a tied head, and one of its own
def test_every_linear_layer_is_solved_with_its_shape(name: str, tmp_path: Path) -> None:
    model, report = captured(name), Quantization()
    codes = solver(tmp_path, report=report)(model, lambda _: FORM)
    assert {str(each.weight.name) for each in linears(model)} == set(codes)
    for linear in linears(model):
        weight = weight_of(linear)
        off = dequantize(codes[str(linear.weight.name)], FORM) - weight
        assert np.abs(off).max() < 0.5 * np.abs(weight).max()
    assert [each.path for each in (report.linears or [])] == [each.path for each in linears(model)]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_weights_that_serve_again_have_the_codes_of_the_first_time(method: str, tmp_path: Path) -> None:
    model, report = models.albert(layers=3).model, Quantization()
    codes = solver(tmp_path, report=report, method=method)(model, lambda _: FORM)
    kept = StepCache()
    again = Solver(WINDOWS, tmp_path, 2**20, stage, Quantization(), method, kept)
    for _ in range(2):  # the second time from what the first one kept
        found = again(model, lambda _: FORM)
        assert found.keys() == codes.keys() == {str(each.weight.name) for each in linears(model)}
        for name, each in codes.items():
            np.testing.assert_array_equal(found[name].codes, each.codes)
    paths = [each.path for each in (report.linears or [])]
    assert len(paths) == len(set(paths)) == len(codes)
    first = models.albert(layers=1).model  # what the first time reads is the same
    for name, each in solver(tmp_path, method=method)(first, lambda _: FORM).items():
        np.testing.assert_array_equal(each.codes, codes[name].codes)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-mistral"])
def test_a_heads_codes_are_gptqs_on_what_it_reads(name: str, tmp_path: Path) -> None:
    model = captured(name)
    (head,) = [each for each in linears(model) if not layer_of(each.path)]
    # No layer gets other weights, so the head reads what it reads in the whole model.
    report = Quantization()
    chosen = solver(tmp_path, MANY, report)(model, lambda each: FORM if each.path == head.path else None)
    codes = chosen[str(head.weight.name)]
    hessian, weight = head_moments(model, tmp_path, MANY), weight_of(head)
    tied = head.weight in {node.inputs[0] for node in embeddings(model)}
    assert tied == (name == "tiny-gpt2")
    (layer,) = report.linears or []
    assert layer.damping in DAMPINGS
    factor = factorize(hessian, layer.damping + (LOOKED_UP if tied else 0))
    np.testing.assert_array_equal(codes.codes, gptq(weight, FORM, hessian, factor).codes)
    held_out = head_moments(model, tmp_path, HELD_OUT)
    rounded = output_error(weight, round_to_nearest(weight, FORM), FORM, held_out)
    assert output_error(weight, codes, FORM, held_out) < 0.9 * rounded
    # Rows that are looked up stay near what they were.
    off, plain = (dequantize(each, FORM) - weight for each in (codes, round_to_nearest(weight, FORM)))
    assert np.square(off).sum() < 3 * np.square(plain).sum()


@pytest.mark.parametrize("windows", [WINDOWS, MANY])
def test_a_damping_is_searched_where_there_is_text_enough_and_few_bits(
    windows: list[np.ndarray], tmp_path: Path
) -> None:  # fmt: skip
    model, report = captured("tiny-llama"), Quantization()
    bits = {"q_proj": 4, "k_proj": 8, "v_proj": 4, "gate_proj": 8, "up_proj": 8}
    form = lambda each: Format(bits.get(each.path.split(".")[-1], 4), 16, False)  # noqa: E731
    solver(tmp_path, windows, report)(model, form)
    for each in report.linears or []:
        leaf = each.path.split(".")[-1]
        searched = windows is MANY and leaf not in ("gate_proj", "up_proj")
        assert (each.damping is not None) == searched, each
    dampings = {leaf: [e.damping for e in (report.linears or []) if e.path.endswith(leaf)] for leaf in bits}
    assert dampings["q_proj"] == dampings["k_proj"] == dampings["v_proj"]


def test_codes_wait_in_files_that_are_gone_with_them(tmp_path: Path) -> None:
    model = captured("tiny-llama")
    codes = solver(tmp_path)(model, lambda _: FORM)
    (place,) = tmp_path.iterdir()
    stored = sum(each.stat().st_size for each in place.rglob("*.safetensors"))
    assert stored > sum(each.shape[0] * each.shape[1] for each in linears(model))
    name = str(next(iter(linears(model))).weight.name)
    assert codes[name].codes is not codes[name].codes  # read each time
    del codes
    assert not list(tmp_path.iterdir())


def test_a_head_of_8_bits_is_near_enough_as_it_is(tmp_path: Path) -> None:
    model = captured("tiny-gpt2")
    codes = solver(tmp_path)(model, lambda _: Format(8, 16, True))
    assert set(codes) == {str(each.weight.name) for each in linears(model) if layer_of(each.path)}


def test_a_classifier_of_few_texts_is_searched(tmp_path: Path) -> None:
    """One token a text: features that no text had would be made up for with anything."""
    model = captured("tiny-bert-classifier")
    outside = [each for each in linears(model) if not layer_of(each.path)]
    assert outside
    seen: dict[str, Moments] = {}

    def see(at: Stage, value: str, x: Any) -> None:
        for linear in at.linears[value]:
            if not layer_of(linear.path):
                seen.setdefault(linear.path, Moments(linear.path, x.shape[-1])).add(x)

    walk(model, [inputs_of(model, each) for each in WINDOWS], see, lambda _: {}, tmp_path, outside=True)
    paths = {each.path for each in outside}
    codes = solver(tmp_path)(model, lambda each: FORM if each.path in paths else None)
    few = [each for each in outside if seen[each.path].tokens < each.shape[1]]
    assert few
    for linear in few:
        want: Codes = clip_search(weight_of(linear), FORM, np.diag(seen[linear.path].hessian()))
        np.testing.assert_array_equal(codes[str(linear.weight.name)].codes, want.codes)


@pytest.mark.parametrize("bits", [0, 8])
def test_an_embedding_and_its_head_have_the_codes_that_were_chosen(bits: int, tmp_path: Path) -> None:
    model = captured("tiny-gpt2")
    config = QuantizeWeightsConfig(bits=4, block_size=16, symmetric=False, method="gptq", embedding_bits=bits)
    form = config.form(64, table=True)
    plain = round_to_nearest(np.asarray(weight_of(list(linears(model))[-1])), form)
    QuantizeWeights(config, solver(tmp_path)).run(model)
    (node,) = embeddings(model)
    stored = model.graph.initializers["lm_head.weight.codes"]
    assert node.inputs[0] is not None
    assert node.inputs[0].producer().inputs[0] is stored  # type: ignore[union-attr]
    assert sum(1 for _ in stored.uses()) == 1  # one weight, dequantized once
    equal = np.array_equal(np.asarray(stored.const_value.numpy()), plain.codes)  # type: ignore[union-attr]
    assert equal == (bits == 8)


@pytest.mark.parametrize("name", models.others_apart(["tiny-llama", "tiny-bert-classifier"]))
def test_later_layers_make_up_for_earlier_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs of the last layers are nearer to the exact ones, also on other texts than the codes come from."""
    model, form = captured(name), Format(3, 16, False)
    paths = [linear.path for linear in linears(model) if layer_of(linear.path)]

    def weights(made_up: float) -> dict[str, np.ndarray]:
        monkeypatch.setattr(gptq_method, "MADE_UP", made_up)
        codes = solver(tmp_path, MANY)(model, lambda linear: form if linear.path in paths else None)
        chosen = [linear for linear in linears(model) if str(linear.weight.name) in codes]
        return {
            str(linear.weight.name): as_stored(dequantize(codes[str(linear.weight.name)], form), linear)
            for linear in chosen
        }

    def off(texts: list[np.ndarray], quantized: dict[str, np.ndarray]) -> float:
        errors: dict[str, float] = {}

        def observer(at: Stage, value: str, x: np.ndarray, exact: np.ndarray) -> None:
            for linear in at.linears[value]:
                errors[linear.path] = errors.get(linear.path, 0.0) + float(np.square(x - exact).sum())

        batches = [inputs_of(model, text) for text in texts]
        walk(model, batches, observer, lambda _: quantized, tmp_path, with_exact=True)
        return errors[paths[-1]]

    some, none = weights(gptq_method.MADE_UP), weights(0)
    assert off(MANY, some) < 0.97 * off(MANY, none)
    assert off(HELD_OUT, some) < off(HELD_OUT, none)


@pytest.mark.parametrize(("bits", "beside"), [(8, False), (4, True)])
def test_the_exact_model_runs_beside_where_inputs_differ_from_its_own(
    bits: int, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    asked: list[bool] = []

    def watched(*args: Any, with_exact: bool, **more: Any) -> None:
        asked.append(with_exact)
        walk(*args, with_exact=with_exact, **more)

    monkeypatch.setattr(code_solver, "walk", watched)
    solver(tmp_path)(captured("tiny-llama"), lambda _: Format(bits, 16, True))
    assert asked == [beside]
