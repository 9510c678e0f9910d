#!/usr/bin/env python3
"""Decode speed of an artifact with drafts and without, in turn, on answers that repeat their context and on others.

    python benchmarks/drafts.py ART --rounds 5

For each prompt: medians of tokens a second, their ratio, the share of drafted tokens that were accepted, and after how
many tokens the two answers differ (null: not at all). The prompt is in the cache, and tokens after the first count.
Answers are greedy, but for `plain`: small models soon repeat themselves where nothing is left to chance. `rows` is what
a run of so many tokens costs, in steps; `rounding` is the largest difference of its first logits from a step's. Quote
the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

import runtime_edge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime_edge.model import Model

PASSAGE = (
    "The lake lies in the north of the country, between two low ranges of hills. People have fished there for more "
    "than a thousand years. In winter it freezes, and the villages on both shores are joined by a road across the "
    "ice, which is marked with branches of spruce. In spring the ice breaks within a week, and the first boats go out "
    "before the last floes have melted. The largest village has a school, two shops and a small museum, where the "
    "nets and boats of earlier times are shown. It was founded by a merchant's widow, who bought the land for forty "
    "barrels of salt."
)
MISTAKES = {"country": "contry", "thousand": "thousnad", "villages": "vilages", "breaks": "braeks", "museum": "musuem"}
PROGRAM = '''def count_words(lines):
    """Count how often each word occurs."""
    counts = {}
    for line in lines:
        for word in line.split():
            counts[word] = counts.get(word, 0) + 1
    return counts


def print_words(counts):
    """Print the words, the most frequent ones first."""
    for word in sorted(counts, key=counts.get, reverse=True):
        print(word, counts[word])
'''
CHANCE: dict[str, dict[str, Any]] = {"plain": {"temperature": 0.8, "top_p": 0.95, "seed": 1}}
ROWS = (2, 3, 5, 9)


def misspelt(text: str) -> str:
    for right, wrong in MISTAKES.items():
        text = text.replace(right, wrong)
    return text


PROMPTS = {
    "repeat": f"{PASSAGE}\n\nThe same text again, word for word:\n\nThe lake lies in the north of the country,",
    "correct": f"With mistakes:\n\n{misspelt(PASSAGE)}\n\nThe same text without mistakes:\n\nThe lake lies in the",
    "program": f"{PROGRAM}\n\n# The same program, where words are called tokens:\n\n\ndef count_tokens(lines):",
    "plain": "A keeper of a lighthouse wrote to his sister about the storms of that autumn. The letter begins:",
}


def runs_of_rows(model: Model, rounds: int) -> dict[str, dict[str, float]]:
    """Time of runs of several tokens in steps, medians, after a prompt of the passage's length; and their rounding."""
    ids = model.tokenize(PASSAGE)
    state = model._decoding()._state
    assert model.manifest.decoder is not None
    logits = np.empty((max(ROWS), model.manifest.decoder.vocab_size), np.float32)
    taken: dict[int, list[float]] = {rows: [] for rows in (1, *ROWS)}
    first: dict[int, NDArray[np.float32]] = {}
    model.generate(ids, max_new_tokens=2)
    for _ in range(4 * rounds):
        for rows, seconds in taken.items():
            state.cache.keep(len(ids) - 1)
            start = perf_counter()
            if rows == 1:
                logits[0] = state.step(ids[0])
            else:
                state.all_logits(ids[:rows], logits[:rows])
            seconds.append(perf_counter() - start)
            first[rows] = logits[0].copy()
    step = statistics.median(taken[1])
    return {
        "rows": {str(rows): round(statistics.median(taken[rows]) / step, 2) for rows in ROWS},
        "rounding": {str(rows): float(f"{np.abs(first[rows] - first[1]).max():.2g}") for rows in ROWS},
    }


def compare(model: Model, name: str, new: int, rounds: int, most: bool | int) -> dict[str, Any]:
    """Generates without drafts and with them, in turn; the first of each warms up and is not counted."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    made = {}
    for turn in range(1 + rounds):
        for drafts in (False, True) if turn % 2 else (True, False):
            options = {**CHANCE.get(name, {}), "drafts": most if drafts else False}
            made[drafts] = model.generate(PROMPTS[name], max_new_tokens=new + 1, **options)
            rates[drafts] += [made[drafts].stats.decode_tok_s] if turn else []
    plain, stats = made[False].token_ids, made[True].stats
    pairs = enumerate(zip(plain, made[True].token_ids, strict=False))
    medians = {drafts: statistics.median(each) for drafts, each in rates.items()}
    return {
        "plain_tok_s": round(medians[False], 1),
        "drafts_tok_s": round(medians[True], 1),
        "ratio": round(medians[True] / medians[False], 3),
        "drafted": stats.drafted,
        "accepted": round(stats.accepted / stats.drafted, 3) if stats.drafted else None,
        "tokens": len(plain),
        "differ_after": next((index for index, (one, other) in pairs if one != other), None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, help="tokens of a draft at most")
    args = parser.parse_args()
    with runtime_edge.load(args.artifact, threads=args.threads) as model:
        found: dict[str, Any] = {**runs_of_rows(model, args.rounds)}
        for name in PROMPTS:
            found[name] = compare(model, name, args.new, args.rounds, True if args.most is None else args.most)
            print(name, json.dumps(found[name]), file=sys.stderr)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
