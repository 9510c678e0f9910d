#!/usr/bin/env python3
"""Seconds and peak resident memory of a build, alone, against a peer's command, and against depth.

    python benchmarks/build_cost.py sample:smollm2-135m --weights int4 [--rounds 3] [--peer 'PEER COMMAND']
    python benchmarks/build_cost.py --depths 4,24      two made-up models of one width and different depth
    python benchmarks/build_cost.py --depths 4,42 -- --weights int4 --symmetric --calibration FILE --memory-gb 1

What stands after `--` is what `leptonc build` gets in place of `--weights int4 --fast`.

Memory is that of the whole process tree (its largest sum of resident sets, sampled every 20 ms), as a user's machine
feels it. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WIDTH = 768  # of the made-up models: 7 million weights a layer


def measure(command: list[str]) -> dict[str, float]:
    """Runs a command; returns its seconds and the peak memory of its process tree in MB."""
    import psutil

    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            try:
                for each in (tree, *tree.children(recursive=True)):
                    total += each.memory_info().rss
            except psutil.NoSuchProcess:
                pass
            peak = max(peak, total)
            time.sleep(0.02)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{shlex.join(command)} failed:\n{log.read().decode(errors='replace')[-2000:]}")
    return {"seconds": round(time.perf_counter() - started, 1), "peak_mb": round(peak / 2**20)}


def build(source: str, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "leptonc", "build", source, "--target", "cpu", "-o", str(out), "--force", *options]


def made_up(folder: Path, depth: int) -> Path:
    """Writes a Llama of `depth` layers with random weights as a Hugging Face directory."""
    import dataclasses

    from leptonc.sources import Source
    from sample_models import tiny_model
    from sample_models.export import write_directory
    from sample_models.tiny_tokenizer import tokenizer_json
    from sample_models.tiny_weights import RandomWeights

    model = tiny_model("tiny-llama")
    size = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": depth}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64}
    model = dataclasses.replace(model, config={**model.config, **size, **heads})
    path = folder / f"depth-{depth}"
    write_directory(Source(path.name, {}, model.config, RandomWeights(model), tokenizer_json()), path)
    return path


def by_depth(depths: list[int], more: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for depth in depths:
            source = made_up(folder, depth)
            weights = sum(f.stat().st_size for f in source.glob("*.safetensors")) / 2**20
            for options in [more] if more else [["--weights", "fp32"], ["--weights", "int4", "--fast"]]:
                cost = measure(build(str(source), folder / "out.lepton", "--no-check", *options))
                rows.append({"layers": depth, "fp32_mb": round(weights), "options": shlex.join(options), **cost})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="sample:smollm2-135m")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help="command that builds the same")
    parser.add_argument("--depths", help="numbers of layers, with commas between")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    args, more = parser.parse_args(given[:end]), given[end + 1 :]
    if args.depths:
        print(json.dumps(by_depth([int(d) for d in args.depths.split(",")], more), indent=2))
        return
    with tempfile.TemporaryDirectory() as name:
        options = more or ["--weights", args.weights, "--fast"]
        commands = {"ours": build(args.source, Path(name) / "out.lepton", *options)}
        if args.peer:
            commands["peer"] = shlex.split(args.peer)
        runs: dict[str, list[dict[str, float]]] = {key: [] for key in commands}
        for _ in range(args.rounds):
            for key, command in commands.items():
                runs[key].append(measure(command))
    print(
        json.dumps(
            {
                key: {field: statistics.median(r[field] for r in found) for field in found[0]}
                for key, found in runs.items()
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
