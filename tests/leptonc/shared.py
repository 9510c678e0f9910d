"""What builds of tiny models share in a process: captured graphs, texts that models write, objects that are set aside.

Each is a function of what it is kept under, and has tests of its own that run it anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from leptonc.calibrate.generate import Written
from runtime_edge.part_record import Part

_WRITTEN: dict[Any, Written] = {}
_CHECKED: set[Any] = set()


def generate_once(generate: Callable[..., Written]) -> Callable[..., Written]:
    """Returns `leptonc.calibrate.generate.generate` with a memory: of the same graph's bytes, seed and length."""

    def generated(
        graph: Path, part: Part, openings: Sequence[Sequence[int]], ends: Sequence[int], samples: int, length: int, *,
        seed: int = 0, **more: Any,
    ) -> Written:  # fmt: skip
        files = sorted(path for path in graph.parent.rglob("*") if path.is_file())
        content = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).digest()
        key = content, tuple(map(tuple, openings)), tuple(ends), length, seed
        known = _WRITTEN.get(key)
        if known is None or len(known.texts) < samples:
            known = _WRITTEN[key] = generate(graph, part, openings, ends, samples, length, seed=seed, **more)
        elif "advance" in more:
            more["advance"](length - 1)
        return Written([text.copy() for text in known.texts[:samples]], known.surprise)

    return generated


def check_once(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """Returns `leptonc.evaluate.capture_check.check_capture` with a memory: tiny samples are captured once too."""

    def checked(sample: Any) -> None:
        source = sample.source
        if not source.origin.get("id", "").startswith("tiny-"):
            check(sample)
            return
        key = (json.dumps([source.origin, source.config], sort_keys=True), sample.captured.max_seq_len)
        if key not in _CHECKED:
            check(sample)
            _CHECKED.add(key)

    return checked


@contextmanager
def shared() -> Iterator[None]:
    """Builds share what this module keeps while the context lasts."""
    from leptonc.build import calibration_text
    from leptonc.evaluate import capture_check
    from leptonc.frontend import capture as frontend
    from tests.leptonc import models

    models.set_aside()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontend, "capture", models.capture)
        patch.setattr(calibration_text, "generate", generate_once(calibration_text.generate))
        patch.setattr(capture_check, "check_capture", check_once(capture_check.check_capture))
        yield
