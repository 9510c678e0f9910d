"""What all sections of a report have in common."""

from __future__ import annotations

import msgspec


class Section(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A part of `report.json`. A field that is None is not written: what was not done or measured is not there.

    A section belongs to the step that makes it, and to later steps that add to it; nothing else changes it.
    """


class Change(Section, kw_only=True):
    """A count before and after something.

    Attributes:
        before: Before it.
        after: After it.
    """

    before: int
    after: int


class CalibrationText(Section, kw_only=True):
    """The text that something was measured on.

    Attributes:
        text: Its file's name, or what wrote it.
        samples: Texts in it.
        tokens: Tokens of all of them.
    """

    text: str
    samples: int
    tokens: int
