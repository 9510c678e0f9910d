"""Number formats of weights, in one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NumberFormat:
    """A number format of weights.

    Attributes:
        bits: Of one weight.
        integer: Whether weights are codes, with a scale for each block or channel.
        scaled: Whether weights have scales: integers do, and fp8.
        higher: The next format of more bits. Default: weights that stay as they are.
    """

    bits: int
    integer: bool = False
    scaled: bool = False
    higher: str | None = None

    @property
    def width(self) -> int:
        """Bytes of a weight that is no code."""
        return self.bits // 8


FORMATS = {
    "fp32": NumberFormat(32),
    "fp16": NumberFormat(16),
    "fp8": NumberFormat(8, scaled=True),
    "int8": NumberFormat(8, integer=True, scaled=True),
    "int4": NumberFormat(4, integer=True, scaled=True, higher="int8"),
    "int2": NumberFormat(2, integer=True, scaled=True, higher="int4"),
}
