"""Compares the check's original of an embedding model with sentence-transformers itself.

The library is no dependency: where it is not installed, nothing is compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leptonc.errors import InputError
from leptonc.evaluate.fidelity import significant

NAME = "sentence_transformers"
TOLERANCE = 1e-4  # as a part of the greatest number of the embeddings; float32 in another order of sums stays below
_FAILURES = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError)


def is_installed() -> bool:
    """Whether sentence-transformers can be imported."""
    return find_spec(NAME) is not None


def compare(directory: Path, texts: list[str], rows: NDArray[np.float32]) -> str:
    """Compares embeddings with those of `SentenceTransformer(directory).encode(texts)` in float32.

    Args:
        directory: The model's directory.
        texts: Any texts.
        rows: The original's embeddings of them, float32 [n, dim].

    Returns:
        The library's version and the largest difference, for the report.

    Raises:
        InputError: The library cannot load the model, or its embeddings differ by more than `TOLERANCE` says.
    """
    library = import_module(NAME)
    version = str(library.__version__)
    with _quiet():
        try:
            model = library.SentenceTransformer(
                str(directory), device="cpu", local_files_only=True,
                model_kwargs={"dtype": torch.float32, "attn_implementation": "eager"},
            )  # fmt: skip
            model.truncate_dim = None
            expected = model.encode(texts, show_progress_bar=False)
        except _FAILURES as error:
            raise InputError(
                f"{directory}: sentence-transformers {version} cannot run it: {' '.join(str(error).split())[:300]}",
                hint="build it where that library can, or where it is not installed",
            ) from error
    if expected.shape != rows.shape:
        raise InputError(
            f"{directory}: expected embeddings of {expected.shape[-1]} numbers, as sentence-transformers {version} "
            f"makes them, found {rows.shape[-1]}",
            hint="the model has something that is not read here: report it",
        )
    difference = np.abs(expected - rows)
    worst, size = float(difference.max()), float(np.abs(expected).max())
    if not worst <= TOLERANCE * size:
        text = texts[int(difference.max(axis=1).argmax())]
        raise InputError(
            f"{directory}: expected the embeddings that sentence-transformers {version} makes, found a difference of "
            f"{worst:.3g} where numbers are up to {size:.3g} (at most {TOLERANCE:g} of that is allowed), for the text "
            f"{text[:60]!r}",
            hint="the model has something that is not read here: report it",
        )
    return f"{version}: at most {significant(worst, 3)} apart on {len(texts)} texts"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the libraries: their advice and progress bars are for their own users."""
    logging: Any = import_module("transformers.utils.logging")
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    own = getLogger(NAME)
    before = own.level
    own.setLevel(ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        own.setLevel(before)
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
