"""Inputs of a captured graph for one text."""

from __future__ import annotations

from leptonc.ir.ports import inputs_of as inputs_of
