"""The frontend's result: a graph in the IR dialect for each part of a model, and facts about the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from leptonc.errors import CaptureError
from leptonc.frontend.interface import Interface
from leptonc.frontend.tasks.base import Task
from leptonc.ir.ports import part_of
from runtime_edge.part_record import Part


@dataclass
class Captured:
    """A captured model.

    Attributes:
        graphs: The graph of each part in the IR dialect, in the order that they run; weights are lazy.
        task: The model's task.
        interface: The parts as they were traced.
        config: The parsed transformers config of the model that was traced.
        parameters: Number of weights, tied ones counted once.
        max_seq_len: Number of positions in its tables.
        warnings: Messages for the user about how the checkpoint was read.
        unused: Tensors of the checkpoint that belong to heads or towers which this task does not run.
        parts: Inputs, outputs and state of each part. They are read before a graph is lowered, which loses them.
    """

    graphs: dict[str, ir.Model]
    task: Task
    interface: Interface
    config: Any
    parameters: int
    max_seq_len: int
    warnings: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    parts: dict[str, Part] = field(init=False)

    def __post_init__(self) -> None:
        self._read()

    @property
    def model(self) -> ir.Model:
        """The graph of a model of one part.

        Raises:
            CaptureError: The model has several parts, and the caller handles one graph only.
        """
        if len(self.graphs) != 1:
            raise CaptureError(
                f"expected a model of one part, found one for {self.task.name} of {len(self.graphs)}: "
                f"{', '.join(self.graphs)}",
                hint="of the steps that change a graph, quantization of weights alone knows several parts",
            )
        return next(iter(self.graphs.values()))

    def resized(self, change: int) -> None:
        """Adds `change`, which may be negative, to the number of weights, and reads the parts anew."""
        self.parameters += change
        self._read()

    def _read(self) -> None:
        self.parts = {name: part_of(graph) for name, graph in self.graphs.items()}
