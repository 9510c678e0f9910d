"""What every task answers: which parts a model has, how each is run, and what an artifact says of it."""

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
    """What a kind of model is for. One class a task, in a file of its own.

    Attributes:
        name: As it stands in manifests.
        auto_class: The class of transformers that loads such a model.
        modules: What sentence-transformers' files say. Default: there are none.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    modules: SentenceModules | None = None

    @classmethod
    def claim(cls, architecture: str, config: Mapping[str, Any], modules: SentenceModules | None) -> Task | None:
        """Returns the task of a checkpoint; nothing where it is another task's."""
        raise NotImplementedError  # abstract

    def interface(self, config: Any) -> Interface:
        """Returns the parts of a model of a parsed config, and how its outputs are compared."""
        raise NotImplementedError  # abstract

    def run(self, part: str, model: nn.Module, recorder: Recorder | None, args: Mapping[str, Tensor]) -> Any:
        """Runs a part.

        Args:
            part: Its name.
            model: The model.
            recorder: What a trace records. Default: none, and the model runs as transformers has it.
            args: The part's arguments, by name.

        Returns:
            The part's output, or a tuple of its outputs in order; float32 tensors.
        """
        raise NotImplementedError  # abstract

    def settings(self, parts: Mapping[str, Part], config: Any, source: Source, max_seq_len: int) -> dict[str, Any]:
        """Returns what the runtime must know of the model beside its parts: plain values, for the manifest.

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
        """Returns what the check feeds the parts where they are compared by their values: inputs of one run each.

        Args:
            encode: The tokenizer's `encode`.
            text: What quality is measured on.
            max_seq_len: Tokens that the artifact takes.

        Returns:
            Arrays by `part/input`, of every input that no other part feeds.
        """
        raise NotImplementedError  # asked of tasks that are compared by values

    def attach(self, model: nn.Module) -> None:
        """Gives `model` the modules that run after it; most tasks have none."""

    def part_of_config(self, config: Any) -> Any:
        """Returns the parsed config that the model is made of; a multimodal one holds others."""
        return config

    def original(self, model: Any) -> Any:
        """Returns the model that is run, of the one that transformers loads from a checkpoint."""
        return model

    def text_limit(self, source: Source) -> int | None:
        """Returns at how many tokens the model's own files cut a text; nothing where they do not."""
        return None

    def warnings(self, config: Mapping[str, Any]) -> list[str]:
        """Returns what a user must know of how a checkpoint of `config` is used."""
        return []

    def check_model(self, model: nn.Module) -> None:
        """Refuses a model that is of another kind (raises `CaptureError`)."""

    def check_padding(self, model: nn.Module, side: str | None) -> None:
        """Refuses a side on which a tokenizer pads that changes the output, where the library of the task pads."""


class Traced(nn.Module):
    """The module that is exported: a part's arguments in order in, its outputs out."""

    def __init__(self, task: Task, part: str, names: tuple[str, ...], model: nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.task, self.part, self.recorder, self.names = task, part, recorder, names
        self.model = model

    def forward(self, *tensors: Tensor) -> Any:
        return self.task.run(self.part, self.model, self.recorder, dict(zip(self.names, tensors, strict=True)))
