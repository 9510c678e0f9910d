"""What figures mean, in words."""

from __future__ import annotations

import pytest

from leptonc.pages.words import megabytes, percent, quality, smaller
from leptonc.report.quality import Fidelity


@pytest.mark.parametrize(
    ("perplexity", "agreed", "words"),
    [
        (100.0, 1.0, "the same as those of the original: perplexity ±0\u00a0%"),
        (100.0, 0.95, "nearly those of the original: perplexity ±0\u00a0%"),  # the measure alone is the same
        (100.26, 0.97, "nearly those of the original: perplexity +0.26\u00a0%"),
        (102.0, 0.9, "close to those of the original: perplexity +2.0\u00a0%"),
        (107.0, 0.85, "somewhat worse than those of the original: perplexity +7.0\u00a0%"),
        (133.0, 0.7, "much worse than those of the original: perplexity +33.0\u00a0%"),
        (100.26, 0.5, "other than those of the original, and not worse by this measure: perplexity +0.26\u00a0%"),
        (95.0, 0.5, "other than those of the original, and not worse by this measure: perplexity −5.0\u00a0%"),
    ],
)
def test_a_loss_in_words(perplexity: float, agreed: float, words: str) -> None:
    fidelity = Fidelity(perplexity=perplexity, perplexity_reference=100.0, top1_agreement=agreed)
    assert quality(fidelity) == f"Its answers are {words}."


def test_what_was_not_measured_is_said_not_to_be() -> None:
    assert quality(None) == "How close its answers are to those of the original was not measured."
    assert quality(Fidelity(cosine_mean=0.98), "outputs").startswith("Its outputs are close to those of the original")


def test_sizes_in_words() -> None:
    assert (megabytes(538e6), megabytes(91.88e6)) == ("538\u00a0MB", "91.9\u00a0MB")
    assert smaller(538, 145) == "made 3.7 times smaller"
    assert (smaller(100, 100), smaller(100, 200)) == ("in its full size", "made 2.0 times larger")
    assert (percent(1234.5), percent(-0.001)) == ("+1,234\u00a0%", "±0\u00a0%")
