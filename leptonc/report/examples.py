"""Section on examples: the same inputs to the original and to the artifact, and what both make of them."""

from __future__ import annotations

from leptonc.report.section import Section


class Example(Section, kw_only=True):
    """One input.

    Attributes:
        input: What both models were given.
        original: What the original makes of it.
        artifact: What the artifact makes of it.
    """

    input: str
    original: str
    artifact: str


class Examples(Section, kw_only=True):
    """A few inputs, side by side.

    Attributes:
        about: What was asked, and how outputs became words.
        asks: Whether inputs are questions to a chat.
        rows: The inputs.
    """

    about: str
    asks: bool = False
    rows: list[Example]
