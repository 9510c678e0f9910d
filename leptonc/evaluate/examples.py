"""Examples: what the original and an artifact make of the same few inputs, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from leptonc.evaluate.reference import Original
from leptonc.report.examples import Example, Examples

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue? Answer in one sentence.",
    "Name three things that one should pack for a day in the mountains.",
)
OPENINGS = ("The capital of France is", "The sky is blue because", "For a day in the mountains one should pack")
TOKENS = 24  # of an answer, at most
ROUNDS = 4  # runs of the original, at most
TEXTS = 6  # of an encoder's texts that are shown
SHOWN = 160  # letters of a text that is shown

Floats = NDArray[np.float32]
GoOn = Callable[[list[list[int]], int], list[list[int]]]


class Writer(Protocol):
    """An artifact that writes text."""

    ends: frozenset[int]

    def prompts(self) -> tuple[bool, list[str], list[list[int]]]:
        """Returns whether prompts are questions to a chat, their texts, and their token ids."""

    def go_on(self, texts: list[list[int]], most: int) -> list[list[int]]:
        """Returns the likeliest token ids, one after the other, that follow each text: so many, or up to an end."""

    def text(self, token_ids: Sequence[int]) -> str:
        """Returns the text of token ids."""


def answers(original: Original, writer: Writer) -> Examples:
    """Returns what both answer, greedily.

    The original runs a few times only, however many tokens it says: the artifact drafts what follows, and one run of
    the original says how far it would have said the same (Leviathan et al., Fast Inference from Transformers via
    Speculative Decoding, 2023). An answer of the original that is not whole after `ROUNDS` runs ends there.
    """
    asks, names, prompts = writer.prompts()
    ours = writer.go_on(prompts, TOKENS)
    theirs = greedy(original.likeliest, writer.go_on, prompts, ours, writer.ends)

    def said(token_ids: list[int]) -> str:
        ended = bool(token_ids) and token_ids[-1] in writer.ends
        return writer.text(token_ids) + ("" if ended else "…")

    rows = [
        Example(input=name, original=said(left), artifact=said(right))
        for name, left, right in zip(names, theirs, ours, strict=True)
    ]
    what = "answers the same questions" if asks else "goes on from the same beginnings"
    told = (
        f"How each of both {what}: at most {TOKENS} tokens, the likeliest one each time. Where two are almost equally "
        "likely, a small change of the model turns an answer."
    )
    return Examples(about=told, asks=asks, rows=rows)


def greedy(
    likeliest: Callable[[list[list[int]], list[int]], list[list[int]]], go_on: GoOn, prompts: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[int]], ends: frozenset[int], most: int = TOKENS, rounds: int = ROUNDS,
) -> list[list[int]]:  # fmt: skip
    """Returns the answers of a model that takes the likeliest token each time, from another one's drafts.

    Args:
        likeliest: Returns the model's likeliest token after each position of texts, from a position of each on.
        go_on: Returns drafts of what follows texts.
        prompts: Token ids of the prompts.
        drafts: The first drafts.
        ends: Token ids that end an answer.
        most: Tokens of an answer, at most.
        rounds: Calls of `likeliest`, at most.
    """
    said: list[list[int]] = [[] for _ in prompts]
    waiting = {i: list(draft)[:most] for i, draft in enumerate(drafts)}
    for at in range(rounds):
        known = {i: [*prompts[i], *said[i]] for i in waiting}
        texts = [known[i] + draft for i, draft in waiting.items()]
        picks = likeliest(texts, [len(text) - 1 for text in known.values()])
        for (i, draft), picked in zip(waiting.items(), picks, strict=True):
            same = next((k for k, token in enumerate(draft) if picked[k] != token), len(draft))
            said[i] += [*draft[:same], picked[same]]
            end = next((k + 1 for k, token in enumerate(said[i]) if token in ends), most)
            said[i] = said[i][: min(end, most)]
        open_ones = [i for i in waiting if len(said[i]) < most and said[i][-1] not in ends]
        if not open_ones or at == rounds - 1:
            break
        longest = max(most - len(said[i]) for i in open_ones)
        following = go_on([[*prompts[i], *said[i]] for i in open_ones], longest)
        waiting = {i: draft[: most - len(said[i])] for i, draft in zip(open_ones, following, strict=True)}
    return said


def neighbours(texts: Sequence[str], original: Floats, ours: Floats) -> Examples | None:
    """Returns which of the other texts each text is most like, for rows [n, dim] of embeddings."""
    if len(texts) < 3:
        return None
    shown = min(TEXTS, len(texts))

    def nearest(rows: Floats) -> list[str]:
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        likeness = (unit @ unit.T).astype(np.float64)
        np.fill_diagonal(likeness, -np.inf)
        best = likeness.argmax(1)
        return [f"{likeness[i, best[i]]:.2f}: {_cut(texts[int(best[i])])}" for i in range(shown)]

    rows = [
        Example(input=_cut(text), original=left, artifact=right)
        for text, left, right in zip(texts, nearest(original), nearest(ours), strict=False)
    ]
    told = f"Which other text of {len(texts)} each of both finds most like it, and their cosine similarity."
    return Examples(about=told, rows=rows)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
