"""The inputs of a layer decided one after the other, later ones making up for the errors of those before.

A layer's weight W [out, in] is to become another, Q: rounded, or with zeros. With the second moments H = X^T X [in, in]
of the layer's inputs X, that costs tr((W - Q) H (W - Q)^T) in its outputs. Once an input's weights are decided, those
of the inputs that are left take the values that cost least (Hassibi and Stork, Optimal Brain Surgeon, 1993), by the
rows of one triangular factor of H^-1 for all outputs (Frantar et al., GPTQ, 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DAMPING = 0.01  # of the mean second moment, added to all, as in the paper
PANEL = 16  # inputs that are updated one by one; further off, many errors are made up for at once


@dataclass(frozen=True)
class Factor:
    """What deciding inputs needs of second moments H [in, in]: the same for all layers that read one value.

    Attributes:
        order: The inputs as they are decided, int64 [in].
        upper: U float32 [in, in] of U^T U = (H + damping)^-1, inputs in that order.
    """

    order: NDArray[np.int64]
    upper: NDArray[np.float32]


def factorize(
    hessian: NDArray[Any], damping: float = DAMPING, *, largest_first: bool = True, rough: bool = False
) -> Factor | None:  # fmt: skip
    """Returns the factor of second moments [in, in]; None for inputs that are always zero, which say nothing.

    Args:
        hessian: The moments.
        damping: Part of their mean that is added to all.
        largest_first: Whether inputs are decided by their moments; else in their own order.
        rough: Whether float32 does, in a quarter of the time of float64; where it does not, float64 is taken after all.
    """
    import torch

    diagonal = np.diag(hessian).astype(np.float64)
    mean = float(diagonal.mean())
    if mean <= 0:
        return None
    order = np.argsort(-diagonal, kind="stable") if largest_first else np.arange(len(diagonal))
    # With J, which turns the order round, and J H J = L L^T, U is J L^-1 J: one triangular inverse in place of a whole.
    back = order[::-1]
    for dtype in (torch.float32, torch.float64)[not rough :]:
        turned = torch.from_numpy(hessian[np.ix_(back, back)]).to(dtype)
        turned.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(turned, check_errors=dtype == torch.float64)
        del turned
        if not failed:
            break
    inverted = torch.eye(len(order), dtype=dtype).mT  # by columns, as LAPACK has it: then it is solved in place
    torch.linalg.solve_triangular(lower, inverted, upper=False, out=inverted)
    return Factor(order, np.ascontiguousarray(inverted.numpy()[::-1, ::-1], np.float32))


def decide(
    rest: NDArray[np.float32], factor: Factor, choose: Callable[[int], NDArray[np.float32]], together: int = 1
) -> None:
    """Decides the weights of one input after the other, in place.

    Args:
        rest: The weights, float32 [in, out], so that an input's are one run of memory, inputs in the factor's order.
        factor: Of the second moments of the inputs.
        choose: Given the place of an input, returns the weights [out] that it gets; those at the place and after it
            have made up for all errors so far.
        together: Inputs that `choose` looks at when it is given the first of them: a divisor of `PANEL`.
    """
    _halves(rest, np.empty_like(rest), factor.upper, choose, together, 0, len(rest))


def _halves(
    rest: NDArray[np.float32], errors: NDArray[np.float32], upper: NDArray[np.float32],
    choose: Callable[[int], NDArray[np.float32]], together: int, start: int, stop: int,
) -> None:  # fmt: skip
    """What the first half got wrong goes to the second in one product. No closure: one that calls itself is a cycle."""
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
    """Returns S [in, in]: W + W S makes up for what a layer's inputs lack.

    With exact inputs E in the place of the inputs X that the layers before made, E W^T is wanted and X Q^T is what
    there is: W + W (E - X)^T X (X^T X)^-1 is nearest to it of all weights (asymmetric calibration: Li et al., GPTAQ,
    2025, here in closed form, before anything is rounded).

    Args:
        off: (E - X)^T X, [in, in].
        factor: Of X^T X.
        part: Of the way that weights go. A text is not all texts, and what fits it alone is lost on others: the fewer
            tokens for each feature it has, the less.
    """
    found = np.empty_like(off)
    found[:, factor.order] = (off[:, factor.order] @ factor.upper.T) @ factor.upper
    found *= np.float32(part)
    return found


def energy(weight: NDArray[Any], hessian: NDArray[Any]) -> float:
    """Returns the sum of squares of a weight's outputs: tr(W H W^T)."""
    return float(np.vdot(weight @ hessian, weight))


def energies(weight: NDArray[Any], hessian: NDArray[Any]) -> NDArray[Any]:
    """Returns it for each output of a weight [out, in]: the diagonal of W H W^T, [out]."""
    found: NDArray[Any] = np.einsum("oi,oi->o", weight @ hessian, weight)
    return found
