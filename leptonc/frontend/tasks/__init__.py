"""Tasks: a model's purpose decides its parts. Each task has a file and a line in `TASKS`.

A task wraps the transformers model: it says which parts the model has and what each takes and gives
(`leptonc.frontend.interface`), runs a part as transformers would, and says what the artifact tells the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from leptonc.errors import CaptureError
from leptonc.frontend.tasks.base import Task as Task
from leptonc.frontend.tasks.base import Traced as Traced
from leptonc.frontend.tasks.text_classification import TextClassification as TextClassification
from leptonc.frontend.tasks.text_embedding import TextEmbedding as TextEmbedding
from leptonc.frontend.tasks.text_generation import TextGeneration as TextGeneration
from leptonc.sources.base import SentenceModules

# A checkpoint is offered to them in this order, and belongs to the first that claims it.
TASKS: list[type[Task]] = [TextClassification, TextGeneration, TextEmbedding]


def task_of(config: Mapping[str, Any], modules: SentenceModules | None) -> Task:
    """Chooses the task from what the checkpoint says that it is.

    Raises:
        CaptureError: No task claims the architecture.
    """
    architecture = next(iter(config.get("architectures") or [""]), "") or _only_causal(config)
    claims = (kind.claim(architecture, config, modules) for kind in TASKS)
    if task := next(filter(None, claims), None):
        return task
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
    class_name = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family, "")
    return class_name if isinstance(class_name, str) else ""


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
        return task.part_of_config(parsed)


def build_model(task: Task, config: Mapping[str, Any], attention: str) -> Any:
    """Returns the transformers model of `config` on the meta device, in inference mode, its rotary tables real.

    Raises:
        CaptureError: See `config_of`.
    """
    import transformers

    parsed = config_of(task, config)
    with refusals(task, config):
        parsed._attn_implementation = attention
        with torch.device("meta"):
            model = getattr(transformers, task.auto_class).from_config(parsed, dtype=torch.float32)
            task.attach(model)
    task.check_model(model)
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


@contextmanager
def refusals(task: Task, config: Mapping[str, Any]) -> Iterator[None]:
    """Turns the exceptions that transformers raises for a config into `CaptureError`."""
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
