"""What a request may ask: several prompts, texts to score, numbers of any kind, and options without effect."""

from __future__ import annotations

import decimal
import fractions
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import runtime_edge
from runtime_edge.errors import PromptTooLongError, RequestError, RequestWarning
from tests.runtime_edge import tiny
from tests.runtime_edge.test_generate import reference_scores, tokens

USER = {"role": "user", "content": "Hi"}
SEVERAL: dict[str, Any] = {
    "texts": ["one", "two and a half", "one"],
    "token ids": [tokens(5), tokens(300, seed=2), tokens(5)],
    "conversations": [[USER], [USER, {"role": "assistant", "content": "Ho"}, USER]],
    "of any kind": ["one", tokens(4), [USER]],
    "tuples": (tuple(tokens(5)), (1, 2)),
    "rows of numpy": np.array([tokens(6), tokens(6, seed=3)]),
    "arrays": [np.array(tokens(6)), np.array([1])],
    "one": ["one"],
}


@pytest.mark.parametrize("kind", SEVERAL)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5}, {"stop": "e", "drafts": True}])
def test_several_prompts_are_answered_as_each_alone(
    model: runtime_edge.Model, kind: str, options: dict[str, Any]
) -> None:
    together = model.generate(SEVERAL[kind], max_new_tokens=9, **options)
    alone = [model.context().generate(prompt, max_new_tokens=9, **options) for prompt in SEVERAL[kind]]
    assert isinstance(together, list)
    assert [(each.text, each.token_ids) for each in together] == [(each.text, each.token_ids) for each in alone]


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (["one", 3], RequestError, r"prompts\[1\]: expected text, token ids or a list of messages, found int"),
        (["one", ""], None, ""),
        (["one", []], RequestError, r"prompts\[1\]: expected at least one token, found none"),
        ([[1], [300]], RequestError, r"prompts\[1\]: expected token ids below 300 .*, found 300"),
        ([[1], [[2]]], RequestError, r"prompts\[1\]: expected a whole number >= 0, found list"),
        ([[1], [2] * 3000], PromptTooLongError, r"prompts\[1\]: expected at most 2048 tokens .*, found 3000"),
        (["one", [USER, 3]], RequestError, r"messages\[1\]: expected a dict"),
        ([1, "one"], RequestError, r"prompt: expected a whole number >= 0, found str 'one'"),
        ([USER, "one"], RequestError, r"messages\[1\]: expected a dict"),
        ([], RequestError, "prompt: expected at least one token, found none"),
        (np.zeros((2, 2, 2), int), RequestError, "prompt: expected a whole number"),
    ],
)
def test_a_list_of_prompts_is_checked_before_the_first_runs(
    model: runtime_edge.Model, prompt: Any, error: type[Exception] | None, message: str
) -> None:
    if error is None:
        assert len(model.generate(prompt, max_new_tokens=1)) == 2  # an empty text is its special tokens
        return
    before = list(model._decoding()._state.cache.token_ids)
    with pytest.raises(error, match=message):
        model.generate(prompt, max_new_tokens=1)
    assert model._decoding()._state.cache.token_ids == before


def test_one_prompt_streams_and_is_scored(model: runtime_edge.Model) -> None:
    with pytest.raises(RequestError, match="expected one prompt to stream, found a list of several"):
        model.stream(["one", "two"])  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="expected one text, found a list of several"):
        model.score(["one", "two"])  # type: ignore[arg-type]


