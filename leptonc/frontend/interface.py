"""What a task says of its model, as data: the parts that are captured, and how the whole is tried and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime_edge.part_record import Port

# How outputs are compared with the original's: what each stands for is in `leptonc.evaluate.measure`.
NEXT_TOKENS = "next tokens"  # logits of one text, position by position
ROWS = "rows"  # a vector of each of some texts: embeddings, or logits of labels
VALUES = "values"  # whatever the last part gives, for inputs that the task makes of a text


@dataclass(frozen=True)
class PartForm:
    """A part as it is traced.

    Attributes:
        inputs: Of the graph, in order, without those of states. A size may be a name.
        outputs: Of the graph, in order, likewise: what `Task.run` returns.
        arguments: What `Task.run` is given. One that is no input is made of one: positions of the past's length.
            Default: the inputs.
        keeps: Kind of state that attention keeps from run to run. Default: none, each run stands for itself.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arguments: tuple[Port, ...] = ()
    keeps: str | None = None

    @property
    def traced(self) -> tuple[Port, ...]:
        """What `Task.run` is given, in order."""
        return self.arguments or self.inputs


@dataclass(frozen=True)
class Interface:
    """A model as a program of parts.

    Attributes:
        parts: In the order that they run.
        comparison: How an artifact's outputs are compared with the original's: one of the above.
    """

    parts: Mapping[str, PartForm]
    comparison: str

    @property
    def writes_text(self) -> bool:
        """Whether the model continues a text by itself."""
        return self.comparison == NEXT_TOKENS
