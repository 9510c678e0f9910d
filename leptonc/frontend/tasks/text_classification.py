"""Text classification: a score of each label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from leptonc.errors import InputError
from leptonc.frontend.patches import Recorder
from leptonc.frontend.tasks.base import Task
from leptonc.frontend.tasks.text_encoder import TextEncoder
from leptonc.sources.base import SentenceModules, Source, text_limit
from leptonc.sources.sentence import score_function
from runtime_edge.part_record import Part
from runtime_edge.tasks import names


class TextClassification(TextEncoder):
    """Gives logits [batch, labels] of a text."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    row = names.LABEL_LOGITS

    @classmethod
    def claim(cls, architecture: str, config: Mapping[str, Any], modules: SentenceModules | None) -> Task | None:
        if modules is not None:
            return cls(modules) if modules.pairs else None
        return cls() if architecture.endswith("ForSequenceClassification") else None

    def run(self, part: str, model: nn.Module, recorder: Recorder | None, args: Mapping[str, Tensor]) -> Any:
        return model(**args).logits

    def settings(self, parts: Mapping[str, Part], config: Any, source: Source, max_seq_len: int) -> dict[str, Any]:
        modules, count = self.modules or SentenceModules(), int(parts[names.ENCODER].outputs[0].dims[-1])
        limit = text_limit(source) if count == 1 else None
        return {
            **super().settings(parts, config, source, max_seq_len), "labels": _labels(config, count),
            "multi_label": getattr(config, "problem_type", None) == "multi_label_classification",
            "function": _function(config),
            "rerank_function": _rerank_function(config, modules) if count == 1 else "",
            "rerank_max_seq_len": limit if limit is not None and limit < max_seq_len else None,
            "prompts": dict(modules.prompts), "default_prompt": modules.default_prompt,
            "similarity": modules.similarity,
        }  # fmt: skip


def _labels(config: Any, count: int) -> tuple[str, ...]:
    """Returns the names of a head's outputs; a config without any gets transformers' own, LABEL_0 and so on."""
    names = getattr(config, "id2label", None) or {i: f"LABEL_{i}" for i in range(count)}
    missing = [i for i in range(count) if i not in names]
    if missing:
        raise InputError(
            f"config.json: expected id2label to name the outputs 0 to {count - 1}, found none for {missing[0]}",
            hint="give each output of the head a name, or take id2label out",
        )
    return tuple(str(names[i]) for i in range(count))


def _function(config: Any) -> str:
    """Returns the function from logits to scores that transformers' pipeline for text classification chooses."""
    problem, count = getattr(config, "problem_type", None), int(config.num_labels)
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or count == 1 else "softmax"


def _rerank_function(config: Any, modules: SentenceModules) -> str:
    """Returns the function from a pair's logit to its score that sentence-transformers' `CrossEncoder` chooses."""
    if modules.score_function:
        return modules.score_function
    own = getattr(config, "sentence_transformers", None)
    named = own.get("activation_fn") if isinstance(own, dict) and "activation_fn" in own else None
    if not isinstance(own, dict) or "activation_fn" not in own:  # the name before version 4
        named = getattr(config, "sbert_ce_default_activation_function", None)
    return score_function(named) or "sigmoid"
