"""Lepton's compiler: from a trained transformer to an artifact that runs on an edge device."""

__version__ = "0.1.0"
