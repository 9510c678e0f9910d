"""Artifacts: how they are written, whole or not at all."""
