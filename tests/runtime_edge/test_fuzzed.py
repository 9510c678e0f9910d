"""What benchmarks/fuzz.py found: values that are not what they say they are, and artifacts whose parts disagree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_edge
from runtime_edge.errors import ArtifactError, RequestError
from tests.runtime_edge import tiny
from tests.runtime_edge.test_verify import edit


class Index:
    """Says that it is a whole number, and is none."""

    def __index__(self) -> int:
        raise ValueError("no number")


CALLS: dict[str, Callable[[Any], Any]] = {
    "prompt": lambda model: model.generate(np.array(1)),
    "tokenize": lambda model: model.tokenize(np.array(1)),
    "token_ids": lambda model: model.detokenize(True),
    "drafts": lambda model: model.generate([1], drafts=Index()),
    "continue_final_message": lambda model: model.score([1, 2], continue_final_message=np.array([])),
}


@pytest.mark.parametrize("what", CALLS)
def test_values_that_hold_nothing(what: str, model: runtime_edge.Model) -> None:
    with pytest.raises(RequestError) as caught:
        CALLS[what](model)
    assert "expected" in caught.value.message


@pytest.mark.parametrize("token", [-1, 2**31, 2**64 - 1])
def test_padding_beyond_every_vocabulary(token: int, tmp_path: Path) -> None:
    tiny.write_encoder(tmp_path)
    edit(tmp_path, lambda data: data["tokenizer"].update(pad_token_id=token))
    with pytest.raises(ArtifactError, match="pad_token_id"):
        runtime_edge.load(tmp_path)


def test_an_output_of_another_width(tmp_path: Path) -> None:
    tiny.write_encoder(tmp_path, dim=6)
    edit(tmp_path, lambda data: data["parts"][0]["outputs"][0].update(dims=["batch", 5]))
    with pytest.raises(ArtifactError), runtime_edge.load(tmp_path) as model:  # as it opens, or as it runs
        model.encode(["one two", "three"])
