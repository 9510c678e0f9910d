"""How a manifest describes an encoder, and what makes the description whole."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from runtime_edge.records import Name, Positive, Record, Text, require, unique

# `pooling_mask` is the attention mask without the tokens of a prompt, for models that leave it out of the pooling.
ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pooling_mask")
FUNCTIONS = ("softmax", "sigmoid", "none")  # that make scores of logits
SIDES = ("right", "left")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


class Encoder(Record, frozen=True, kw_only=True):
    """An encoder with one output row a text, or a pair of texts.

    `inputs` are the graph's inputs among ENCODER_INPUTS, each int64 [batch, length]. `output` is `embeddings` (float32
    [batch, dim]) or `logits` (float32 [batch, dim], `labels` naming the columns).

    `function` makes the scores of `classify` from logits, `rerank_function` those of `rerank`; an empty `function` is
    the sigmoid where `multi_label` holds, else the softmax, as format 7 has it. `prompts` are put before texts, by
    name; `default_prompt` names the one that applies where none is asked for. `truncate_dim` is how many numbers of an
    embedding are returned, all by default. `truncation_side` is where a text loses what is beyond `max_seq_len`;
    `rerank_max_seq_len` is where `rerank` cuts a pair, there too by default. `segments` says whether the second text of
    a pair has a token type of its own. `similarity` is how the model's embeddings are meant to be compared.
    """

    inputs: tuple[str, ...]
    output: str
    dim: Positive
    max_seq_len: Positive
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    function: str = ""
    rerank_function: str = ""
    rerank_max_seq_len: Positive | None = None
    prompts: Annotated[dict[Name, Text], Meta(max_length=2**10)] = msgspec.field(default_factory=dict)
    default_prompt: Name | None = None
    truncate_dim: Positive | None = None
    truncation_side: str = "right"
    segments: bool = True
    similarity: str = "cosine"

    @property
    def score_function(self) -> str:
        """What makes the scores of `classify`: softmax, sigmoid or none."""
        return self.function or ("sigmoid" if self.multi_label else "softmax")


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
    choices = {
        "function": ("", *FUNCTIONS), "rerank_function": ("", *FUNCTIONS), "truncation_side": SIDES,
        "similarity": SIMILARITIES,
    }  # fmt: skip
    for field, allowed in choices.items():
        value = getattr(encoder, field)
        names = ", ".join(filter(None, allowed))
        require(value in allowed, f"encoder.{field}: expected one of {names}, found {value!r}")
    require(
        encoder.default_prompt is None or encoder.default_prompt in encoder.prompts,
        f"encoder.default_prompt: expected one of encoder.prompts, found {encoder.default_prompt!r}",
    )
    require(
        (encoder.rerank_max_seq_len or 1) <= encoder.max_seq_len,
        f"encoder.rerank_max_seq_len: expected at most {encoder.max_seq_len} (max_seq_len), found "
        f"{encoder.rerank_max_seq_len}",
    )
    require(
        (encoder.truncate_dim or 1) <= encoder.dim,
        f"encoder.truncate_dim: expected at most {encoder.dim} (dim), found {encoder.truncate_dim}",
    )
