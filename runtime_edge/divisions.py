"""Which divisions of a graph are of integers, whose result may be what a processor cannot give.

ONNX Runtime divides integers as the processor does: -2**63 / -1 ends the process with SIGFPE (division by zero it
checks). So a graph may divide integers by positive ones that it has as a constant, which is all that captured graphs
do, and numbers of floating point by anything. For that the type of a value is followed back to what makes it.
"""

from __future__ import annotations

from collections.abc import Sequence

_FLOATS = frozenset({1, 10, 11, 16})  # TensorProto.DataType: float32, float16, float64, bfloat16
_UNKNOWN = 0
_INT64 = 7
_FLOAT = 1

# Outputs of all other operators have the type of their first input.
_INTEGERS = frozenset(
    {
        "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Shape", "QuantizeLinear",
    }
)  # fmt: skip
_MADE_FLOAT = frozenset({"DequantizeLinear", "GatherBlockQuantized", "MatMulIntegerToFloat"})
_OWN = frozenset({"Cast", "Constant", "ConstantOfShape"})  # an attribute tells


class Divisions:
    """The types of a graph's values, as far as divisions ask for them, and the divisions."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._like: dict[str, str] = {}
        self._divisions: list[tuple[str, str]] = []

    def value(self, name: str, code: int) -> None:
        """Notes the type of a value; one that is told twice, and otherwise, has none."""
        self._codes[name] = code if self._codes.get(name, code) == code else _UNKNOWN

    def node(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], dtype: int) -> None:
        """Notes an operator; `dtype` is the type that its attributes tell, 0 where they tell none."""
        if operator == "Div" and len(inputs) == 2:
            self._divisions.append((inputs[0], inputs[1]))
        source = inputs[1 if operator == "Where" else 0] if len(inputs) > (operator == "Where") else ""
        for index, name in enumerate(outputs):
            if operator in _OWN:
                self.value(name, dtype or (_FLOAT if operator == "ConstantOfShape" else _UNKNOWN))
            elif operator in _INTEGERS or (operator == "TopK" and index == 1):
                self.value(name, _INT64)
            elif operator in _MADE_FLOAT:
                self.value(name, _FLOAT)
            elif name in self._like or name in self._codes:
                self.value(name, _UNKNOWN)
            else:
                self._like[name] = source

    def of_integers(self) -> list[tuple[str, str]]:
        """Returns dividend and divisor of every division whose dividend is not surely of floating point."""
        return [(dividend, divisor) for dividend, divisor in self._divisions if not self._is_float(dividend)]

    def _is_float(self, name: str) -> bool:
        path = []
        while name not in self._codes:
            self._codes[name] = _UNKNOWN  # of a circle, or of what nothing makes
            path.append(name)
            name = self._like.get(name, "")
        for passed in path:
            self._codes[passed] = self._codes[name]
        return self._codes[name] in _FLOATS
