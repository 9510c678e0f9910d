"""The filtered distribution against transformers' own processors, and the draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime_edge.errors import ArtifactError
from runtime_edge.sampling import Sampler, SamplingOptions, distribution


def reference(logits: np.ndarray, seen: list[int], options: SamplingOptions) -> np.ndarray:
    """Probabilities [vocab] as transformers' generate would draw from."""
    torch = pytest.importorskip("torch", reason="transformers' processors need torch")
    process = pytest.importorskip("transformers.generation.logits_process", reason="the reference is transformers")
    chain: list[Any] = []
    if options.repetition_penalty != 1:
        chain.append(process.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    chain.append(process.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        chain.append(process.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        chain.append(process.TopPLogitsWarper(options.top_p))
    if options.min_p > 0:
        chain.append(process.MinPLogitsWarper(options.min_p))
    scores = torch.tensor(logits[None], dtype=torch.float64)
    for processor in chain:
        scores = processor(torch.tensor([seen]), scores)
    return scores.softmax(-1)[0].numpy()


CASES = [
    {},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 10**6},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"top_p": 0.999999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"top_k": 50, "top_p": 0.8},
    {"top_k": 50, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.1},
]


@pytest.mark.parametrize("fields", CASES, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("vocab", [20, 5000])
def test_distribution_is_that_of_transformers(fields: dict[str, Any], temperature: float, vocab: int) -> None:
    random = np.random.default_rng(vocab)
    logits = (4 * random.standard_normal(vocab)).astype(np.float32)
    seen = [int(token) for token in random.integers(0, vocab, 200)]  # with repetitions: the penalty counts once
    options = SamplingOptions(temperature=temperature, **fields)
    expected = reference(logits.copy(), seen, options)
    if options.repetition_penalty != 1:
        Sampler(options, vocab, seen)._penalize(logits)
    ids, probabilities = distribution(logits, options)
    found = np.zeros(vocab)
    found[ids] = probabilities
    smallest = 1e-30  # less underflows in float32, and is never drawn
    np.testing.assert_array_equal(found > smallest, expected > smallest)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=smallest)


def test_ties_at_the_kth_place_stay() -> None:
    ids, probabilities = distribution(np.array([1, 3, 3, 3, 0], np.float32), SamplingOptions(1.0, top_k=2))
    assert ids.tolist() == [1, 2, 3]
    np.testing.assert_allclose(probabilities, 1 / 3)


def test_the_nucleus_of_equal_tokens_is_no_larger_than_it_must_be() -> None:
    ids, probabilities = distribution(np.zeros(1000, np.float32), SamplingOptions(1.0, top_p=0.25))
    assert len(ids) == 250
    np.testing.assert_allclose(probabilities, 1 / 250)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=5), 4, [])
    counts = np.bincount([sampler(logits.copy()) for _ in range(20_000)], minlength=4)
    np.testing.assert_allclose(counts / 20_000, np.exp(logits), atol=0.012)  # about 3.5 standard deviations


def test_greedy_takes_the_likeliest_and_the_penalty_changes_it() -> None:
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    assert Sampler(SamplingOptions(), 3, [0])(logits.copy()) == 0
    assert Sampler(SamplingOptions(repetition_penalty=1.2), 3, [0])(logits.copy()) == 1


def test_the_penalty_counts_what_was_drawn() -> None:
    sampler = Sampler(SamplingOptions(repetition_penalty=2.0), 3, [])
    assert [sampler(np.array([2.0, 1.5, 0.9], np.float32)) for _ in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("options", [SamplingOptions(), SamplingOptions(temperature=1.0, top_p=0.5)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(options: SamplingOptions, value: float) -> None:
    with pytest.raises(ArtifactError, match="expected finite logits"):
        Sampler(options, 3, [])(np.array([0, value, 1], np.float32))


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf], np.float32)
    sampler = Sampler(SamplingOptions(temperature=2.0, seed=0), 3, [])
    assert {sampler(logits.copy()) for _ in range(50)} == {1}


def exact(logits: np.ndarray, options: SamplingOptions) -> np.ndarray:
    """Probabilities [vocab] in float64, with what none of its numbers holds taken before the division."""
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((logits.astype(np.float64) - float(logits.max())) / options.temperature)
    weights /= weights.sum()
    order = np.argsort(-weights, kind="stable")
    before = np.concatenate([[0.0], weights[order].cumsum()[:-1]])
    kept = np.zeros(len(logits), bool)
    kept[order] = before < options.top_p
    kept[order[0]] = True
    kept &= weights >= options.min_p * weights.max()
    weights[~kept] = 0.0
    return weights / weights.sum()


EXTREMES = [
    *({"temperature": value} for value in (5e-324, 1e-310, 1.2e-38, 1e-7, 1e-3, 1e30, 3.5e38, 1e39, 1.7e308)),
    *({"temperature": 1.0, "top_p": value} for value in (5e-324, 1e-50, 1e-45, 1 - 1e-16, np.nextafter(1, 0))),
    *({"temperature": 1.0, "min_p": value} for value in (5e-324, 1e-50, 1e-38, 1 - 1e-16)),
    {"temperature": 1e-310, "top_p": 1e-50, "min_p": 1e-50},
    {"temperature": 1e39, "top_p": 0.5},
    {"temperature": 1e39, "top_k": 3},
]


@pytest.mark.parametrize("fields", EXTREMES, ids=str)
@pytest.mark.parametrize("kind", ["usual", "large", "ties", "equal", "-inf"])
def test_values_that_float32_does_not_hold(fields: dict[str, Any], kind: str) -> None:
    usual = (4 * np.random.default_rng(3).standard_normal(700)).astype(np.float32)
    logits = {
        "usual": usual,
        "large": usual * np.float32(8e36),
        "ties": np.where(np.arange(700) % 100 == 3, np.float32(20), usual),
        "equal": np.zeros(700, np.float32),
        "-inf": np.where(np.arange(700) % 3 == 1, np.float32(-np.inf), usual),
    }[kind]
    options = SamplingOptions(**fields)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        ids, probabilities = distribution(logits.copy(), options)
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    found = np.zeros(700)
    found[ids] = probabilities
    expected = exact(logits, options)
    if options.top_k:
        kept = logits >= np.sort(logits)[-options.top_k]
        expected = np.where(kept, expected, 0.0) / expected[kept].sum()
    if options.top_p == 0.5:  # as many of equals as reach it, and any of them
        assert np.count_nonzero(found) == np.count_nonzero(expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("penalty", [1e-9, 1e9])
def test_the_largest_penalties_order_tokens_as_float64_does(penalty: float) -> None:
    logits = (4 * np.random.default_rng(5).standard_normal(50)).astype(np.float32)
    logits[7] = 0.0
    seen = list(range(0, 50, 2)) if penalty > 1 else list(range(50))
    sampler = Sampler(SamplingOptions(repetition_penalty=penalty), 50, seen)
    changed = logits.astype(np.float64)
    changed[seen] = np.where(changed[seen] < 0, changed[seen] * penalty, changed[seen] / penalty)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        assert sampler(logits.copy()) == int(changed.argmax())


def test_a_token_of_no_probability_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a draw is so close to 1 that its product with the sum rounds to the sum."""
    sampler = Sampler(SamplingOptions(temperature=1e-3, seed=0), 4, [])

    class Last:
        def random(self) -> float:
            return 1.0

    monkeypatch.setattr(sampler, "_random", Last())
    assert sampler(np.array([1.0, 9.0, 9.0, 2.0], np.float32)) == 2
