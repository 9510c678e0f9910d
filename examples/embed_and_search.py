"""Semantic search: texts are embedded once, and a question finds those that are closest in meaning.

Run it: python examples/embed_and_search.py minilm.lepton "how do I get my money back?"
"""

import sys

import numpy as np

import runtime_edge
from runtime_edge import Model

TEXTS = (
    "Our office is open from nine to five on weekdays.",
    "Refunds are paid within five days to the card that was used.",
    "The device restarts by itself after an update.",
    "You can change your password under Settings.",
    "Hold the power button for ten seconds to reset it.",
)


def search(model: Model, query: str, texts: tuple[str, ...]) -> list[tuple[float, str]]:
    """Returns each text with its cosine similarity to the query, the closest first."""
    # Normalized vectors: their dot product is the cosine. Keep `vectors` for the next query, in a file or a database.
    vectors = model.encode_document(texts, normalize_embeddings=True)  # float32 [texts, dim]
    wanted = model.encode_query([query], normalize_embeddings=True)[0]
    similarities = vectors @ wanted
    return [(float(similarities[index]), texts[index]) for index in np.argsort(-similarities)]


def main(artifact: str, query: str) -> None:
    """Prints the texts with their similarities, the closest first."""
    with runtime_edge.load(artifact) as model:
        for similarity, text in search(model, query, TEXTS):
            print(f"{similarity:6.3f}  {text}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
