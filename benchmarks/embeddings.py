#!/usr/bin/env python3
"""Quality and speed of an embedding artifact, alone or in turn with a peer or another artifact, as ratios.

    python benchmarks/embeddings.py ART STS.tsv                                  one line of JSON
    python benchmarks/embeddings.py ART STS.tsv --rounds 3 --beside OTHER_ART    in turn, then the ratios
    python benchmarks/embeddings.py ART STS.tsv --rounds 3 --peer 'COMMAND'      likewise

Spearman's correlation (times 100) is that of `similarity.py`, on the same file. Sentences a second are those of all its
sentences in batches of 32 of like length, text in and vectors out; milliseconds are those of one sentence of 23 tokens,
the median of 50; call_ms (without a peer) those of a call with 32 texts as the file has them, of 40. The peer's command
is called with the file and --threads, and prints one line of JSON with spearman, sentences_s and sentence_ms. Absolute
figures move by 10 % and more on a shared machine: quote the ratios.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import statistics
import sys
import time
from typing import Any

import numpy as np
from similarity import cosine, spearman
from speed import in_turn

BATCH, TOKENS, REPETITIONS, CALLS = 32, 23, 50, 40
FIELDS = ("spearman", "sentences_s", "sentence_ms")


def ours(artifact: str, file: str, threads: int) -> dict[str, Any]:
    """Measures an artifact in this process."""
    import runtime_edge

    with open(file, encoding="utf-8", newline="") as opened:
        rows = [row for row in csv.reader(opened, delimiter="\t", quoting=csv.QUOTE_NONE) if len(row) >= 7]
    scores = np.array([float(row[4]) for row in rows])
    texts = [row[5] for row in rows] + [row[6] for row in rows]
    with runtime_edge.load(artifact, threads=threads) as model:
        one = next((text for text in texts if len(model.tokenize(text)) == TOKENS), None)
        if one is None:
            raise SystemExit(f"expected a sentence of {TOKENS} tokens in {file}, found none")
        model.encode(texts, batch_size=BATCH)  # opens what many texts at once run in
        started = time.perf_counter()
        found = model.encode(texts, batch_size=BATCH)
        seconds = time.perf_counter() - started
        each = []
        for _ in range(REPETITIONS):
            started = time.perf_counter()
            model.encode([one])
            each.append(time.perf_counter() - started)
        calls = []
        for first in range(0, min(len(texts), CALLS * BATCH), BATCH):
            started = time.perf_counter()
            model.encode(texts[first : first + BATCH])
            calls.append(time.perf_counter() - started)
    return {
        "peer": "lepton",
        "spearman": round(100 * spearman(cosine(found[: len(rows)], found[len(rows) :]), scores), 3),
        "sentences_s": round(len(texts) / seconds, 1),
        "sentence_ms": round(1000 * statistics.median(each), 3),
        "call_ms": round(1000 * statistics.median(calls), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--beside", metavar="OTHER_ART", help="artifact to compare with")
    other.add_argument("--peer", help="command that measures the peer")
    args = parser.parse_args()
    if not args.beside and not args.peer:
        print(json.dumps(ours(args.artifact, args.file, args.threads)))
        return
    threads = ["--threads", str(args.threads)]
    this = [sys.executable, __file__]
    commands = {
        "ours": [*this, args.artifact, args.file, *threads],
        "other": [*(shlex.split(args.peer) if args.peer else [*this, args.beside]), args.file, *threads],
    }
    print(json.dumps(in_turn(commands, args.rounds, FIELDS if args.peer else (*FIELDS, "call_ms")), indent=2))


if __name__ == "__main__":
    main()
