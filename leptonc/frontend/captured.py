"""What comes of a frontend: a graph in the IR dialect for each part of a model, and what is known of the model."""

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
        task: What it is for.
        interface: Its parts as they were traced.
        config: The parsed transformers config of the model that was traced.
        parameters: Number of weights, tied ones counted once.
        max_seq_len: Positions that its tables hold.
        warnings: What the user must know of how the checkpoint was read.
        unused: Tensors of the checkpoint that belong to heads or towers which this task does not run.
        parts: What each part takes, gives and keeps. A graph that is lowered tells no more, so it is read before.
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
            CaptureError: It has several: whoever asks knows one graph only.
        """
        if len(self.graphs) != 1:
            raise CaptureError(
                f"expected a model of one part, found one for {self.task.name} of {len(self.graphs)}: "
                f"{', '.join(self.graphs)}",
                hint="of the steps that change a graph, quantization of weights alone knows several parts",
            )
        return next(iter(self.graphs.values()))

    def resized(self, change: int) -> None:
        """Notes that passes gave the model so many more weights, or fewer; reads anew what its parts are."""
        self.parameters += change
        self._read()

    def _read(self) -> None:
        self.parts = {name: part_of(graph) for name, graph in self.graphs.items()}
