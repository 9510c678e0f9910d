"""The comparison with sentence-transformers, where that library stands for itself and where another stands for it."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from leptonc.errors import InputError
from leptonc.evaluate import library
from leptonc.evaluate.measure import sample_of
from leptonc.sources import open_source
from tests.leptonc import models

TEXTS = ["one", "two"]
ROWS = np.array([[1.0, -2.0, 3.0], [0.5, 0.25, -4.0]], np.float32)


def stands_in(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """Puts a module of the library's name in its place, whose model answers `answer` or raises it."""

    class SentenceTransformer:
        def __init__(self, path: str, **options: Any) -> None:
            assert (path, options["local_files_only"]) == ("somewhere", True)

        def encode(self, texts: list[str], **_: Any) -> Any:
            assert (texts, self.truncate_dim) == (TEXTS, None)  # type: ignore[attr-defined]
            logging.getLogger(f"{library.NAME}.base").warning("advice for others")
            if isinstance(answer, Exception):
                raise answer
            return answer

    module = ModuleType(library.NAME)
    module.__spec__ = ModuleSpec(library.NAME, None)
    module.__dict__.update(SentenceTransformer=SentenceTransformer, __version__="9.9")
    monkeypatch.setitem(sys.modules, library.NAME, module)


def test_the_same_embeddings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    stands_in(monkeypatch, ROWS + np.float32(1e-4))
    assert library.is_installed()
    assert library.compare(Path("somewhere"), TEXTS, ROWS) == "9.9: at most 0.0001 apart on 2 texts"
    assert caplog.messages == []  # what the library advises is not for the user


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            ROWS + np.array([[0], [1e-3]], np.float32),
            r"a difference of 0.001 where numbers are up to 4 .*the text 'two'",
        ),
        (ROWS * np.nan, "found a difference of nan"),
        (ROWS[:, :2], "expected embeddings of 2 numbers, as sentence-transformers 9.9 makes them, found 3"),
        (OSError("no such\nfile"), "sentence-transformers 9.9 cannot run it: no such file"),
    ],
)
def test_what_ends_a_build(answer: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stands_in(monkeypatch, answer)
    with pytest.raises(InputError, match=message):
        library.compare(Path("somewhere"), TEXTS, ROWS)


@pytest.mark.parametrize(("limit", "cut"), [(24, True), (None, False), (200, False)])
def test_texts_that_the_library_would_cut_elsewhere_are_not_compared(
    limit: int | None, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model's own files do not cut at 24 tokens the library reads a longer text whole, or fails on it."""
    compared: list[str] = []

    def compare(directory: Path, texts: list[str], rows: Any) -> str:
        assert len(texts) == len(rows)
        compared.extend(texts)
        return "compared"

    monkeypatch.setattr(library, "is_installed", lambda: True)
    monkeypatch.setattr(library, "compare", compare)
    with open_source("sample:tiny-sentence") as source:
        assert source.modules is not None
        source = replace(source, library_path=Path("m"), modules=replace(source.modules, max_seq_length=limit))
        text = "A river. " + "It ran low that summer and people walked across it, one after the other, " * 3 + "."
        captured = models.capture(source, max_seq_len=24)
        sample = sample_of(source, captured, text, "a text")
        sample.compare_graph(captured.model)
        lengths = [len(Tokenizer.from_str(source.tokenizer_json.decode()).encode(each).ids) for each in compared]
    assert lengths
    assert (max(lengths) > 24) == cut
