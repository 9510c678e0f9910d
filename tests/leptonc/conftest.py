"""Where the extra `compiler` is not installed, the tests of what needs it are left out."""

from __future__ import annotations

from importlib.util import find_spec

NEEDS = ("torch", "transformers", "onnx_ir", "onnxruntime")
collect_ignore = (
    [
        "frontend",
        "ir",
        "passes",
        "backends",
        "artifact",
        "evaluate",
        "test_build.py",
        "test_emit.py",
        "test_generation.py",
        "sources/test_emitted.py",
    ]
    if any(find_spec(name) is None for name in NEEDS)
    else []
)
