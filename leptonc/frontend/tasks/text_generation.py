"""Causal language models: a text is continued, token by token, over a key/value cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leptonc.errors import CaptureError
from leptonc.frontend.interface import NEXT_TOKENS, Interface, PartForm
from leptonc.frontend.patches import PassThroughCache, Recorder
from leptonc.frontend.tasks.base import Task
from leptonc.sources.base import SentenceModules, Source
from runtime_edge.part_record import KEY_VALUE, Part
from runtime_edge.tasks import names


class TextGeneration(Task):
    """Gives logits [batch, length, vocabulary] of the next token at each position."""

    name = "text-generation"
    auto_class = "AutoModelForCausalLM"

    @classmethod
    def claim(cls, architecture: str, config: Mapping[str, Any], modules: SentenceModules | None) -> Task | None:
        causal = architecture.endswith(("ForCausalLM", "LMHeadModel"))
        return cls() if causal and modules is None else None

    def interface(self, config: Any) -> Interface:
        decoder = PartForm(
            inputs=(names.TOKEN_IDS, names.PAST_LENGTH), outputs=(names.LOGITS,),
            arguments=(names.TOKEN_IDS, names.POSITIONS), keeps=KEY_VALUE,
        )  # fmt: skip
        return Interface({names.DECODER: decoder}, NEXT_TOKENS)

    def run(self, part: str, model: nn.Module, recorder: Recorder | None, args: Mapping[str, Tensor]) -> Any:
        cache: Any = PassThroughCache(recorder) if recorder else None
        if recorder is not None and (first := _first_position(model)):
            args = {**args, names.POSITIONS.name: args[names.POSITIONS.name] + first}
        return model(**args, past_key_values=cache, use_cache=cache is not None).logits

    def settings(self, parts: Mapping[str, Part], config: Any, source: Source, max_seq_len: int) -> dict[str, Any]:
        return {"max_seq_len": max_seq_len}

    def part_of_config(self, config: Any) -> Any:
        """Returns the language model's config, which a multimodal checkpoint's config holds."""
        return config.get_text_config(decoder=True)

    def original(self, model: Any) -> Any:
        """Returns the text model inside a multimodal one as a causal model of its own: paths are as in the capture."""
        import transformers

        config = model.config.get_text_config(decoder=True)
        if config is model.config:
            return model
        auto: Any = transformers.AutoModelForCausalLM
        with torch.device("meta"):
            text = auto.from_config(config, dtype=torch.float32)
        setattr(text, text.base_model_prefix, model.get_decoder())
        text.set_output_embeddings(model.get_output_embeddings())
        return text

    def check_model(self, model: nn.Module) -> None:
        """Refuses an encoder, whose tokens attend to later ones too, as a captured decoder's do not."""
        config: Any = model.config
        encoder = getattr(config, "is_decoder", None) is False
        encoder |= bool(getattr(config, "use_bidirectional_attention", False))
        for path, module in model.named_modules():
            if encoder and getattr(module, "is_causal", None) is False:
                raise CaptureError(
                    f"{type(model).__name__}: expected a language model whose tokens attend to earlier ones alone, "
                    f"found an encoder, whose tokens attend to all others ({path})",
                    hint='where it was trained as a decoder, its config.json says `"is_decoder": true`, and no '
                    "`use_bidirectional_attention`",
                )


def _first_position(model: nn.Module) -> int:
    """Returns the position of a text's first token: some models count from behind the padding index.

    They count no padding token; a text of ours has none.
    """
    counting = (module for module in model.modules() if hasattr(module, "create_position_ids_from_input_ids"))
    embeddings: Any = next(counting, None)
    return 0 if embeddings is None else int(embeddings.padding_idx) + 1