def test_text_and_messages_are_scored(model: runtime_edge.Model, weights: tiny.Weights) -> None:
    said = [USER, {"role": "assistant", "content": "Ho"}]
    prompts: list[tuple[Any, list[int]]] = [
        ("Hello there", model.tokenize("Hello there")),
        (said, model.tokenize(said, add_generation_prompt=False)),
    ]
    for prompt, ids in prompts:
        expected = reference_scores(tiny.reference_logits(weights, ids), ids)
        np.testing.assert_allclose(model.score(prompt), expected, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(model.score(prompt), model.score(ids))
    longer = model.score([USER], add_generation_prompt=True)
    assert len(longer) == len(model.tokenize([USER])) - 1
    assert model.logits("Hello there").shape == (len(model.tokenize("Hello there")), tiny.VOCAB)


HUGE = 10**5000  # Python does not write so many digits
NUMBERS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": HUGE}, "temperature: expected a number >= 0, found a number beyond float64"),
    ({"temperature": [0.5]}, "temperature: .* found list"),
    ({"temperature": np.array([0.5])}, "temperature: .* found ndarray"),
    ({"temperature": np.bool_(True)}, "temperature: .* found bool"),
    ({"temperature": 1j}, "temperature: .* found complex"),
    ({"temperature": float("inf")}, "temperature: .* found inf"),
    ({"temperature": decimal.Decimal("sNaN")}, "temperature: .* found Decimal"),
    ({"top_p": HUGE}, "top_p: .* found a number beyond float64"),
    ({"top_k": -HUGE}, "top_k: .* found a number of thousands of digits"),
    ({"top_k": np.array([1, 2])}, "top_k: expected a whole number >= 0, found ndarray"),
    ({"seed": -HUGE}, "seed: .* found a number of thousands of digits"),
    ({"seed": True}, "seed: .* found bool True"),
    ({"seed": np.bool_(True)}, "seed: .* found bool"),
    ({"seed": 1.0}, "seed: .* found float 1.0"),
    ({"repetition_penalty": 1e300}, r"repetition_penalty: expected a number from 1e-09 to 1e\+09, found 1e\+300"),
    ({"repetition_penalty": 1e-300}, "repetition_penalty: .* found 1e-300"),
    ({"repetition_penalty": -1.0}, "repetition_penalty: .* found -1.0"),
    ({"stop_token_ids": 5}, "stop_token_ids: expected token ids in a list, found int"),
    ({"stop_token_ids": [HUGE]}, "stop_token_ids: .*, found a number of thousands of digits"),
    ({"stop_token_ids": [2**63]}, f"stop_token_ids: .*, found {2**63}"),
    ({"stop_token_ids": "ab"}, "stop_token_ids: .* found str"),
    ({"stop": ["\ud800"]}, "stop: expected Unicode text, found a lone surrogate"),
    ({"stop": b"a"}, "stop: expected strings, found bytes"),
    ({"max_new_tokens": -HUGE}, "max_new_tokens: .* found a number of thousands of digits"),
    ({"drafts": -HUGE}, "drafts: .* found a number of thousands of digits"),
]


