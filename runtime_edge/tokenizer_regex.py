"""Regular expressions of a tokenizer: whether matching one takes at most quadratic time, and its shortest match.

The `tokenizers` library matches with Oniguruma, which backtracks: `(a+)+$` on thirty letters takes 2^30 steps. An
expression is refused where a repetition that something has to follow repeats what can itself match in several ways, or
where several unbounded repetitions have to be undone one inside the other. What the end of an alternative repeats never
has to be undone, so that real tokenizers pass: their expressions have one repetition that something follows.

The syntax is https://github.com/kkos/oniguruma/blob/master/doc/RE; what the library then cannot compile, it refuses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_CHARS = 8192
MAX_DEPTH = 32  # of groups; real tokenizers have 3
MAX_REPEAT = 1000  # copies of an atom that counted repetitions make, nested ones multiplied
MAX_UNDONE = 1  # unbounded repetitions of one alternative that something has to follow
MAX_WAYS_BITS = 16  # log2 of the ways in which what precedes something that can fail matches, loops not counted
_FEW = 8  # rounds; what can match in several ways is repeated less often than that, or nothing follows it
_MANY = 16  # a counted repetition whose bounds are this far apart is as good as unbounded

_INFINITE = 2**31
_NO_WIDTH = frozenset("bBAzZGK")
_REFERENCES = frozenset("kg123456789")


class ExpressionError(ValueError):
    """An expression that is refused; the text says why."""


@dataclass(frozen=True)
class _Node:
    """What is known of a part of an expression.

    Attributes:
        width: Characters of its shortest match.
        several: Whether it can match one text in several ways: it has a variable repetition or alternatives.
        loops: Unbounded repetitions that may have to be undone where something after the part fails.
        undone: Of one alternative, the most unbounded repetitions that have to be undone inside of the part.
        copies: Copies of an atom that counted repetitions make.
        bits: log2 of the ways in which it matches, loops not counted.
    """

    width: int = 0
    several: bool = False
    loops: int = 0
    undone: int = 0
    copies: int = 1
    bits: float = 0.0


def shortest_match(expression: str) -> int:
    """Returns the length of the shortest match, in characters.

    Raises:
        ExpressionError: Matching may take more than quadratic time, or the syntax is one that is not followed.
    """
    if len(expression) > MAX_CHARS:
        raise ExpressionError(f"expected at most {MAX_CHARS} characters, found {len(expression)}")
    reader = _Reader(expression)
    node = reader.alternatives(0)
    if reader.at < len(expression):
        raise ExpressionError(f"expected balanced brackets, found one too many at character {reader.at}")
    return node.width


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _take(self, text: str) -> bool:
        if self.text.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def alternatives(self, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"expected groups at most {MAX_DEPTH} deep, found more")
        branches = [self._sequence(depth)]
        while self._take("|"):
            branches.append(self._sequence(depth))
        return _Node(
            width=min(node.width for node in branches),
            several=len(branches) > 1 or branches[0].several,
            loops=max(node.loops for node in branches),
            undone=max(node.undone for node in branches),
            copies=max(node.copies for node in branches),
            bits=max(node.bits for node in branches) + math.log2(len(branches)),
        )

    def _sequence(self, depth: int) -> _Node:
        width = undone = pending = loops = 0
        several, copies, bits = False, 1, 0.0
        while self.at < len(self.text) and self._peek() not in "|)":
            node, demands = self._repeated(depth)
            # What has to match may fail, and then every loop before it is undone.
            if demands and bits > MAX_WAYS_BITS:
                raise ExpressionError(
                    f"expected at most 2^{MAX_WAYS_BITS} ways to match what precedes something that can fail, found "
                    f"more (before character {self.at})"
                )
            undone += pending if demands else 0
            pending = node.loops if demands else pending + node.loops
            loops += node.loops
            undone = max(undone, node.undone)
            width, several, copies = width + node.width, several or node.several, max(copies, node.copies)
            bits += node.bits
            self._check(undone)
        return _Node(width, several, loops, undone, copies, bits)

    def _repeated(self, depth: int) -> tuple[_Node, bool]:
        """An atom with its repetitions, and whether it can fail."""
        node, demands = self._atom(depth)
        while (bounds := self._quantifier()) is not None:
            low, high = bounds
            if not self._take("?"):  # lazy, or possessive: neither is counted on
                self._take("+")
            if high >= _FEW and node.several and not self._ends():
                raise ExpressionError(
                    "expected no repetition, with something after it, of what can match in several ways: matching it "
                    f"can take exponential time (near character {self.at})"
                )
            copies = node.copies * (high if high < _INFINITE else max(low, 1))
            if copies > MAX_REPEAT:
                raise ExpressionError(f"expected at most {MAX_REPEAT} counted repetitions, found {copies}")
            loop = high - low >= _MANY
            bits = 0.0 if loop else node.bits * min(high, _FEW) + math.log2(high - low + 1)
            node = _Node(
                node.width * low, node.several or low != high, node.loops + loop, node.undone, max(copies, 1), bits
            )
            demands = demands and low > 0
        return node, demands

    def _ends(self) -> bool:
        """Whether nothing of the alternative that could fail comes after this place; looks ahead without reading."""
        place = self.at
        try:
            depth = 0
            while self.at < len(self.text):
                if self._peek() == "|":
                    self._skip_alternatives()
                elif self._take(")"):
                    depth -= 1
                    while self._quantifier() is not None:  # another round is optional
                        self._take("?")
                else:
                    _, demands = self._repeated_lightly()
                    if demands:
                        return False
            return True
        finally:
            self.at = place

    def _skip_alternatives(self) -> None:
        """Moves to the bracket that closes this group, or to the end."""
        while self.at < len(self.text) and self._peek() != ")":
            if not self._take("|"):
                self._repeated_lightly()

    def _repeated_lightly(self) -> tuple[None, bool]:
        """Passes over an atom with its repetitions, and says whether it can fail."""
        demands = self._pass_atom()
        while (bounds := self._quantifier()) is not None:
            demands = demands and bounds[0] > 0
            if not self._take("?"):
                self._take("+")
        return None, demands

    def _pass_atom(self) -> bool:
        if not self._take("("):
            return self._atom(0)[1]
        depth = 1
        while depth:
            if self.at >= len(self.text):
                raise ExpressionError("expected balanced brackets, found one that is not closed")
            if self._peek() in "()":
                depth += 1 if self._peek() == "(" else -1
                self.at += 1
            elif self._peek() == "[":
                self._class()
            elif self._peek() == "\\":
                self.at += 2
            else:
                self.at += 1
        return True

    def _check(self, undone: int) -> None:
        if undone > MAX_UNDONE:
            raise ExpressionError(
                f"expected at most {MAX_UNDONE} unbounded repetition that something follows in one alternative, found "
                f"{undone}: matching can take more than quadratic time (before character {self.at})"
            )

    def _atom(self, depth: int) -> tuple[_Node, bool]:
        character = self._peek()
        self.at += 1
        if character == "(":
            return self._group(depth)
        if character == "[":
            self.at -= 1
            self._class()
        elif character == "\\":
            return _Node(width=self._escape()), True
        elif character in "^$":
            return _Node(), True
        return _Node(width=1), True

    def _group(self, depth: int) -> tuple[_Node, bool]:
        is_lookaround = False
        if self._take("?"):
            if self._take("#"):
                end = self.text.find(")", self.at)
                self.at = len(self.text) if end < 0 else end
            elif any(self._take(mark) for mark in ("=", "!", "<=", "<!")):
                is_lookaround = True
            elif self._take("<"):  # a name
                self.at = max(self.text.find(">", self.at), self.at) + 1
            elif not (self._take(":") or self._take(">")):
                options = self.at
                while self._peek() and self._peek() in "imxWDSPaL-":
                    self.at += 1
                if self._take(")"):
                    return _Node(), False
                if self.at == options or not self._take(":"):
                    raise ExpressionError(f"expected a group of a known kind, found another at character {options}")
        elif self._peek() == "*":
            raise ExpressionError("expected no callouts, found one")
        node = self.alternatives(depth + 1)
        if not self._take(")"):
            raise ExpressionError("expected balanced brackets, found one that is not closed")
        if is_lookaround:  # what it matched is not undone, and has no width
            return _Node(undone=node.undone, copies=node.copies), True
        return node, node.width > 0

    def _escape(self) -> int:
        character = self._peek()
        self.at += 1
        if character in _REFERENCES and character:
            raise ExpressionError("expected no references to groups, found one")
        if character in "pPx" and character and self._peek() == "{":
            self.at = max(self.text.find("}", self.at), self.at) + 1
        elif character == "x":
            self.at += 2
        elif character == "u":
            self.at += 4
        return 0 if character in _NO_WIDTH else 1

    def _class(self) -> None:
        depth = 0
        first = False
        while self.at < len(self.text):
            character = self._peek()
            self.at += 1
            if character == "[":
                depth += 1
                self._take("^")
                first = True
                continue
            if character == "\\":
                self.at += 1
            elif character == "]" and not first:
                depth -= 1
                if depth == 0:
                    return
            first = False
        raise ExpressionError("expected balanced brackets, found a class that is not closed")

    def _quantifier(self) -> tuple[int, int] | None:
        for mark, bounds in (("*", (0, _INFINITE)), ("+", (1, _INFINITE)), ("?", (0, 1))):
            if self._take(mark):
                return bounds
        if self._peek() != "{":
            return None
        end = self.text.find("}", self.at)
        low, comma, high = self.text[self.at + 1 : max(end, self.at)].partition(",")
        if end < 0 or not (low + high) or not all(part.isascii() and part.isdigit() for part in (low, high) if part):
            return None  # a bracket that is a character
        self.at = end + 1
        least = min(int(low or 0), _INFINITE)
        return least, (least if not comma else min(int(high), _INFINITE) if high else _INFINITE)
