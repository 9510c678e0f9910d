"""Artifacts that are built by one installation and run by another, with what the first answered.

    python -m tests.runtime_edge.carried FOLDER

writes them, which takes the compiler and about half a minute; `test_carried.py` runs them, with the runtime alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import runtime_edge

# By the name of the artifact: what it is built from, and options of a build.
BUILDS: dict[str, tuple[str, dict[str, str]]] = {
    "int4": ("sample:tiny-llama", {"weights": "int4"}),
    "int8": ("sample:tiny-llama", {"weights": "int8"}),
    "w8a8": ("sample:tiny-llama", {"weights": "int8", "activations": "int8"}),
    "prefill": ("sample:tiny-llama", {"weights": "int4", "prefill": "shared"}),
    "window": ("sample:tiny-mistral", {"weights": "fp32"}),
    "encoder": ("sample:tiny-bert", {"weights": "int8", "activations": "int8"}),
}
TOKENS = tuple(range(5, 45))
TEXTS = ("One sentence.", "Another, which is somewhat longer than the first.")


def answers(artifact: Path) -> dict[str, np.ndarray]:
    """What an artifact answers here: greedy tokens and logits float32 of a text, or embeddings float32."""
    with runtime_edge.load(artifact, threads=1) as model:
        if model.manifest.decoder is None:
            return {"embeddings": model.encode(list(TEXTS))}
        made = model.generate(list(TOKENS[:9]), max_new_tokens=24)
        return {"logits": model.logits(list(TOKENS)), "tokens": np.array(made.token_ids)}


def main() -> None:
    """Builds the artifacts, and writes beside each what it answers."""
    from leptonc.build.to_artifact import build
    from leptonc.options import BuildOptions

    folder = Path(sys.argv[1])
    for name, (source, options) in BUILDS.items():
        path = folder / f"{name}.lepton"
        build(BuildOptions(source, out=path, check=False, force=True, **options))  # type: ignore[arg-type]
        np.savez(folder / f"{name}.npz", **answers(path))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
