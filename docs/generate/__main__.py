"""Writes the pages."""

from docs.generate import write

write()
