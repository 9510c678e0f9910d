"""What comes of a frontend: a graph in the IR dialect, and what is known of the model that it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from leptonc.frontend.tasks import Task
from leptonc.ir import dialect


@dataclass
class Captured:
    """A captured model.

    Attributes:
        model: The graph in the IR dialect; weights are lazy.
        task: What it is for.
        config: The parsed transformers config of the model that was traced.
        parameters: Number of weights, tied ones counted once.
        max_seq_len: Positions that its tables hold.
        windows: Attention window of each layer, 0 for none.
        warnings: What the user must know of how the checkpoint was read.
        unused: Tensors of the checkpoint that belong to heads or towers which this task does not run.
    """

    model: ir.Model
    task: Task
    config: Any
    parameters: int
    max_seq_len: int
    windows: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def resized(self, change: int) -> None:
        """Notes that passes gave the model so many more weights, or fewer; reads anew what its layers are."""
        self.parameters += change
        self.windows = windows_of(self.model)


def windows_of(model: ir.Model) -> tuple[int, ...]:
    """Returns the attention window of each layer with a cache, 0 for none."""
    return tuple(int(dialect.attribute(n, "window", 0)) for n in model.graph if n.op_type == "CachedAttention")
