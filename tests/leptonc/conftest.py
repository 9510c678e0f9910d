"""Where the extra `compiler` is not installed, tests of what needs it are left out; a tiny model is captured once."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

NEEDS = ("torch", "transformers", "onnx_ir", "onnxruntime")
collect_ignore = (
    [
        "frontend",
        "ir",
        "passes",
        "backends",
        "artifact",
        "pages",
        "evaluate",
        "build",
        "test_generation.py",
        "sources/test_emitted.py",
    ]
    if any(find_spec(name) is None for name in NEEDS)
    else []
)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short text to calibrate on: quicker than the text that a model would write."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(
        "The valves close when the pressure falls, and a lamp tells the driver which of them did so. " * 60,
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module", autouse=True)
def _shared() -> Iterator[None]:
    """Builds of tiny models share captured graphs and the texts that models write, which are most of their time."""
    if collect_ignore:
        yield
        return
    from tests.leptonc.shared import shared

    with shared():
        yield


@pytest.fixture(scope="module")
def short_windows(_shared: None) -> Iterator[None]:
    """Builds look at texts of 128 tokens where a user's have 512: for tests of what does not depend on how many."""
    from leptonc.build import calibration_text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration_text, "WINDOW", 128)
        yield
