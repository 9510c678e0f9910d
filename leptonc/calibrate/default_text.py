"""The text that a decoder is calibrated on where no file is given: what it writes itself, and text that Lepton carries.

What a model writes has the statistics that it knows best, and text of many kinds has those that it meets. Openings of
many kinds let the model write of more than it would begin with by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from leptonc.calibrate.generate import Written
from leptonc.calibrate.texts import built_in_pieces

OPENING = 24  # tokens of a piece that a model goes on from
FEW_KINDS = 0.08  # a text with fewer different tokens, as a part of its tokens, repeats itself
EVEN = 0.7  # of the entropy of even chances: a model that draws with more writes noise

Window = NDArray[np.int64]


def questions() -> list[str]:
    """Returns what users might ask, written for this: openings of conversations."""
    return (files("leptonc.calibrate") / "questions.txt").read_text(encoding="utf-8").splitlines()


def openings(
    tokenize: Callable[[str], list[int]], start: Sequence[int], lead: Sequence[int] = (),
    render: Callable[[str], str] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Returns what a model writes from, token ids of each, kinds in turn: nothing, a piece's beginning, a question.

    Args:
        tokenize: Returns a text's token ids, without special tokens around it.
        start: What a text begins with that the model writes by itself.
        lead: Tokens that stand before every text. Default: none.
        render: Puts a user's question into the model's chat template, up to where the answer begins. Default: the model
            has no template, and no question is asked.
    """
    pieces = built_in_pieces()
    pieces = [*pieces[len(pieces) // 2 :], *pieces[: len(pieces) // 2]]  # few are where the carried text begins too
    asked = [tokenize(render(question)) for question in questions()] if render is not None else []
    begun = [[*lead, *tokenize(piece)[:OPENING]] for piece in pieces]
    kinds = [kind for kind in ([list(start)], begun, asked) if kind]
    rounds = max(map(len, kinds))
    return [opening for at in range(rounds) for kind in kinds if (opening := kind[at % len(kind)])]


def fault_of(written: Written, vocabulary: int) -> str | None:
    """Says why what a model wrote is no text to calibrate on. None: it is one.

    Args:
        written: What it wrote.
        vocabulary: Number of its tokens.
    """
    if not written.texts:
        return "the model wrote nothing"
    if not math.isnan(written.surprise) and written.surprise > EVEN * math.log(vocabulary):
        return "the model draws tokens nearly evenly"
    kinds = np.mean([len(np.unique(text)) / len(text) for text in written.texts])
    return "the model repeats itself" if kinds < FEW_KINDS else None


def in_turn(written: Sequence[Window], carried: Sequence[Window]) -> list[Window]:
    """Returns texts of both kinds so that any evenly spread part of them has both: in the order of Thue and Morse."""
    left = list(carried), list(written)
    mixed: list[Window] = []
    for at in range(len(written) + len(carried)):
        kind = at.bit_count() % 2
        mixed.append(left[kind if left[kind] else 1 - kind].pop(0))
    return mixed
