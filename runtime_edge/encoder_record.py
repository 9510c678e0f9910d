"""How a manifest describes an encoder, and what makes the description whole."""

from __future__ import annotations

from runtime_edge.records import Positive, Record, require, unique

ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Encoder(Record, frozen=True, kw_only=True):
    """An encoder with one output row a text.

    `inputs` are the graph's inputs among input_ids, attention_mask and token_type_ids, each int64 [batch, length].
    `output` is `embeddings` (float32 [batch, dim]) or `logits` (float32 [batch, dim], `labels` naming the columns).
    """

    inputs: tuple[str, ...]
    output: str
    dim: Positive
    max_seq_len: Positive
    labels: tuple[str, ...] = ()
    multi_label: bool = False


def check_encoder(encoder: Encoder, output: str) -> None:
    """Raises ArtifactError where an encoder whose task has the output `output` contradicts itself."""
    unique("encoder.inputs", encoder.inputs)
    require(
        "input_ids" in encoder.inputs and set(encoder.inputs) <= set(ENCODER_INPUTS),
        f"encoder.inputs: expected input_ids and others of {', '.join(ENCODER_INPUTS)}, found {list(encoder.inputs)}",
    )
    require(encoder.output == output, f"encoder.output: expected {output!r}, found {encoder.output!r}")
    if output == "logits":
        require(
            len(encoder.labels) == encoder.dim,
            f"encoder.labels: expected {encoder.dim} labels (dim), found {len(encoder.labels)}",
        )
