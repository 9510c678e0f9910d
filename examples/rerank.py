"""Reranking: a cross-encoder reads a query together with each text, and scores how well the text answers it.

Run it: python examples/rerank.py reranker.lepton "how do I reset it?" "Hold the button." "We open at nine."
"""

import sys

import runtime_edge


def main(artifact: str, query: str, texts: list[str]) -> None:
    """Prints the texts with their scores, the best first."""
    with runtime_edge.load(artifact) as model:
        scores = model.rerank(query, texts)  # float32 [texts], in the order of the texts
    for score, text in sorted(zip(scores.tolist(), texts, strict=True), reverse=True):
        print(f"{score:.4f}  {text}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
