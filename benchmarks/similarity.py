#!/usr/bin/env python3
"""Spearman's rank correlation of an embedding artifact, and of its reference, on an STS Benchmark file.

    python benchmarks/similarity.py ART STS.tsv [--reference SOURCE]

The file has the columns genre, file, year, index, score, sentence 1, sentence 2 (Cer et al. 2017). SOURCE is what the
artifact was built from; transformers runs it in float32. Prints one line of JSON, correlations times 100.
"""

from __future__ import annotations

import argparse
import csv
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray


def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Returns ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    result: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return result


def spearman(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Spearman 1904: Pearson's correlation of the ranks."""
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("file")
    parser.add_argument("--reference", metavar="SOURCE")
    args = parser.parse_args()
    with open(args.file, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if len(row) >= 7]
    scores = np.array([float(row[4]) for row in rows])
    left, right = [row[5] for row in rows], [row[6] for row in rows]

    import runtime_edge

    with runtime_edge.load(args.artifact) as model:
        a, b = model.encode(left), model.encode(right)
        ids = [model.tokenize(text)[: model.manifest.encoder.max_seq_len] for text in left + right]  # type: ignore[union-attr]
    found = {"pairs": len(rows), "spearman": round(100 * spearman(cosine(a, b), scores), 3)}
    if args.reference:
        from leptonc.evaluate.reference import Reference
        from leptonc.frontend.tasks import task_of
        from leptonc.sources import open_source

        with open_source(args.reference) as source:
            rows_ = Reference(source, task_of(source.config, source.modules)).rows(ids)
        c, d = rows_[: len(left)], rows_[len(left) :]
        found["spearman_reference"] = round(100 * spearman(cosine(c, d), scores), 3)
        found["cosine_min"] = round(float(min(cosine(a, c).min(), cosine(b, d).min())), 7)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
