"""Tasks: what a model is for decides the graph's inputs and outputs. One class a task; a new task is a new class.

A task wraps the transformers model in a module whose `forward` takes the graph's tensor inputs in order and returns
its tensor outputs in order, and says which of the shapes are symbolic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from leptonc.errors import CaptureError
from leptonc.frontend.patches import PassThroughCache, Recorder
from leptonc.frontend.sentence import SentenceSteps, check_widths
from leptonc.sources.base import SentenceModule, SentenceModules


@dataclass(frozen=True)
class Task:
    """Base: how a kind of model is built and called. `recorder` exists only while it is traced."""

    name: ClassVar[str]
    auto_class: ClassVar[str]
    cached: ClassVar[bool] = False
    output: ClassVar[str]
    modules: SentenceModules | None = None

    def inputs(self, model: nn.Module) -> tuple[str, ...]:
        raise NotImplementedError  # abstract

    def attach(self, model: nn.Module) -> None:
        """Gives `model` the modules that run after it; most tasks have none."""

    def warnings(self, config: Mapping[str, Any]) -> list[str]:
        """Returns what a user must know of how a checkpoint of `config` is used."""
        return []

    def check_padding(self, model: nn.Module, side: str | None) -> None:
        """Refuses a side on which a tokenizer pads that changes the output, where the library of the task pads."""

    def run(self, model: nn.Module, recorder: Recorder | None, args: Mapping[str, Tensor]) -> Tensor:
        """Calls `model`; returns float32 [batch, …]. Without a recorder it is transformers' own plain forward."""
        raise NotImplementedError  # abstract


@dataclass(frozen=True)
class TextGeneration(Task):
    """A causal language model: logits [batch, length, vocab] over a key/value cache."""

    name = "text-generation"
    auto_class = "AutoModelForCausalLM"
    cached = True
    output = "logits"

    def inputs(self, model: nn.Module) -> tuple[str, ...]:
        return ("input_ids", "position_ids")

    def run(self, model: nn.Module, recorder: Recorder | None, args: Mapping[str, Tensor]) -> Tensor:
        cache: Any = PassThroughCache(recorder) if recorder else None
        logits: Tensor = model(**args, past_key_values=cache, use_cache=cache is not None).logits
        return logits


class _TextEncoder(Task):
    def inputs(self, model: nn.Module) -> tuple[str, ...]:
        segments = getattr(model.config, "type_vocab_size", 0) or 0
        return ("input_ids", "attention_mask", *(("token_type_ids",) if segments > 1 else ()))

    def check_padding(self, model: nn.Module, side: str | None) -> None:
        """sentence-transformers pads a batch; transformers' pipeline takes one text after the other."""
        pads = self.output == "embeddings" or getattr(model.config, "num_labels", 0) == 1
        # RoBERTa's family makes positions of the tokens, so that padding has none.
        relative = any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())
        if side == "left" and pads and not relative:
            raise CaptureError(
                f"{type(model).__name__}: expected a tokenizer that pads on the right, found padding_side left, with "
                "which sentence-transformers gives a text other positions, and another result, beside longer texts",
                hint="where that is a mistake, take padding_side out of tokenizer_config.json: an artifact's results "
                "are those of each text alone",
            )


@dataclass(frozen=True)
class TextEmbedding(_TextEncoder):
    """One vector a text: what sentence-transformers' modules make of the tokens' vectors.

    Pooling is Reimers & Gurevych 2019 (arXiv:1908.10084); a model without sentence-transformers files gets the mean,
    as that library gives it.
    """

    name = "text-embedding"
    auto_class = "AutoModel"
    output = "embeddings"

    @property
    def chain(self) -> tuple[SentenceModule, ...]:
        """The steps after the encoder."""
        return (self.modules or SentenceModules.pooled()).chain

    def inputs(self, model: nn.Module) -> tuple[str, ...]:
        apart = any(step.kind == "Pooling" and not step.options["include_prompt"] for step in self.chain)
        return (*super().inputs(model), *(("pooling_mask",) if apart else ()))

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

    def run(self, model: nn.Module, recorder: Recorder | None, args: Mapping[str, Tensor]) -> Tensor:
        given = {name: tensor for name, tensor in args.items() if name != "pooling_mask"}
        result: Tensor = model.sentence(model(**given)[0], args)  # type: ignore[operator]
        return result


