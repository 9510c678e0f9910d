"""Methods that choose the codes of weights, as data: the command line, plans and steps read this table.

A new method is a file of `leptonc.calibrate.methods` and a line here.
"""

from __future__ import annotations

from dataclasses import dataclass

ROUNDING = "rtn"
BEST = "gptq"  # what a build takes where it may read a text


@dataclass(frozen=True)
class Method:
    """What is known of a method beside how it chooses.

    Attributes:
        meaning: What it does, for the command line's help.
        module: Module of `leptonc.calibrate.methods` that chooses codes by a text. Default: they are rounded to
            nearest, and no text is read.
        scales_channels: Whether input channels of weights are scaled before their codes are chosen, which the
            smoothing of 8-bit activations does too. Default: they are not.
        makes_up: Whether codes of one input make up for the rounding of others, that of activations among them.
    """

    meaning: str
    module: str = ""
    scales_channels: bool = False
    makes_up: bool = False


METHODS = {
    ROUNDING: Method("round to nearest"),
    "gptq": Method("GPTQ, which keeps what the layers make of a text", "gptq", makes_up=True),
    "awq": Method("AWQ, which gives finer codes to channels that a text sends most through", "awq",
                  scales_channels=True),
}  # fmt: skip
