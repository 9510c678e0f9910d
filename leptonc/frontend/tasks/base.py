"""The interface of tasks: a model's parts, how a part is run, and what an artifact says of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from leptonc.frontend.interface import Interface
from leptonc.frontend.patches import Recorder
from leptonc.sources.base import SentenceModules, Source
from runtime_edge.part_record import Part


@dataclass(frozen=True)
class Task:
    """The purpose of a kind of model. Each task is a class in a file of its own.

    Attributes:
        name: The task's name in manifests.
        auto_class: The class of transformers that loads such a model.
        modules: The modules that sentence-transformers' files describe. Default: none.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    modules: SentenceModules | None = None

    @classmethod
    def claim(cls, architecture: str, config: Mapping[str, Any], modules: SentenceModules | None) -> Task | None:
        """Returns the task of a checkpoint, or None where it is another task's."""
        raise NotImplementedError  # abstract

    def interface(self, config: Any) -> Interface:
        """Returns the parts of a model of a parsed config, and how its outputs are compared."""
        raise NotImplementedError  # abstract

    def run(self, part: str, model: nn.Module, recorder: Recorder | None, args: Mapping[str, Tensor]) -> Any:
        """Runs a part.

        Args:
            part: The part's name.
            model: The model.
            recorder: Records what a trace captures. None: the model runs as transformers has it.
            args: The part's arguments, by name.

        Returns:
            The part's output, or a tuple of its outputs in order; float32 tensors.
        """
        raise NotImplementedError  # abstract

    def settings(self, parts: Mapping[str, Part], config: Any, source: Source, max_seq_len: int) -> dict[str, Any]:
        """Returns the runtime's settings for the model, beside its parts: plain values, for the manifest.

        Args:
            parts: The parts, captured.
            config: The parsed config of the model.
            source: Where the model comes from.
            max_seq_len: Tokens that the artifact takes.

        Raises:
            InputError: An option has a value that it cannot have.
        """
        return {"max_seq_len": max_seq_len}

    def feeds(self, encode: Any, text: str, max_seq_len: int) -> list[dict[str, Any]]:
        """Returns the inputs of each run of a check that compares the parts by their values.

        Args:
            encode: The tokenizer's `encode`.
            text: What quality is measured on.
            max_seq_len: Tokens that the artifact takes.

        Returns:
            Arrays by `part/input`, of every input that no other part feeds.
        """
        raise NotImplementedError  # called for tasks that are compared by values

    def attach(self, model: nn.Module) -> None:
        """Adds the modules that run after `model` to it. Default: none."""

    def part_of_config(self, config: Any) -> Any:
        """Returns the parsed config of the task's model, which may be a part of `config`. Default: `config`."""
        return config

    def original(self, model: Any) -> Any:
        """Returns the task's model, which may be a part of the one that transformers loads. Default: all of it."""
        return model

    def text_limit(self, source: Source) -> int | None:
        """Returns the number of tokens at which the model's own files cut a text. Default: None, they do not."""
        return None

    def warnings(self, config: Mapping[str, Any]) -> list[str]:
        """Returns warnings for the user about how a checkpoint of `config` is used. Default: none."""
        return []

    def check_model(self, model: nn.Module) -> None:
        """Refuses a model that is of another kind (raises `CaptureError`). Default: no model."""

    def check_padding(self, model: nn.Module, side: str | None) -> None:
        """Refuses a tokenizer's padding side that changes the output (raises `CaptureError`). Default: no side."""


class Traced(nn.Module):
    """The module that is exported. It takes a part's arguments in order, and returns its outputs."""

    def __init__(self, task: Task, part: str, names: tuple[str, ...], model: nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.task, self.part, self.recorder, self.names = task, part, recorder, names
        self.model = model

    def forward(self, *tensors: Tensor) -> Any:
        return self.task.run(self.part, self.model, self.recorder, dict(zip(self.names, tensors, strict=True)))
