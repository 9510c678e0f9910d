"""GPTQ and the clipping search against straightforward float64, and against rounding to nearest."""

from __future__ import annotations

import numpy as np
import pytest

from leptonc.passes.columns import DAMPING, factorize
from leptonc.passes.quantize.blocks import Codes, Format, dequantize, round_to_nearest
from leptonc.passes.quantize.channels import channel_codes
from leptonc.passes.quantize.gptq import DAMPINGS, clip_search, damping_of, gptq, output_error, spread

FORMS = [
    Format(2, 16, False), Format(4, 16, False), Format(4, 32, True), Format(8, 32, False),
    Format(4, 32, True, positive=True),
]  # fmt: skip


def layer(columns: int = 80) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    weight = random.standard_normal((24, columns)).astype(np.float32)
    mixed = random.standard_normal((columns, columns)) * np.linspace(0.1, 3, columns)
    x = (random.standard_normal((400, columns)) @ mixed).astype(np.float32)
    return weight, x.T @ x


def reference(weight: np.ndarray, form: Format, hessian: np.ndarray) -> np.ndarray:
    """GPTQ as the paper's equations say it, a channel at a time, the inverse made anew for what is left."""
    searched = clip_search(weight, form, np.diag(hessian))
    scale, zero = (each.astype(np.float64) for each in spread(searched.scales, searched.zeros, form, weight.shape[1]))
    h = hessian.astype(np.float64)
    h = h + np.eye(len(h)) * DAMPING * np.diag(h).mean()
    left, rest = list(np.argsort(-np.diag(hessian.astype(np.float64)), kind="stable")), weight.astype(np.float64)
    result = np.empty_like(rest)
    while left:
        at, inverse = left[0], np.linalg.inv(h[np.ix_(left, left)])
        code = np.clip(np.rint(rest[:, at] / scale[:, at]) + zero[:, at], 0, form.top)
        result[:, at] = (code - zero[:, at]) * scale[:, at]
        error = (rest[:, at] - result[:, at]) / inverse[0, 0]
        rest[:, left[1:]] -= np.outer(error, inverse[0, 1:])
        left = left[1:]
    return result


@pytest.mark.parametrize("form", FORMS)
def test_gptq_is_what_the_papers_equations_give(form: Format) -> None:
    weight, hessian = layer()
    found, wanted = dequantize(gptq(weight, form, hessian), form), reference(weight, form, hessian)
    # A rounding that float32 decides the other way changes what follows in its row: few rows may differ.
    equal = np.isclose(found, wanted, atol=1e-5).all(axis=1)
    assert equal.mean() >= 0.8
    off = wanted - weight
    exact = np.vdot(off @ hessian, off) / np.vdot(weight @ hessian, weight)
    assert output_error(weight, gptq(weight, form, hessian), form, hessian) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_gptq_loses_less_than_the_search_and_the_search_less_than_rounding(form: Format) -> None:
    weight, hessian = layer()
    diagonal = np.diag(np.diag(hessian))
    errors = [
        output_error(weight, parts, form, hessian)
        for parts in (gptq(weight, form, hessian), clip_search(weight, form, np.diag(hessian)))
    ]
    assert errors[0] < 0.7 * errors[1]
    searched = clip_search(weight, form, np.diag(hessian))
    rounded = round_to_nearest(weight, form)
    assert output_error(weight, searched, form, diagonal) <= output_error(weight, rounded, form, diagonal) * (1 + 1e-6)


