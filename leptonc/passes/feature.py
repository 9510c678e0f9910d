"""Statistics of the features that a linear layer reads, which calibration measures and passes use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Feature:
    """Statistics of the inputs of a linear layer on a text.

    Attributes:
        mean: Mean over ordinary tokens, float64 [in].
        square: Mean of squares, float64 [in].
    """

    mean: NDArray[np.float64]
    square: NDArray[np.float64]
