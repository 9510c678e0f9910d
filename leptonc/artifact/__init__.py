"""Writes artifacts, whole or not at all."""
