"""Lepton's compiler: from a trained transformer to an artifact that runs on an edge device."""

from runtime_edge import __version__

__all__ = ["__version__"]
