"""Kernels of our own: marks for tests that run them, and the libraries that they run with."""

import os
from pathlib import Path

import pytest

from runtime_edge import kernels

SANITIZED = "LEPTON_SANITIZED"  # names a folder with libraries that `test_sanitized` compiled: these run then
_folder = os.environ.get(SANITIZED)
_EMULATED = {"avx512_bf16", "avx512_vnni"}  # what kernels for AMX need where tiles are in software

if _folder:
    kernels._path = lambda name: Path(str(_folder)) / f"{name}.so"  # type: ignore[assignment]
    if kernels._features() >= _EMULATED:
        kernels.tiles = lambda: str(kernels.library()).endswith("_kernels.so")

here = pytest.mark.skipif(kernels.lacking() is not None, reason=f"no kernels of ours: {kernels.lacking()}")
with_tiles = pytest.mark.skipif(kernels.lacking() is not None or not kernels.tiles(), reason="no kernels for AMX here")
