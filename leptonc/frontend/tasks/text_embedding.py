"""Text embedding: one vector a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from leptonc.frontend.patches import Recorder
from leptonc.frontend.sentence import SentenceSteps, check_widths
from leptonc.frontend.tasks.base import Task
from leptonc.frontend.tasks.text_encoder import TextEncoder
from leptonc.sources.base import SentenceModule, SentenceModules, Source, text_limit
from runtime_edge.part_record import Part, Port
from runtime_edge.tasks import names


class TextEmbedding(TextEncoder):
    """Gives embeddings [batch, width], which sentence-transformers' modules compute from the tokens' vectors.

    Pooling is Reimers & Gurevych 2019 (arXiv:1908.10084); a model without sentence-transformers files gets the mean,
    as that library gives it.
    """

    name = "text-embedding"
    auto_class = "AutoModel"
    row = names.EMBEDDINGS

    @classmethod
    def claim(cls, architecture: str, config: Mapping[str, Any], modules: SentenceModules | None) -> Task | None:
        if modules is not None:
            return None if modules.pairs else cls(modules)
        body = architecture.endswith(("Model", "ForMaskedLM", "ForPreTraining"))
        return cls() if body and not config.get("is_encoder_decoder") else None

    @property
    def chain(self) -> tuple[SentenceModule, ...]:
        """The steps after the encoder."""
        return (self.modules or SentenceModules.pooled()).chain

    def more_inputs(self) -> tuple[Port, ...]:
        apart = any(step.kind == "Pooling" and not step.options["include_prompt"] for step in self.chain)
        return (names.POOLING_MASK,) if apart else ()

    def warnings(self, config: Mapping[str, Any]) -> list[str]:
        name = next(iter(config.get("architectures") or [""]))
        if self.modules is not None or name.endswith("Model"):
            return []
        return [
            f"config.json names {name}, whose head an embedding does not use: the artifact gives the mean of the "
            "tokens' vectors, as sentence-transformers does for a model without its files"
        ]

    def attach(self, model: nn.Module) -> None:
        check_widths(self.chain, int(model.config.hidden_size))  # type: ignore[union-attr, arg-type]
        model.add_module("sentence", SentenceSteps(self.chain))

    def run(self, part: str, model: nn.Module, recorder: Recorder | None, args: Mapping[str, Tensor]) -> Any:
        model_args = {name: tensor for name, tensor in args.items() if name != names.POOLING_MASK.name}
        return model.sentence(model(**model_args)[0], args)  # type: ignore[operator]

    def text_limit(self, source: Source) -> int | None:
        return text_limit(source)

    def settings(self, parts: Mapping[str, Part], config: Any, source: Source, max_seq_len: int) -> dict[str, Any]:
        modules, width = self.modules or SentenceModules(), int(parts[names.ENCODER].outputs[0].dims[-1])
        cut = None if modules.truncate_dim is None else min(modules.truncate_dim, width)
        return {
            **super().settings(parts, config, source, max_seq_len), "prompts": dict(modules.prompts),
            "default_prompt": modules.default_prompt, "truncate_dim": cut, "similarity": modules.similarity,
        }  # fmt: skip
