"""First-order importance: how much the loss would change without a channel, from its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from leptonc.errors import InputError
from leptonc.heal.graph import GATE, Graph, writable
from leptonc.ir.ports import inputs_of

Window = NDArray[np.int64]


def taylor(
    model: ir.Model, windows: Sequence[Window], values: Sequence[str], advance: Callable[[int], Any] = lambda _: None
) -> dict[str, NDArray[np.float32]]:
    """Returns the importance of each channel of some values, summed over windows.

    Molchanov et al., Importance Estimation for Neural Network Pruning (2019): each channel gets a gate of 1; the square
    of the loss' gradient for it is how much the loss changes, to first order, where the channel is cut. The loss of a
    model with logits for each token is the mean negative log-probability of the next tokens; of others, half the mean
    square of the output.

    Args:
        model: A graph of the dialect, in float32 or quantized.
        windows: Token ids int64 [length] of each text.
        values: Names of values [..., channels] that the graph computes, such as what a linear layer reads.
        advance: Called with 1 after each text.

    Returns:
        By name, float32 [channels].

    Raises:
        InputError: A value is not computed on the way to the output, or the graph has an operator without gradients.
    """
    graph = Graph(model)
    widths = {str(v.name): v.shape for node in model.graph for v in node.outputs}
    lost = [name for name in values if name not in graph.computed]
    if lost:
        raise InputError(f"expected values that the graph computes for its output, found none called {lost[0]}")
    importance: dict[str, NDArray[np.float32]] = {}
    for window in windows:
        gates = {f"{name}{GATE}": torch.ones(_channels(widths[name]), requires_grad=True) for name in values}
        inputs = {name: writable(array) for name, array in inputs_of(model, window).items()}
        (output,) = graph(inputs, gates)
        logits = graph.outputs[0] == "logits" and output.dim() == 3
        labels = torch.from_numpy(window[1:])
        loss = F.cross_entropy(output[0, :-1], labels) if logits else 0.5 * output.square().mean()
        slopes = torch.autograd.grad(loss, list(gates.values()))
        for name, slope in zip(values, slopes, strict=True):
            importance[name] = importance.get(name, np.float32(0)) + slope.square().numpy()
        advance(1)
    return importance


def _channels(shape: ir.Shape | None) -> int:
    size = shape[-1] if shape is not None and len(shape) else None
    if not isinstance(size, int):
        raise InputError(f"expected values with a known number of channels, found the shape {shape}")
    return size
