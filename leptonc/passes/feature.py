"""What a text makes of the features that a linear layer reads: calibration measures it, passes decide by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Feature:
    """What a text makes of the inputs of a linear layer.

    Attributes:
        mean: Over ordinary tokens, float64 [in].
        square: Mean of squares, float64 [in].
    """

    mean: NDArray[np.float64]
    square: NDArray[np.float64]
