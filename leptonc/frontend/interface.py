"""A task's description of its model, as data: the parts that are captured, and how their outputs are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime_edge.part_record import Port

# How outputs are compared with the original's; `leptonc.evaluate.measure` has a kind of sample for each.
NEXT_TOKENS = "next tokens"  # logits of one text, position by position
ROWS = "rows"  # a vector for each text: embeddings, or logits of labels
VALUES = "values"  # the last part's output, for inputs that the task makes from a text


@dataclass(frozen=True)
class PartForm:
    """A part as it is traced.

    Attributes:
        inputs: Inputs of the graph, in order, without states. A size may be a name.
        outputs: Outputs of the graph, in order, without states: what `Task.run` returns.
        arguments: Arguments of `Task.run`. One that is no input of the graph is computed from one: positions from the
            length of the past. Default: the inputs.
        keeps: Kind of state that attention keeps from run to run. Default: none, runs are independent.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arguments: tuple[Port, ...] = ()
    keeps: str | None = None

    @property
    def traced(self) -> tuple[Port, ...]:
        """The arguments of `Task.run`, in order."""
        return self.arguments or self.inputs


@dataclass(frozen=True)
class Interface:
    """A model as a program of parts.

    Attributes:
        parts: The parts by their names, in the order that they run.
        comparison: How an artifact's outputs are compared with the original's: one of the above.
    """

    parts: Mapping[str, PartForm]
    comparison: str

    @property
    def writes_text(self) -> bool:
        """Whether the model continues a text by itself."""
        return self.comparison == NEXT_TOKENS