@dataclass(frozen=True)
class TextClassification(_TextEncoder):
    """Logits [batch, labels] over a text."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    output = "logits"

    def run(self, model: nn.Module, recorder: Recorder | None, args: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = model(**args).logits
        return logits


class Traced(nn.Module):
    """The module that is exported: a task's inputs in order in, its output out."""

    def __init__(self, task: Task, model: nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.task, self.recorder, self.names = task, recorder, task.inputs(model)
        self.model = model

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.task.run(self.model, self.recorder, dict(zip(self.names, tensors, strict=True)))


def task_of(config: Mapping[str, Any], modules: SentenceModules | None) -> Task:
    """Chooses the task from what the checkpoint says that it is.

    Raises:
        CaptureError: the architecture is of a kind that has no task here.
    """
    architecture = next(iter(config.get("architectures") or [""]), "") or _only_causal(config)
    if modules is not None:
        return TextClassification(modules) if modules.pairs else TextEmbedding(modules)
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return TextGeneration()
    if architecture.endswith("ForSequenceClassification"):
        return TextClassification()
    if architecture.endswith(("Model", "ForMaskedLM", "ForPreTraining")) and not config.get("is_encoder_decoder"):
        return TextEmbedding()
    raise CaptureError(
        f"expected a causal language model, a text encoder or a sequence classifier, found {architecture or 'no name'} "
        f"(model_type {config.get('model_type')!r})",
        hint="`architectures` in the model's config.json says what it is for",
    )


def _only_causal(config: Mapping[str, Any]) -> str:
    """Returns the causal class of a family that has no encoders, for a config that names no architecture; or ""."""
    from transformers.models.auto import modeling_auto

    family = str(config.get("model_type"))
    if family in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.get("is_encoder_decoder"):
        return ""
    found = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family, "")
    return found if isinstance(found, str) else ""


def config_of(task: Task, config: Mapping[str, Any]) -> Any:
    """Returns transformers' parsed config of the task's model.

    Raises:
        CaptureError: transformers has no such architecture, or refuses the config.
    """
    import transformers

    model_type = config.get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        import difflib

        near = difflib.get_close_matches(str(model_type), list(transformers.CONFIG_MAPPING), n=1)
        raise CaptureError(
            f"expected a model_type that transformers {transformers.__version__} has, found {model_type!r}",
            hint=f"did you mean {near[0]!r}?" if near else "a newer transformers may have it",
        )
    fields = {k: v for k, v in config.items() if k not in ("model_type", "quantization_config", "torch_dtype", "dtype")}
    with refusals(task, config):
        parsed = transformers.AutoConfig.for_model(str(model_type), **fields)
        # A multimodal checkpoint's config holds the language model's config.
        return parsed.get_text_config(decoder=True) if task.auto_class == "AutoModelForCausalLM" else parsed


def build_model(task: Task, config: Mapping[str, Any], attention: str) -> Any:
    """Returns the transformers model of `config` on the meta device, in inference mode, its rotary tables real.

    Raises:
        CaptureError: as `config_of` says.
    """
    import transformers

    parsed = config_of(task, config)
    with refusals(task, config):
        parsed._attn_implementation = attention
        with torch.device("meta"):
            model = getattr(transformers, task.auto_class).from_config(parsed, dtype=torch.float32)
            task.attach(model)
    _check_direction(task, model)
    _check_windows(model)
    return model.eval()


def _check_windows(model: Any) -> None:
    """Refuses layers of a sliding window without a window's length, on which transformers fails as it generates."""
    kinds, window = getattr(model.config, "layer_types", None) or (), getattr(model.config, "sliding_window", None)
    if "sliding_attention" in kinds and not window:
        raise CaptureError(
            f"{type(model).__name__}: expected a sliding_window for the layers that layer_types calls "
            f"sliding_attention, found {window!r}",
            hint="config.json: give `sliding_window` (where there is one, `use_sliding_window` too), or call these "
            "layers full_attention",
        )


def _check_direction(task: Task, model: Any) -> None:
    """Refuses an encoder whose tokens attend to earlier ones alone, as a captured one's do not, and the reverse."""
    encoder = getattr(model.config, "is_decoder", None) is False
    encoder |= bool(getattr(model.config, "use_bidirectional_attention", False))
    for path, module in model.named_modules():
        if task.cached and encoder and getattr(module, "is_causal", None) is False:
            raise CaptureError(
                f"{type(model).__name__}: expected a language model whose tokens attend to earlier ones alone, found "
                f"an encoder, whose tokens attend to all others ({path})",
                hint='where it was trained as a decoder, its config.json says `"is_decoder": true`, and no '
                "`use_bidirectional_attention`",
            )
        if not task.cached and "Attention" in type(module).__name__ and getattr(module, "is_causal", False):
            raise CaptureError(
                f"{type(model).__name__}: expected an encoder for {task.name}, whose tokens attend to all others, "
                f"found a decoder, whose tokens attend to earlier ones alone ({path})",
                hint="decoders that classify or embed are not supported yet: give a model like BERT or RoBERTa",
            )


@contextmanager
def refusals(task: Task, config: Mapping[str, Any]) -> Iterator[None]:
    """What transformers says of a config that it does not take becomes ours."""
    from huggingface_hub.errors import StrictDataclassError  # transformers' checks of configs

    try:
        yield
    except (
        ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, ArithmeticError, AssertionError,
        StrictDataclassError,
    ) as error:  # fmt: skip
        line = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, KeyError) and len(line.split()) == 1:  # a name that one of its tables does not have
            line = f"it does not know {line}"
        raise CaptureError(
            f"transformers cannot build {config.get('model_type')!r} as {task.auto_class}: {line}",
            hint="correct that in config.json, so that transformers' own from_pretrained loads the model",
        ) from error
