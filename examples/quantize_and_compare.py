"""Quantization and its cost: a model in several number formats, with the size, the loss and an answer of each.

Run it: python examples/quantize_and_compare.py sample:smollm2-135m points int8 int4
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import runtime_edge


def build(source: str, weights: str, out: Path) -> dict[str, Any]:
    """Builds an artifact with the command line; returns what it tells programs: `manifest`, `report` and more."""
    command = [sys.executable, "-m", "leptonc", "build", source, "--weights", weights, "-o", str(out), "--json"]
    done = subprocess.run([*command, "--force"], stdout=subprocess.PIPE, check=False)  # stderr has progress and errors
    if done.returncode != 0:
        sys.exit(done.returncode)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def main(source: str, folder: str, formats: list[str]) -> None:
    """Prints a line for each number format of the weights."""
    for weights in formats:
        artifact = Path(folder) / f"{weights}.lepton"
        built = build(source, weights, artifact)
        size = sum(file["size"] for file in built["manifest"]["files"]) / 1e6
        measured = built["report"]["fidelity"]  # the artifact beside the original in float32, on the same text
        loss = 100 * (measured["perplexity"] / measured["perplexity_reference"] - 1)
        with runtime_edge.load(artifact) as model:
            answer = model.generate("The capital of France is", max_new_tokens=12).text
        print(f"{weights}: {size:.1f} MB, perplexity {loss:+.1f} %, goes on with {answer!r}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:] or ["int8", "int4"])
