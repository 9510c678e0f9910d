"""Lepton's compiler: from a trained transformer to an artifact that runs on an edge device.

Importing it keeps the libraries that it uses from sending anything of their own, and from leaving files behind.
"""

import os
import tempfile

import runtime_edge.ort  # noqa: F401 — before a library imports onnxruntime, which sends events otherwise
from runtime_edge import __version__

__all__ = ["__version__"]

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when huggingface_hub is imported
# torch makes a folder for compiled kernels as it is imported, of which there are none here; this one is there already.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
