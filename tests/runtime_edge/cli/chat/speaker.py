"""A tiny decoder that says a given text, whatever it is asked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from tokenizers import AddedToken

from tests.runtime_edge import tiny


def write_speaker(root: Path, pieces: Sequence[str], *, is_endless: bool = False, max_seq_len: int = 512) -> Path:
    """Writes an artifact whose every answer is `pieces`, then its end; endless, it begins anew.

    Each piece, of which no two are alike, is a token. Weights of attention are zeros, and the head gives each token's
    embedding to the token that follows.
    """
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in pieces])
    weights = tiny.Weights.seeded(vocab=max(tiny.VOCAB, tokenizer.get_vocab_size()))
    for values in (*weights.qkv, *weights.out, weights.head):
        values[:] = 0
    (start,) = tokenizer.encode("\n", add_special_tokens=False).ids  # what a prompt ends with
    ids = [tokenizer.token_to_id(piece) for piece in pieces]
    chain = [start, *ids, ids[0] if is_endless else tiny.EOS]
    for token, following in itertools.pairwise(chain):
        weights.head[:, following] += weights.embedding[token]
    root.mkdir(parents=True, exist_ok=True)
    with mock.patch.object(tiny, "byte_tokenizer", return_value=tokenizer):
        return tiny.write_decoder(root, weights=weights, max_seq_len=max_seq_len)
