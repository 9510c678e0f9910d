"""2:4 weights: SparseGPT against straightforward float64, and what the check of a lowered graph counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from leptonc.errors import InputError
from leptonc.ir import edit
from leptonc.ir.dialect import MODULE_KEY, OPSET, DialectError
from leptonc.ir.structure import linears, weight_of
from leptonc.passes.columns import DAMPING, energy, factorize
from leptonc.passes.prune.sparse import (
    CheckSparsity,
    Sparsify,
    SparsifyConfig,
    candidates,
    dense_layers,
    magnitude,
    nonzero,
    sparsegpt,
    violations,
)
from leptonc.report.pruning import DenseLayer
from leptonc.report.variant import SparseMatrix


def layer(columns: int = 80, rows: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((rows, columns)).astype(np.float32)
    x = random.standard_normal((300, columns)) @ random.standard_normal((columns, columns))
    x *= np.linspace(0.1, 3, columns)
    return weight, (x.T @ x).astype(np.float32)


def reference(weight: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """SparseGPT for 2:4 as the paper says it: each output and input for itself, the inverse made anew."""
    columns = weight.shape[1]
    h = hessian.astype(np.float64)
    h = h + np.eye(columns) * DAMPING * np.diag(h).mean()
    inverses = [np.linalg.inv(h[at:, at:]) for at in range(columns)]  # of the inputs that are left
    result = weight.astype(np.float64)
    for row in result:
        for start in range(0, columns, 4):
            costs = [row[at] ** 2 / inverses[at][0, 0] for at in range(start, start + 4)]
            gone = {start + int(each) for each in np.argsort(costs)[:2]}
            for at in range(start, start + 4):
                if at in gone:
                    row[at:] -= row[at] / inverses[at][0, 0] * inverses[at][0]
                    row[at] = 0
    return result


@pytest.mark.parametrize("columns", [4, 20, 80])
def test_sparsegpt_is_what_the_papers_equations_give(columns: int) -> None:
    weight, hessian = layer(columns)
    found, wanted = sparsegpt(weight, hessian), reference(weight, hessian)
    # Two costs that float32 orders the other way change what follows in their row: few rows may differ.
    equal = np.isclose(found, wanted, atol=1e-3 * np.abs(wanted).max()).all(axis=1)
    assert equal.mean() >= 0.9
    assert energy(weight - found, hessian) == pytest.approx(energy(weight - wanted, hessian), rel=0.02)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("columns", [4, 12, 36, 128])
def test_both_have_the_pattern_and_sparsegpt_loses_no_more(columns: int, seed: int) -> None:
    weight, hessian = layer(columns, seed=seed)
    found, plain = sparsegpt(weight, hessian), magnitude(weight)
    for each in (found, plain):
        assert violations(each) == 0
        assert np.count_nonzero(each) == weight.size // 2
    assert energy(weight - found, hessian) <= energy(weight - plain, hessian)


def test_sparsegpt_makes_up_for_what_goes() -> None:
    """Of inputs that mostly follow from a quarter of as many: a third of the error."""
    weight, _ = layer(128)
    random = np.random.default_rng(1)
    x = random.standard_normal((400, 32)) @ random.standard_normal((32, 128)) + random.standard_normal((400, 128))
    hessian = (x.T @ x).astype(np.float32)
    assert energy(weight - sparsegpt(weight, hessian), hessian) < energy(weight - magnitude(weight), hessian) / 3


def test_inputs_that_copy_others_cost_nothing() -> None:
    """Of each four inputs two are twice the others: what goes is made up for (1e-6), the damping being small."""
    random = np.random.default_rng(0)
    half = random.standard_normal((200, 16))
    x = np.repeat(half, 2, axis=1) * np.tile([1.0, 2.0], 16)
    weight = random.standard_normal((8, 32)).astype(np.float32)
    hessian = (x.T @ x).astype(np.float32)
    found = sparsegpt(weight, hessian, factorize(hessian, 1e-6, largest_first=False))
    assert energy(weight - found, hessian) < 1e-6 * energy(weight, hessian)
    assert energy(weight - magnitude(weight), hessian) > 1e-2 * energy(weight, hessian)


def test_magnitude_keeps_the_two_largest() -> None:
    weight = np.array([[1, -4, 3, 2, 0, 0, 0, 5], [1, 1, 1, 1, -1, 2, -3, 0]], np.float32)
    found = magnitude(weight)
    assert found[0].tolist() == [0, -4, 3, 0, 0, 0, 0, 5]
    assert found[1].tolist()[4:] == [0, 2, -3, 0]
    assert np.count_nonzero(found[1, :4]) == 2
    assert weight[0, 0] == 1  # what is given stays


def test_inputs_that_are_always_zero_leave_magnitude() -> None:
    weight, hessian = layer()
    np.testing.assert_array_equal(sparsegpt(weight, np.zeros_like(hessian)), magnitude(weight))


def test_some_inputs_that_are_always_zero_go_before_others() -> None:
    """But where another's weight is nearly zero: the damping gives them a little worth."""
    weight, hessian = layer(16)
    hessian[:, [12, 13]] = hessian[[12, 13]] = 0
    found = sparsegpt(weight, hessian)
    assert np.isfinite(found).all()
    assert violations(found) == 0
    assert np.count_nonzero(found[:, 12:14]) < 0.2 * np.count_nonzero(found[:, 14:])


