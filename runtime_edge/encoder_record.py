"""How a manifest describes an encoder, and what makes the description whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from runtime_edge import part_record as roles
from runtime_edge.part_record import Part
from runtime_edge.records import Name, Positive, Record, Text, require

INPUTS = (roles.TOKEN_IDS, roles.ATTENTION_MASK, roles.SEGMENTS, roles.POOLING_MASK)
OUTPUTS = (roles.EMBEDDINGS, roles.LABEL_LOGITS)
FUNCTIONS = ("softmax", "sigmoid", "none")  # that make scores of logits
SIDES = ("right", "left")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


class Encoder(Record, frozen=True, kw_only=True):
    """An encoder with one output row a text, or a pair of texts: the only part of its model, and its settings.

    The first four fields are those of the part, the others those of the manifest's `settings`.

    Attributes:
        inputs: Names of the graph's inputs, each int64 [batch, length].
        roles: What each input is for.
        output: The name of embeddings, or of logits of labels, float32 [batch, dim].
        dim: Numbers of a row.
        max_seq_len: Tokens of a text at most.
        labels: Names of the labels, in the model's order.
        multi_label: Whether a text may have several labels, where `function` is empty.
        function: What makes the scores of `classify` from logits: `softmax`, `sigmoid` or `none`. Empty: the sigmoid
            where `multi_label` holds, else the softmax.
        rerank_function: The same for `rerank`.
        rerank_max_seq_len: Tokens of a pair in `rerank` at most. Default: `max_seq_len`.
        prompts: Texts that are put before a text, by their names.
        default_prompt: The prompt that applies where none is asked for.
        truncate_dim: How many numbers of an embedding are returned. Default: all.
        truncation_side: The end of a text that is cut: `right` or `left`.
        segments: Whether the second text of a pair has a token type of its own.
        similarity: How embeddings are meant to be compared: `cosine`, `dot`, `euclidean` or `manhattan`.
    """

    inputs: tuple[str, ...]
    roles: tuple[str, ...]
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


def encoder_of(parts: Sequence[Part], settings: Mapping[str, Any]) -> Encoder | None:
    """Returns the encoder that a model is; nothing where it has other parts.

    Raises:
        msgspec.ValidationError: Its settings are not an encoder's.
    """
    if len(parts) != 1 or parts[0].states or parts[0].input(roles.TOKEN_IDS) is None:
        return None
    (part,), output = parts, parts[0].outputs[0]
    width = output.dims[-1] if output.dims else ""
    if len(part.outputs) != 1 or output.role not in OUTPUTS or not isinstance(width, int):
        return None
    fields = {
        "inputs": tuple(port.name for port in part.inputs), "roles": tuple(port.role for port in part.inputs),
        "output": output.name, "dim": width,
    }  # fmt: skip
    return msgspec.convert({**settings, **fields}, Encoder)


def check_encoder(encoder: Encoder, role: str) -> None:
    """Raises ArtifactError where an encoder, whose output has a role, contradicts itself."""
    require(
        roles.TOKEN_IDS in encoder.roles and set(encoder.roles) <= set(INPUTS),
        f"parts: expected inputs for token_ids and others of {', '.join(INPUTS)}, found {list(encoder.roles)}",
    )
    if role == roles.LABEL_LOGITS:
        require(
            len(encoder.labels) == encoder.dim,
            f"settings.labels: expected {encoder.dim} labels, as many as the output's numbers, found "
            f"{len(encoder.labels)}",
        )
    choices = {
        "function": ("", *FUNCTIONS), "rerank_function": ("", *FUNCTIONS), "truncation_side": SIDES,
        "similarity": SIMILARITIES,
    }  # fmt: skip
    for field, allowed in choices.items():
        value = getattr(encoder, field)
        names = ", ".join(filter(None, allowed))
        require(value in allowed, f"settings.{field}: expected one of {names}, found {value!r}")
    require(
        encoder.default_prompt is None or encoder.default_prompt in encoder.prompts,
        f"settings.default_prompt: expected one of prompts, found {encoder.default_prompt!r}",
    )
    require(
        (encoder.rerank_max_seq_len or 1) <= encoder.max_seq_len,
        f"settings.rerank_max_seq_len: expected at most {encoder.max_seq_len} (max_seq_len), found "
        f"{encoder.rerank_max_seq_len}",
    )
    require(
        (encoder.truncate_dim or 1) <= encoder.dim,
        f"settings.truncate_dim: expected at most {encoder.dim} (dim), found {encoder.truncate_dim}",
    )