@pytest.mark.parametrize("columns", [40, 7])
def test_a_last_block_may_be_short(columns: int) -> None:
    weight, hessian = layer(columns)
    parts = gptq(weight, Format(4, 16, False), hessian)
    assert parts.codes.shape == (24, columns)
    assert parts.scales.shape == (24, -(-columns // 16))


def test_inputs_that_are_always_zero_leave_the_search() -> None:
    weight, hessian = layer()
    parts = gptq(weight, Format(4, 16, False), np.zeros_like(hessian))
    assert np.isfinite(dequantize(parts, Format(4, 16, False))).all()


def test_a_weight_of_zeros_stays_zero() -> None:
    _, hessian = layer()
    form = Format(4, 16, False)
    assert not dequantize(gptq(np.zeros((3, 80), np.float32), form, hessian), form).any()


def best_of_clips(
    row: np.ndarray, importance: np.ndarray, form: Format
) -> tuple[float, float, np.ndarray, float, float]:  # fmt: skip
    """One block [size] on the best of its grids, in float64: scale, zero, codes, cost, and the next best cost."""

    def stored(scale: float) -> float:
        return float(np.float16(scale)) if form.half else scale

    middle, top = 2 ** (form.bits - 1), 2**form.bits - 1
    if form.symmetric:
        extreme, zero = row[np.argmax(np.abs(row))], middle
        whole = stored(extreme / (middle - 1) if form.positive and extreme > 0 else extreme / -middle)
    else:
        low, high = min(row.min(), 0), max(row.max(), 0)
        whole = stored((high - low) / top)
        zero = np.rint(-low / whole) if whole else 0
    found = []
    for step in range(17):
        scale = stored(whole * (1 - 0.025 * step))  # the whole range first: it is kept where no other is better
        codes = np.clip(np.rint(row / scale) + zero, 0, top) if scale else np.full(len(row), zero)
        found.append((float(importance @ np.square((codes - zero) * scale - row)), scale, codes))
    costs = [cost for cost, _, _ in found]
    cost, scale, codes = found[int(np.argmin(costs))]
    return scale, float(zero), codes, cost, sorted(costs)[1]


@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("columns", [96, 70])  # the last block whole, and short
@pytest.mark.parametrize("form", [*FORMS, Format(4, 32, True, half=True), Format(4, 32, False, half=True)])
def test_the_search_takes_the_best_of_its_grids(form: Format, columns: int, weighed: bool) -> None:
    """Costs within 3e-4: with 8 bits float32 knows a rounding error, 1/900 of a weight, no better."""
    weight, hessian = layer(columns)
    weight[3, : form.size] = 0
    importance = np.diag(hessian).copy() if weighed else np.ones(columns, np.float32)
    importance[form.size : 2 * form.size] *= 0 if weighed else 1  # inputs that are always zero: the whole range stays
    found, decided = clip_search(weight, form, importance), 0
    exact, weigh = weight.astype(np.float64), importance.astype(np.float64)
    for row, block in np.ndindex(*found.scales.shape):
        some = slice(block * form.size, min(columns, (block + 1) * form.size))
        scale, zero, codes, cost, second = best_of_clips(exact[row, some], weigh[some], form)
        got, got_zero = float(found.scales[row, block]), form.middle if found.zeros is None else found.zeros[row, block]
        assert got_zero == zero
        off = (found.codes[row, some] - zero) * got - exact[row, some]
        assert weigh[some] @ np.square(off) <= cost * (1 + 3e-4)
        if second > cost * (1 + 1e-3) or not cost:
            decided += 1
            assert got == pytest.approx(scale, rel=1e-6)
            if scale:
                place = exact[row, some] / scale
                clear = np.abs(np.abs(place - np.rint(place)) - 0.5) > 1e-4
                np.testing.assert_array_equal(found.codes[row, some][clear], codes[clear])
    assert decided >= 0.8 * found.scales.size  # of 2 bits, grids that differ have costs alike now and then


def inputs(columns: int, seed: int, mixed: float) -> np.ndarray:
    """Inputs float64 [300, columns] of unlike size, one of them massive; `mixed` is how much of each is all others'."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((300, columns)) * random.uniform(0.2, 3, columns)
    x += mixed * random.standard_normal((300, columns)) @ random.standard_normal((columns, columns)) / columns**0.5
    x[0, columns // 3] = 60
    return x


def lost(weight: np.ndarray, parts: Codes, form: Format, x: np.ndarray) -> np.ndarray:
    """Each output's squared error on inputs x: the diagonal of D X^T X D^T, float64 [out]."""
    off = weight.astype(np.float64) - dequantize(parts, form)
    return np.asarray((off @ (x.T @ x) * off).sum(1))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mixed", [0.3, 2.0])
@pytest.mark.parametrize(("rows", "columns"), [(24, 96), (7, 50), (130, 64)])
def test_gptq_is_no_worse_than_rounding_on_its_own_inputs(rows: int, columns: int, mixed: float, seed: int) -> None:
    """The paper's property, of every output beside the search and of the whole layer beside rounding."""
    x = inputs(columns, seed, mixed)
    weight = np.random.default_rng(seed + 9).standard_normal((rows, columns)).astype(np.float32)
    hessian = (x.T @ x).astype(np.float32)
    forms = [Format(bits, 32, symmetric) for bits in (2, 4, 8) for symmetric in (True, False)]
    forms.append(Format(8, columns, True, positive=True, paired=True))
    for form in forms:
        searched = (channel_codes if form.paired else clip_search)(weight, form, np.diag(hessian))
        solved, alone = (lost(weight, each, form, x) for each in (gptq(weight, form, hessian), searched))
        assert (solved <= alone * (1 + 1e-4)).all(), form
        # Paired codes have less of a range than those that are rounded freely.
        plain = channel_codes(weight, form) if form.paired else round_to_nearest(weight, form)
        rounded = lost(weight, plain, form, x).sum()
        assert solved.sum() < 0.95 * rounded, form


def test_rows_that_the_search_serves_better_keep_its_codes() -> None:
    """Inputs that tell little of each other: making up for errors helps some rows, and costs others."""
    x = inputs(64, 0, 0.1)
    weight = np.random.default_rng(1).standard_normal((200, 64)).astype(np.float32)
    form, hessian = Format(4, 16, False), (x.T @ x).astype(np.float32)
    found, searched = gptq(weight, form, hessian), clip_search(weight, form, np.diag(hessian))
    same = (found.codes == searched.codes).all(1)
    assert 0 < same.sum() < len(same)
    better = lost(weight, found, form, x) < lost(weight, searched, form, x)
    assert (better | same).all()
    assert better.mean() > 0.5


def halves(tokens: int, columns: int = 48) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, and second moments of two halves of inputs."""
    random = np.random.default_rng(tokens)
    mixed = random.standard_normal((columns, columns)) * np.linspace(0.1, 3, columns)
    x = (random.standard_normal((2, tokens, columns)) @ mixed).astype(np.float32)
    first, second = (each.T @ each for each in x)
    return random.standard_normal((32, columns)).astype(np.float32), first, second


@pytest.mark.parametrize("tokens", [50, 100, 400, 4000])
def test_a_damping_is_best_among_its_neighbours_on_inputs_held_out(tokens: int) -> None:
    """Against codes of each damping, their error in float64."""
    form = Format(3, 16, False)
    weight, learnt, held = halves(tokens)

    def error(damping: float) -> float:
        off = (dequantize(gptq(weight, form, learnt, factorize(learnt, damping)), form) - weight).astype(np.float64)
        return float(np.vdot(off @ held, off))

    errors = [error(each) for each in DAMPINGS]
    chosen = DAMPINGS.index(damping_of([(weight, form)], learnt, held))
    around = errors[max(0, chosen - 1) : chosen + 2]
    assert errors[chosen] <= min(*around, errors[len(DAMPINGS) // 2]) * 1.03  # codes here keep the better of two


def test_few_tokens_take_more_damping_than_many() -> None:
    form = Format(3, 16, False)
    few, many = (damping_of([(each[0], form)], *each[1:]) for each in (halves(50), halves(4000)))
    assert few > many


def test_all_layers_that_read_one_value_have_a_say_in_its_damping() -> None:
    form = Format(3, 16, False)
    weight, learnt, held = halves(100)
    alone = damping_of([(weight, form)], learnt, held)
    assert damping_of([(weight, form), (np.zeros_like(weight), form)], learnt, held) == alone  # zeros are never off
    assert damping_of([(np.zeros_like(weight), form)], learnt, held) == DAMPINGS[len(DAMPINGS) // 2]
