#!/usr/bin/env python3
"""How long an artifact takes to load, alone or in turn with ONNX Runtime GenAI's model, each in a new process.

    python benchmarks/load.py ART --rounds 21
    python benchmarks/load.py ART --rounds 21 --peer-python ENV/bin/python --peer DIR

`load_s` ends when load returns, `ready_s` when the first prompt is token ids: some libraries read their tokenizer no
earlier. Imports are included, the interpreter's start is not. Prints medians, quartiles, and the ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

OURS = """
import time; start = time.perf_counter()
import runtime_edge
model = runtime_edge.load({model!r}, threads={threads}); loaded = time.perf_counter()
model.tokenize({text!r}); ready = time.perf_counter()
"""
ORT_GENAI = """
import time; start = time.perf_counter()
import json, onnxruntime_genai as og
config = og.Config({model!r})
config.overlay(json.dumps({{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}))
model = og.Model(config); tokenizer = og.Tokenizer(model); loaded = time.perf_counter()
tokenizer.encode({text!r}); ready = time.perf_counter()
"""
REPORT = "import os, sys; print(loaded - start, ready - start); sys.stdout.flush(); os._exit(0)"
TEXT = "What is edge computing?"


def measure(python: str, program: str, model: str, threads: int) -> tuple[float, float]:
    """Runs a program in a new process; returns its seconds until loaded, and until ready."""
    code = program.format(model=model, threads=threads, text=TEXT) + REPORT
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} failed:\n{done.stderr[-2000:]}")
    loaded, ready = map(float, done.stdout.split()[-2:])
    return loaded, ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", metavar="DIR", help="ONNX Runtime GenAI's model")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has onnxruntime-genai")
    args = parser.parse_args()
    runs = {"ours": (sys.executable, OURS, args.artifact)}
    if args.peer:
        runs["peer"] = (args.peer_python, ORT_GENAI, args.peer)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(args.rounds + 1):
        for name, (python, program, model) in runs.items():
            found[name].append(measure(python, program, model, args.threads))
    summary: dict[str, dict[str, object]] = {}
    for at, field in enumerate(("load_s", "ready_s")):
        times = {name: sorted(each[at] for each in each_run[1:]) for name, each_run in found.items()}  # first: cold
        row: dict[str, object] = {}
        for name, values in times.items():
            quarters = statistics.quantiles(values, n=4)
            row[name] = {"median": round(quarters[1], 3), "quartiles": [round(quarters[0], 3), round(quarters[2], 3)]}
        if "peer" in times:
            row["ratio"] = round(statistics.median(times["ours"]) / statistics.median(times["peer"]), 3)
        summary[field] = row
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
