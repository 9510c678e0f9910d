"""The text of a decoder without a file: its openings, what is no text, and the order of both kinds."""

from __future__ import annotations

import math

import numpy as np

from leptonc.calibrate.default_text import OPENING, fault_of, in_turn, openings, questions
from leptonc.calibrate.generate import Written
from leptonc.calibrate.texts import built_in_pieces


def tokens(text: str) -> list[int]:
    return list(text.encode())


def test_openings_take_turns_and_none_is_empty() -> None:
    made = openings(tokens, [1], [9], lambda question: f"<{question}>")
    assert made[0] == made[3] == [1]
    assert made[1][0] == 9
    assert len(made[1]) == OPENING + 1
    assert bytes(made[2]).decode() == f"<{questions()[0]}>"
    assert {len(opening) > 0 for opening in made} == {True}
    begun = {bytes(opening[1:]).decode(errors="ignore") for opening in made[1::3]}
    assert len(begun) == len(built_in_pieces())


def test_a_model_without_a_template_is_asked_nothing() -> None:
    made = openings(tokens, [1], [])
    assert made[0] == made[2] == [1]
    assert made[1] != made[3]
    assert openings(lambda text: [], [1]) == [[1]] * len(built_in_pieces())


def test_noise_and_repetition_are_no_text() -> None:
    random = np.random.default_rng(0)
    varied = [random.integers(0, 1000, 512) for _ in range(2)]
    assert fault_of(Written(varied, 3.0), 1000) is None
    assert fault_of(Written(varied, float("nan")), 1000) is None  # openings alone, which are text
    assert fault_of(Written(varied, 0.9 * math.log(1000)), 1000) == "the model draws tokens nearly evenly"
    assert fault_of(Written([np.tile([3, 4], 256)], 0.1), 1000) == "the model repeats itself"
    assert fault_of(Written([], 1.0), 1000) == "the model wrote nothing"


def test_any_even_part_of_the_texts_has_both_kinds() -> None:
    written, carried = [np.array([1])] * 16, [np.array([0])] * 16
    mixed = [int(text[0]) for text in in_turn(written, carried)]
    assert sum(mixed) == 16
    for step in (2, 3, 4, 8, 16):
        for first in range(step):
            assert len(set(mixed[first::step])) == 2, (step, first)
    assert [int(text[0]) for text in in_turn(written[:1], carried[:4])].count(0) == 4
