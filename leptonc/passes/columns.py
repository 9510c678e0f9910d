"""Decides the inputs of a layer one after the other; later inputs make up for errors of earlier ones.

A layer's weight W [out, in] becomes another one, Q: rounded, or with zeros. With the second moments H = X^T X [in, in]
of the layer's inputs X, the error of the outputs is tr((W - Q) H (W - Q)^T). Once an input's weights are decided, the
weights of the inputs that are left move to the values with the least error (Hassibi and Stork, Optimal Brain Surgeon,
1993). The rows of one triangular factor of H^-1 serve all outputs (Frantar et al., GPTQ, 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

DAMPING = 0.01  # part of the mean second moment that is added to all, as in the paper
SMALLEST = 96  # rows of a triangular matrix whose inverse is not made of halves
PANEL = 16  # inputs that are updated one by one; errors reach inputs further off many at once


@dataclass(frozen=True)
class Factor:
    """A factor of second moments H [in, in], which is the same for all layers that read one value.

    Attributes:
        order: The inputs in the order in which they are decided, int64 [in].
        upper: U float32 [in, in] of U^T U = (H + damping)^-1, inputs in that order.
    """

    order: NDArray[np.int64]
    upper: NDArray[np.float32]


def factorize(
    hessian: NDArray[Any], damping: float = DAMPING, *, largest_first: bool = True, rough: bool = False
) -> Factor | None:  # fmt: skip
    """Returns the factor of second moments [in, in], or None where all inputs are always zero.

    Args:
        hessian: The moments.
        damping: Part of their mean that is added to all. Default: `DAMPING`.
        largest_first: Whether inputs with the largest moments are decided first. Otherwise inputs have their own order.
            Default: largest first.
        rough: Whether float32 is enough, which takes a quarter of the time of float64. Where float32 fails, float64 is
            used after all. Default: float64.
    """
    import torch

    diagonal = np.diag(hessian).astype(np.float64)
    mean = float(diagonal.mean())
    if mean <= 0:
        return None
    order = np.argsort(-diagonal, kind="stable") if largest_first else np.arange(len(diagonal))
    # With J, which turns the order round, and J H J = L L^T, U is J L^-1 J: one triangular inverse in place of a whole.
    back = order[::-1]
    turned = torch.from_numpy(hessian[np.ix_(back, back)])
    for dtype in (torch.float32, torch.float64)[not rough :]:
        damped = turned.to(dtype, copy=True)
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped, check_errors=dtype == torch.float64)
        del damped
        if not failed:
            break
    del turned  # memory is at its most here
    inverted = _inverse(lower).numpy()
    del lower
    return Factor(order, np.ascontiguousarray(inverted[::-1, ::-1], np.float32))


def _inverse(lower: torch.Tensor) -> torch.Tensor:
    """Returns the inverse of a lower triangular matrix [n, n], made of its halves' inverses in products.

    A solver that is given the identity does three times the work, and does not know of the zeros.
    """
    import torch

    size = len(lower)
    if size <= SMALLEST:
        smallest: torch.Tensor = torch.linalg.solve_triangular(lower, torch.eye(size, dtype=lower.dtype), upper=False)
        return smallest
    half = size // 2
    first, second = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    inverted = torch.zeros_like(lower)
    inverted[:half, :half], inverted[half:, half:] = first, second
    torch.mm(second, lower[half:, :half] @ first, out=inverted[half:, :half]).neg_()
    return inverted


def decide(
    rest: NDArray[np.float32], factor: Factor, choose: Callable[[int], NDArray[np.float32]], together: int = 1
) -> None:
    """Decides the weights of one input after the other, in place.

    Args:
        rest: The weights, float32 [in, out], inputs in the factor's order.
        factor: Factor of the second moments of the inputs.
        choose: Takes the place of an input, and returns the weights [out] that it gets. The weights in `rest` at that
            place and after it have made up for all errors so far.
        together: Number of inputs that `choose` reads when it gets the first of them, a divisor of `PANEL`. Default: 1.
    """
    _halves(rest, np.empty_like(rest), factor.upper, choose, together, 0, len(rest))


def _halves(
    rest: NDArray[np.float32], errors: NDArray[np.float32], upper: NDArray[np.float32],
    choose: Callable[[int], NDArray[np.float32]], together: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Decides the first half, adds its errors to the second in one product, and decides the second.

    It is no closure, because a closure that calls itself is a cycle in memory.
    """
    if stop - start <= PANEL:
        for at in range(start, stop):
            chosen = choose(at)
            error = np.divide(rest[at] - chosen, upper[at, at], out=errors[at])
            rest[at] = chosen
            if at + 1 < stop:
                rest[at + 1 : stop] -= upper[at, at + 1 : stop, None] * error
        return
    middle = (start + stop) // 2
    middle -= (middle - start) % together
    _halves(rest, errors, upper, choose, together, start, middle)
    rest[middle:stop] -= upper[start:middle, middle:stop].T @ errors[start:middle]
    _halves(rest, errors, upper, choose, together, middle, stop)


def shift_of(off: NDArray[np.float32], factor: Factor, part: float) -> NDArray[np.float32]:
    """Returns S [in, in]: the weight W + W S makes up for the error in a layer's inputs.

    The exact inputs are E, and the layers before made X. The target is E W^T, and of all weights
    W + W (E - X)^T X (X^T X)^-1 comes nearest to it on the inputs X (asymmetric calibration: Li et al., GPTAQ, 2025,
    here in closed form, before anything is rounded).

    Args:
        off: (E - X)^T X, [in, in].
        factor: Factor of X^T X.
        part: Part of the way that weights move, from 0 to 1. With few tokens for each feature the full way would fit
            this text alone.
    """
    shift = np.empty_like(off)
    shift[:, factor.order] = (off[:, factor.order] @ factor.upper.T) @ factor.upper
    shift *= np.float32(part)
    return shift


def energy(weight: NDArray[Any], hessian: NDArray[Any]) -> float:
    """Returns the sum of squares of a weight's outputs: tr(W H W^T)."""
    return float(np.vdot(weight @ hessian, weight))


def energies(weight: NDArray[Any], hessian: NDArray[Any]) -> NDArray[Any]:
    """Returns the sum of squares of each output of a weight [out, in]: the diagonal of W H W^T, [out]."""
    costs: NDArray[Any] = np.einsum("oi,oi->o", weight @ hessian, weight)
    return costs
