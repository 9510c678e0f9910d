#!/usr/bin/env python3
"""Time to the first token of chats that take turns on one model, with one cache and with several.

    python benchmarks/conversations.py ART --talks 2 --tokens 1500 --rounds 3

Each chat begins with a prompt of `--tokens` random tokens and gets an answer of `--answer` tokens. Then, every round,
each chat in turn sends its history and `--more` new tokens. Medians of the rounds after the first, in seconds, and how
many tokens were read; `memory_mb` is what the process held at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

import numpy as np

import runtime_edge
from runtime_edge.process import resident


def talk(artifact: str, conversations: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measures with so many caches."""
    random = np.random.default_rng(options.seed)
    with runtime_edge.load(artifact, threads=options.threads, conversations=conversations) as model:
        assert model.manifest.decoder is not None
        vocabulary = model.manifest.decoder.vocab_size

        def some(count: int) -> list[int]:
            return [int(token) for token in random.integers(vocabulary // 100, vocabulary, count)]

        said = [some(options.tokens) for _ in range(options.talks)]
        first, read = [], []
        for turn in range(options.rounds + 1):
            for index in range(options.talks):
                made = model.generate(said[index], max_new_tokens=options.answer)
                said[index] += [*made.token_ids, *some(options.more)]
                if turn:
                    first.append(made.stats.prefill_s)
                    read.append(made.stats.prompt_tokens - made.stats.cached_tokens)
        return {
            "conversations": conversations,
            "first_token_s": round(statistics.median(first), 4),
            "tokens_read": int(statistics.median(read)),
            "memory_mb": round((resident() or 0) / 1e6),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--talks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--more", type=int, default=30)
    parser.add_argument("--answer", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conversations", type=int, help="measure with so many caches alone, in this process")
    options = parser.parse_args()
    if options.conversations is not None:
        print(json.dumps(talk(options.artifact, options.conversations, options)))
        return 0
    for conversations in (1, 4):  # each in a process of its own: memory is the process's
        subprocess.run([sys.executable, *sys.argv, "--conversations", str(conversations)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
