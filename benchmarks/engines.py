"""Builds the samples for TensorRT targets, one after the other: time, memory, sizes, and fidelity of the lowered graph.

    python benchmarks/engines.py [--models smollm2-135m …] [--targets rtx …] [--weights fp16 …] [--tokens 4096]

Each build is a process of its own, so that its peak memory is its own. `--tokens` measures the fp16 graph further, on
that many tokens of `--text FILE` (or of the built-in text, repeated): top-1 agreement, and the cosine of logits with
the float32 reference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

MODELS = ("smollm2-135m", "gemma3-270m", "minilm-l6")
TARGETS = ("rtx", "jetson-orin,jetpack=7.2", "jetson-orin,jetpack=6.2")
WEIGHTS = ("fp16", "int8", "int4")


def build(model: str, target: str, weights: str, out: Path) -> dict[str, Any]:
    """Runs one build; returns its seconds, its peak memory in MB, and what its report says."""
    command = [sys.executable, "-m", "leptonc", "build", f"sample:{model}", "--target", target, "--weights", weights]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "-o", str(out), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak))
    watcher.start()
    stdout, stderr = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{model} for {target}, {weights}: {stderr.decode().strip().splitlines()[-2:]}")
    result = json.loads(stdout)
    variant = result["manifest"]["variants"][0]
    report = result["report"]["variants"][variant["name"]]
    engine = report.get("engine") or report.get("rehearsal", {})
    fidelity = report["fidelity"]
    return {
        "model": model,
        "target": target,
        "weights": weights,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": round(peak[0] / 1e6),
        "plan_mb": engine.get("megabytes"),
        "engine": "plan" if report.get("engine") else "rehearsed" if engine.get("done") else engine.get("why"),
        "top1": fidelity.get("top1_agreement"),
        "perplexity": fidelity.get("perplexity"),
        "reference": fidelity.get("perplexity_reference"),
        "cosine": fidelity.get("cosine_min"),
    }


def _watch(pid: int, peak: list[int]) -> None:
    try:
        process = psutil.Process(pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        pass


def long_text(artifact: Path, model: str, count: int, text: Path | None) -> dict[str, Any]:
    """Runs an artifact's lowered graph on `count` tokens, on the CPU, against transformers in float32."""
    import numpy as np
    from tokenizers import Tokenizer

    from leptonc.backends.tensorrt.execute import logits_blocks
    from leptonc.evaluate.reference import Reference
    from leptonc.evaluate.text import load_text
    from leptonc.frontend.tasks import task_of
    from leptonc.sources import open_source
    from runtime_edge.verify import read_manifest

    manifest = read_manifest(artifact)
    (part,), graph = manifest.parts, artifact / manifest.variants[0].main.file
    agree, least, cosines, positions = 0, 1.0, 0.0, 0
    with open_source(f"sample:{model}") as source:
        ids = Tokenizer.from_str(source.tokenizer_json.decode()).encode(load_text(text)).ids
        ids = (ids * (count // len(ids) + 1))[:count]
        task = task_of(source.config, source.modules)
        for start in range(0, count, 512):  # texts of 512 tokens: the reference keeps all logits of one
            run = ids[start : start + 512]
            want = np.concatenate([block for _, block in Reference(source, task).logits(run)])
            got = np.concatenate([block for _, block in logits_blocks(graph, part, run, 128)])
            cosine = (want * got).sum(-1) / (np.linalg.norm(want, axis=-1) * np.linalg.norm(got, axis=-1))
            agree += int((want.argmax(-1) == got.argmax(-1)).sum())
            least, cosines, positions = (
                min(least, float(cosine.min())),
                cosines + float(cosine.sum()),
                positions + len(run),
            )
    return {
        "tokens": positions, "top1": round(agree / positions, 5), "cosine_min": round(least, 7),
        "cosine_mean": round(cosines / positions, 7),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--weights", nargs="+", default=WEIGHTS)
    parser.add_argument("--tokens", type=int, default=0)
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for model in given.models:
        for target in given.targets:
            for weights in given.weights:
                with tempfile.TemporaryDirectory() as place:
                    out = Path(place) / "m.lepton"
                    print(json.dumps(build(model, target, weights, out)), flush=True)
                    if given.tokens and weights == "fp16" and model != "minilm-l6":
                        print(
                            json.dumps(
                                {"model": model, "target": target, **long_text(out, model, given.tokens, given.text)}
                            )
                        )


if __name__ == "__main__":
    main()
