"""The ports of text tasks, by the names that transformers and these tasks' graphs have for them."""

from __future__ import annotations

from runtime_edge import part_record as roles
from runtime_edge.part_record import BATCH, CAPACITY, KEY_VALUE, LENGTH, Buffer, Port, State

TEXT = (BATCH, LENGTH)
TOKEN_IDS = Port(name="input_ids", role=roles.TOKEN_IDS, dtype="int64", dims=TEXT)
POSITIONS = Port(name="position_ids", role=roles.POSITIONS, dtype="int64", dims=TEXT)
PAST_LENGTH = Port(name="past_length", role=roles.PAST_LENGTH, dtype="int64", dims=(BATCH,))
LOGITS = Port(name="logits", role=roles.NEXT_TOKEN_LOGITS, dtype="float32", dims=(*TEXT, "vocabulary"))
DECODER = "decoder"

ATTENTION_MASK = Port(name="attention_mask", role=roles.ATTENTION_MASK, dtype="int64", dims=TEXT)
SEGMENTS = Port(name="token_type_ids", role=roles.SEGMENTS, dtype="int64", dims=TEXT)
POOLING_MASK = Port(name="pooling_mask", role=roles.POOLING_MASK, dtype="int64", dims=TEXT)
EMBEDDINGS = Port(name="embeddings", role=roles.EMBEDDINGS, dtype="float32", dims=(BATCH, "width"))
LABEL_LOGITS = Port(name="logits", role=roles.LABEL_LOGITS, dtype="float32", dims=(BATCH, "labels"))
ENCODER = "encoder"
ENCODER_INPUTS = {port.name: port for port in (TOKEN_IDS, ATTENTION_MASK, SEGMENTS, POOLING_MASK)}
ROWS = {"text-embedding": EMBEDDINGS, "text-classification": LABEL_LOGITS}  # what formats 1 to 8 gave for a text


def key_value_state(layer: int, heads: int, widths: tuple[int, int], dtype: str, window: int | None = None) -> State:
    """Returns the state of a layer's attention, by the names that the dialect has for its keys and values."""
    buffers = (
        Buffer(
            input=f"past_key_values.{layer}.{kind}", output=f"present.{layer}.{kind}", dtype=dtype,
            dims=(BATCH, heads, CAPACITY, width),
        )
        for kind, width in zip(("key", "value"), widths, strict=True)
    )  # fmt: skip
    return State(kind=KEY_VALUE, buffers=tuple(buffers), window=window)