@pytest.mark.parametrize(("options", "message"), NUMBERS)
def test_numbers_that_are_none(model: runtime_edge.Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.generate("a", **{"max_new_tokens": 1, **options})


class Failing:
    """An object of a caller whose conversions fail."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __index__(self) -> int:
        raise self.error

    def __float__(self) -> float:
        raise self.error


@pytest.mark.parametrize("error", [TypeError, ValueError, ZeroDivisionError, RuntimeError])
def test_objects_whose_conversions_fail(model: runtime_edge.Model, error: type[Exception]) -> None:
    for option in ("drafts", "seed", "temperature", "timeout", "max_new_tokens"):
        with pytest.raises(RequestError, match=f"{option}: .* found Failing"):
            model.generate([1], **{option: Failing(error)})
    with pytest.raises(RequestError, match=r"prompt: .* found Failing"):
        model.generate([Failing(error)])


NO_LIST = [np.array(1), True, 3, None, b"a", bytearray(b"a"), {1: 2}, {1, 2}, frozenset([3]), lambda: 1, 1j]


@pytest.mark.parametrize("value", NO_LIST, ids=lambda value: type(value).__name__)
def test_what_is_no_list_is_told(model: runtime_edge.Model, value: Any) -> None:
    for call, name in [
        (lambda: model.generate(value), "prompt"),
        (lambda: model.context().stream(value), "prompt"),
        (lambda: model.score(value), "prompt"),
        (lambda: model.logits(value), "prompt"),
        (lambda: model.tokenize(value), "text|messages"),
        (lambda: model.detokenize(value), "token_ids"),
    ]:
        with pytest.raises(RequestError, match=rf"^({name})"):
            call()


def test_options_that_are_no_bools_are_told(model: runtime_edge.Model) -> None:
    for value in (np.array([]), np.array([1, 2]), "no", 0, np.array(1)):
        with pytest.raises(RequestError, match="add_special_tokens: expected True or False"):
            model.tokenize("a", add_special_tokens=value)
        with pytest.raises(RequestError, match="skip_special_tokens: expected True or False"):
            model.detokenize([1], skip_special_tokens=value)
        for prompt in ("a", [1, 2], [USER]):
            with pytest.raises(RequestError, match=r"(continue_final_message|add_generation_prompt): expected"):
                model.score(prompt, continue_final_message=value, add_generation_prompt=value)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": np.float32(0.5), "seed": np.uint64(2**64 - 1)},
        {"temperature": fractions.Fraction(1, 2), "seed": 2**64},
        {"temperature": decimal.Decimal("0.5"), "seed": 2**4000, "top_k": HUGE},
        {"temperature": np.array(0.5), "top_k": np.int8(3), "top_p": np.float16(0.5)},
        {"temperature": 1, "seed": 0, "max_new_tokens": HUGE, "stop_token_ids": range(300)},
        {"temperature": 5e-324, "seed": 1},
        {"temperature": 1.7e308, "seed": 1},
        {"temperature": 0.5, "top_p": 5e-324, "min_p": 5e-324, "seed": 1},
        {"repetition_penalty": np.float64(1e9)},
        {"repetition_penalty": 1e-9},
        {"temperature": 1e-300, "repetition_penalty": 1e9},
    ],
)
def test_numbers_of_every_kind_and_size(model: runtime_edge.Model, options: dict[str, Any]) -> None:
    asked = {"max_new_tokens": 5, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = model.generate("abc", **asked).token_ids
    assert made == model.generate("abc", **asked).token_ids or ("temperature" in options and "seed" not in options)


def test_seeds_beyond_64_bits_draw_differently(model: runtime_edge.Model) -> None:
    seeds = [0, 1, 2**32, 2**64, 2**64 + 1, 2**128]
    drawn = [tuple(model.generate("a", max_new_tokens=12, temperature=1.0, seed=seed).token_ids) for seed in seeds]
    assert len(set(drawn)) == len(seeds)


WITHOUT_EFFECT: list[tuple[dict[str, Any], str]] = [
    ({"top_k": 5}, "top_k: without effect at temperature 0"),
    ({"top_p": 0.9}, "top_p: without effect at temperature 0"),
    ({"top_p": 0.9, "min_p": 0.1, "temperature": 0}, "top_p, min_p: without effect at temperature 0"),
]


@pytest.mark.parametrize(("options", "message"), WITHOUT_EFFECT)
@pytest.mark.parametrize("method", ["generate", "stream", "several"])
def test_options_without_effect_are_told(
    model: runtime_edge.Model, options: dict[str, Any], message: str, method: str
) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: model.generate("a", max_new_tokens=2, **options),
        "stream": lambda: list(model.stream("a", max_new_tokens=2, **options)),
        "several": lambda: model.generate(["a", "b"], max_new_tokens=2, **options),
    }
    with pytest.warns(RequestWarning, match=message) as caught:
        calls[method]()
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3},
        {"top_k": None, "top_p": None},
        {"top_k": 5, "top_p": 0.9, "temperature": 0.1},
        {"repetition_penalty": 1.2},
        {"drafts": True},
    ],
)
def test_options_with_an_effect_are_not(model: runtime_edge.Model, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate("a", max_new_tokens=2, **options)


def test_an_unknown_option_is_an_error_of_the_call(model: runtime_edge.Model) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'tempreature'"):
        model.generate("a", tempreature=0.5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="unexpected keyword argument 'prompts'"):
        model.stream("a", prompts=[])  # type: ignore[call-arg]


def test_more_tokens_than_the_context_has_end_with_its_length(model: runtime_edge.Model) -> None:
    made = model.generate(tokens(2040), max_new_tokens=10**9)
    assert (len(made.token_ids), made.finish_reason) == (9, "length")
