"""Markdown that comes piece by piece: every block is shown once, as if it had come at once."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from runtime_edge.cli.chat import markdown

TEXT = """# Title

A paragraph with **bold** words,
  in two lines.

1. first

2. second
   - nested
1986 goes on

```python
if x < 1:
    return "**as it is**"
```

| a | b |
|---|---|
| 1 | 2 |

<think>no tag is lost</think> \\[ x_1 \\] ![picture](address)

[1]: https://reference
"""
SHOWN = """Title

A paragraph with bold words,
  in two lines.

1. first
2. second
   • nested
     1986 goes on

if x < 1:
    return "**as it is**"

 a  b
 ────
 1  2

<think>no tag is lost</think> \\[ x_1 \\] !picture (address)

[1]: https://reference"""


def shown(pieces: list[str], width: int = 70) -> str:
    console = Console(theme=markdown.THEME, width=width, file=io.StringIO())
    lines = [line for piece in pieces for line in markdown.lines(console, piece, width)]
    return "\n".join("".join(segment.text for segment in line) for line in lines)


@pytest.mark.parametrize("seed", range(8))
def test_blocks_come_one_by_one(seed: int) -> None:
    chance = random.Random(seed)
    unfinished, taken, at = markdown.Unfinished(), [], 0
    while at < len(TEXT):
        size = chance.randint(1, 12) if seed else 1
        unfinished.text += TEXT[at : at + size]
        at += size
        taken += unfinished.take()
    assert len(taken) > 5
    assert shown(taken + unfinished.take_all()) == SHOWN


def test_lines_of_an_open_fence() -> None:
    unfinished, taken = markdown.Unfinished(), []
    code = [f"line {number}" for number in range(40)]
    for line in ["Code:", "", "```", *code, "```", "", "end"]:
        unfinished.text += line + "\n"
        taken += unfinished.take()
        if part := unfinished.take_code(3):
            taken.append(part)
            assert unfinished.text.count("\n") == 3
    assert shown(taken + unfinished.take_all()).split("\n") == ["Code:", "", *code, "", "end"]


def test_lines_are_no_wider_than_asked() -> None:
    text = "日本語のテキスト" * 9 + "\n\n- " + "word " * 30 + "\n\n```\n" + "x" * 99 + "\n```"
    for width in (1, 7, 40):
        console = Console(theme=markdown.THEME, width=width, file=io.StringIO())
        for line in markdown.lines(console, text, width):
            assert sum(segment.cell_length for segment in line) <= max(width, 2)  # of a wide character