def test_violations() -> None:
    weight = np.zeros((2, 10), np.float32)
    assert violations(weight) == 0
    weight[0, [0, 1, 4, 7]] = 1
    assert violations(weight) == 0
    weight[0, 2] = weight[1, 4:8] = -1
    assert violations(weight) == 2
    weight[:, 8:] = 1  # a short group is none
    assert violations(weight) == 2
    assert violations(weight[:, 1:9]) == 2  # groups count from the first input


def graph(shapes: dict[str, tuple[int, int]], *, transposed: bool = True) -> ir.Model:
    """A linear layer for each path, of (out, in) features, beside each other."""
    random, nodes, inputs, outputs = np.random.default_rng(0), [], [], []
    made = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="g")
    for path, (rows, columns) in shapes.items():
        x = ir.Value(name=f"{path}/x", shape=ir.Shape([1, columns]), type=ir.TensorType(ir.DataType.FLOAT))
        array = random.standard_normal((rows, columns) if transposed else (columns, rows)).astype(np.float32)
        weight = edit.initializer(made, f"{path}.weight", ir.tensor(array, name=f"{path}.weight"))
        right = weight
        if transposed:
            turn = ir.node("Transpose", [weight], {"perm": [1, 0]})
            nodes.append(turn)
            right = turn.outputs[0]
        product = ir.node("MatMul", [x, right])
        product.metadata_props[MODULE_KEY] = path
        nodes.append(product)
        inputs.append(x)
        outputs.append(product.outputs[0])
    made.inputs.extend(inputs)
    made.outputs.extend(outputs)
    made.extend(nodes)
    return ir.Model(made, ir_version=10)


SHAPES = {"model.layers.0.up": (6, 8), "model.layers.0.down": (8, 6), "model.layers.1.up": (3, 12), "lm_head": (9, 8)}


def sparsified(model: ir.Model) -> None:
    def read(linear: Any) -> Callable[[], np.ndarray]:
        new = magnitude(weight_of(linear))
        return lambda: new if linear.transposed else new.T

    weights = {str(each.weight.name): read(each) for each in candidates(model)}
    Sparsify(SparsifyConfig("magnitude"), weights)(model)


@pytest.mark.parametrize("transposed", [True, False])
def test_what_gets_the_pattern_and_what_does_not(transposed: bool) -> None:
    model = graph(SHAPES, transposed=transposed)
    assert dense_layers(model) == [
        DenseLayer(path="model.layers.0.down", why="its 6 inputs do not divide by 4"),
        DenseLayer(path="lm_head", why="it is outside the layers"),
    ]
    before = {each.path: weight_of(each) for each in linears(model)}
    assert nonzero(model) == 6 * 8 + 8 * 6 + 3 * 12
    check = CheckSparsity(model)
    sparsified(model)
    assert nonzero(model) == 6 * 4 + 8 * 6 + 3 * 6
    check(model)
    rows = {row.path: row for row in check.rows}
    assert rows["model.layers.0.up"] == SparseMatrix(
        path="model.layers.0.up", sparse=True, stored="float", groups=12, beyond_pattern=0, nonzero=24
    )
    assert (rows["lm_head"].sparse, rows["lm_head"].beyond_pattern) == (False, 18)
    after = {each.path: weight_of(each) for each in linears(model)}
    for path in ("model.layers.0.down", "lm_head"):
        np.testing.assert_array_equal(after[path], before[path])
    np.testing.assert_array_equal(after["model.layers.1.up"], magnitude(before["model.layers.1.up"]))


def test_a_weight_beyond_the_pattern_is_an_internal_error() -> None:
    model = graph(SHAPES)
    check = CheckSparsity(model)
    sparsified(model)
    (broken,) = (each for each in linears(model) if each.path == "model.layers.1.up")
    array = np.array(weight_of(broken))
    array[1, 4:8] = 1
    broken.weight.const_value = ir.tensor(array)
    with pytest.raises(DialectError, match=r"model\.layers\.1\.up: expected 2:4 weights, found 1 groups beyond"):
        check.run(model)


def test_a_layer_that_is_lost_is_an_internal_error() -> None:
    check = CheckSparsity(graph(SHAPES))
    less = graph({path: shape for path, shape in SHAPES.items() if "1.up" not in path})
    sparsified(less)
    with pytest.raises(DialectError, match=r"expected model\.layers\.1\.up in the lowered graph"):
        check.run(less)


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(InputError, match="inputs divide by 4, to have 2:4 weights, found none in 2"):
        candidates(graph({"model.layers.0.up": (6, 7), "lm_head": (4, 8)}))
