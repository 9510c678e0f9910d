"""Kernels of our own: marks for tests that run them."""

import pytest

from runtime_edge import kernels

here = pytest.mark.skipif(kernels.lacking() is not None, reason=f"no kernels of ours: {kernels.lacking()}")
with_tiles = pytest.mark.skipif(kernels.lacking() is not None or not kernels.tiles(), reason="no kernels for AMX here")
