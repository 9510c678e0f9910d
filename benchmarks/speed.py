#!/usr/bin/env python3
"""Prefill and decode speed of an artifact, alone or in turn with a peer's, as ratios.

    python benchmarks/speed.py ART                                   one line of JSON
    python benchmarks/speed.py ART --rounds 5 --peer 'PEER COMMAND'  ours, peer, ours, peer …, then the ratios
    python benchmarks/speed.py ART --peer 'env LEPTON_KERNELS=onnxruntime python benchmarks/speed.py ART'

The peer's command prints one line of JSON with load_s, prefill_tok_s, decode_tok_s and rss_mb, measured as here: the
same text, greedy, medians of 4 repetitions, a process that does nothing else; an answer of ours that ends early counts
as far as it goes. Absolute figures move by 10 % and more on a shared machine: quote the ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

TEXT = (
    "Edge computing is a distributed computing model that brings computation and data storage closer to the "
    "sources of data. "
)
REPETITIONS = 4
FIELDS = ("prefill_tok_s", "decode_tok_s", "load_s", "rss_mb")
LESS_IS_BETTER = ("load_s", "rss_mb")


def ours(artifact: str, prompt: int, new: int, threads: int) -> dict[str, Any]:
    """Measures an artifact in this process: load seconds, tokens a second, peak resident megabytes."""
    started = time.time()
    import runtime_edge

    prefill, decode = [], []
    with runtime_edge.load(artifact, threads=threads) as model:
        load = time.time() - started
        ids = model.tokenize(TEXT * 100)
        for repetition in range(REPETITIONS):
            # Another first token each time, so that nothing is found in the prompt cache.
            stats = model.generate(ids[repetition : repetition + prompt], max_new_tokens=new + 1, drafts=False).stats
            if stats.new_tokens <= new // 2 or stats.cached_tokens:
                raise SystemExit(f"expected {new + 1} tokens, or half of them, after an uncached prompt, found {stats}")
            prefill.append(stats.prefill_s)
            decode.append(stats.decode_s / (stats.new_tokens - 1))
    return {
        "peer": "lepton",
        "load_s": round(load, 2),
        "prefill_tok_s": round(prompt / statistics.median(prefill), 1),
        "decode_tok_s": round(1 / statistics.median(decode), 1),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def run(command: list[str]) -> dict[str, Any]:
    """Runs a command; returns the JSON of its last line of output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def in_turn(commands: dict[str, list[str]], rounds: int, fields: Sequence[str]) -> dict[str, Any]:
    """Runs commands in turn; returns the median of each field by command's name, and ratios of the first to each other.

    `ratio` is that of medians, `in_rounds` the median of the rounds' own: a machine has faster and slower minutes.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            results[name].append(run(command))
            print(json.dumps(results[name][-1]), file=sys.stderr)
    summary: dict[str, Any] = {}
    for field in fields:
        medians = {name: statistics.median(each[field] for each in results[name]) for name in commands}
        first, *others = commands
        for other in others:
            pairs = zip(results[first], results[other], strict=True)
            ratio = medians[first] / medians[other]
            in_rounds = statistics.median(mine[field] / theirs[field] for mine, theirs in pairs)
            medians[f"{other}: ratio"], medians[f"{other}: in_rounds"] = round(ratio, 3), round(in_rounds, 3)
        summary[field] = medians
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", action="append", default=[], help="command that measures a peer; may be repeated")
    args = parser.parse_args()
    if not args.peer:
        print(json.dumps(ours(args.artifact, args.prompt, args.new, args.threads)))
        return
    sizes = ["--prompt", str(args.prompt), "--new", str(args.new), "--threads", str(args.threads)]
    commands = {"ours": [sys.executable, __file__, args.artifact, *sizes]}
    commands |= {f"peer {i}": [*shlex.split(peer), *sizes] for i, peer in enumerate(args.peer, 1)}
    print(json.dumps(in_turn(commands, args.rounds, FIELDS), indent=2))


if __name__ == "__main__":
    main()
