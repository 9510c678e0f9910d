"""Scores: how likely a language model finds a text, token by token. The likeliest of several texts wins.

Run it: python examples/score.py smollm2.lepton "The cat sat on the mat." "The mat sat on the cat."
"""

import math
import sys

import runtime_edge
from runtime_edge import Model


def perplexity(model: Model, text: str) -> float:
    """Returns exp of the mean negative log-probability of a token; lower is likelier."""
    return math.exp(-float(model.score(text).mean()))


def main(artifact: str, texts: list[str]) -> None:
    """Prints each text's perplexity, the likeliest first, and the token that the model expected least."""
    with runtime_edge.load(artifact) as model:
        for text in sorted(texts, key=lambda text: perplexity(model, text)):
            scores = model.score(text)  # float32: of each token after the first, given those before it
            least = int(scores.argmin())
            token = model.detokenize([model.tokenize(text)[least + 1]])
            print(f"{perplexity(model, text):8.2f}  {text}  (least expected: {token!r})")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
