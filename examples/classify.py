"""Classification: the likeliest label of each text, and the probabilities of all labels.

Run it: python examples/classify.py classifier.lepton "I love it" "It broke after a day"
"""

import sys

import runtime_edge


def main(artifact: str, texts: list[str]) -> None:
    """Prints a line for each text, its labels in descending order of probability."""
    with runtime_edge.load(artifact) as model:
        for text, result in zip(texts, model.classify(texts), strict=True):  # all texts in one call: they share batches
            ranked = sorted(result.scores.items(), key=lambda item: -item[1])
            print(f"{text}: {', '.join(f'{label} {score:.3f}' for label, score in ranked)}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
