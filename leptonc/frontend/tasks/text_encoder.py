"""The base of the tasks of text encoders: a batch of padded texts goes in, and one row for each text comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from leptonc.errors import CaptureError, InputError
from leptonc.frontend.interface import ROWS, Interface, PartForm
from leptonc.frontend.tasks.base import Task
from leptonc.sources.base import Source
from runtime_edge.encoder_record import SIDES
from runtime_edge.part_record import EMBEDDINGS, Part, Port
from runtime_edge.tasks import names


class TextEncoder(Task):
    """Base of the tasks of text encoders."""

    row: ClassVar[Port]

    def interface(self, config: Any) -> Interface:
        segments = (names.SEGMENTS,) if (getattr(config, "type_vocab_size", 0) or 0) > 1 else ()
        inputs = (names.TOKEN_IDS, names.ATTENTION_MASK, *segments, *self.more_inputs())
        return Interface({names.ENCODER: PartForm(inputs=inputs, outputs=(self.row,))}, ROWS)

    def more_inputs(self) -> tuple[Port, ...]:
        """Returns the inputs beside a text's tokens. Default: none."""
        return ()

    def settings(self, parts: Mapping[str, Part], config: Any, source: Source, max_seq_len: int) -> dict[str, Any]:
        tokenizer = source.tokenizer_config
        side = tokenizer.get("truncation_side", "right")
        if side not in SIDES:
            raise InputError(f"tokenizer_config.json: expected truncation_side to be right or left, found {side!r}")
        return {
            "max_seq_len": max_seq_len, "truncation_side": side,
            "segments": names.SEGMENTS.name in tokenizer.get("model_input_names", (names.SEGMENTS.name,)),
        }  # fmt: skip

    def check_model(self, model: nn.Module) -> None:
        """Refuses a decoder, whose tokens attend to earlier ones alone, as a captured encoder's do not."""
        for path, module in model.named_modules():
            if "Attention" in type(module).__name__ and getattr(module, "is_causal", False):
                raise CaptureError(
                    f"{type(model).__name__}: expected an encoder for {self.name}, whose tokens attend to all others, "
                    f"found a decoder, whose tokens attend to earlier ones alone ({path})",
                    hint="decoders that classify or embed are not supported yet: give a model like BERT or RoBERTa",
                )

    def check_padding(self, model: nn.Module, side: str | None) -> None:
        """Refuses left padding where sentence-transformers pads a batch; transformers' pipeline takes single texts."""
        pads = self.row.role == EMBEDDINGS or getattr(model.config, "num_labels", 0) == 1
        # RoBERTa's family makes positions of the tokens, so that padding has none.
        relative = any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())
        if side == "left" and pads and not relative:
            raise CaptureError(
                f"{type(model).__name__}: expected a tokenizer that pads on the right, found padding_side left, with "
                "which sentence-transformers gives a text other positions, and another result, beside longer texts",
                hint="where that is a mistake, take padding_side out of tokenizer_config.json: an artifact's results "
                "are those of each text alone",
            )
