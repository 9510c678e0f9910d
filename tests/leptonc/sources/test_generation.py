"""What transformers' generate takes of generation_config.json and config.json, checked against transformers itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from leptonc.errors import InputError
from leptonc.sources.generation import SPECIAL_IDS, effective, token_ids, warnings_of

CASES: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "both": ({"eos_token_id": 1}, {"eos_token_id": 136, "bos_token_id": 2}),
    "a list": ({"eos_token_id": [1, 7]}, {"eos_token_id": 136}),
    "no end in the first": ({"temperature": 0.5}, {"eos_token_id": 136}),
    "null in the first": ({"eos_token_id": None}, {"eos_token_id": 136}),
    "empty": ({}, {"eos_token_id": 136}),
    "one file": (None, {"eos_token_id": 136, "pad_token_id": 0}),
    "one file, null": (None, {"eos_token_id": None}),
    "one file, nothing": (None, {}),
    "inner": (None, {"text_config": {"eos_token_id": 5, "model_type": "llama"}}),
    "outer before inner": (None, {"eos_token_id": 6, "text_config": {"eos_token_id": 5}}),
    "inner null": (None, {"eos_token_id": 6, "text_config": {"eos_token_id": None}}),
    "penalty": (None, {"eos_token_id": 6, "repetition_penalty": 1.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_as_transformers_has_it(case: str, tmp_path: Path) -> None:
    """Its own two calls: of generation_config.json, and where there is none of config.json."""
    transformers = pytest.importorskip("transformers")
    generation, config = CASES[case]
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    try:
        want = transformers.GenerationConfig.from_pretrained(tmp_path)
    except OSError:
        want = transformers.GenerationConfig.from_pretrained(
            tmp_path, config_file_name="config.json", _from_model_config=True
        )
    found = effective(generation, config)
    for name in (*SPECIAL_IDS, "repetition_penalty"):
        assert found.get(name) == getattr(want, name), name


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ({"eos_token_id": 1, "repetition_penalty": 1.2}, "sets repetition_penalty to 1.2, .* repetition_penalty=1.2"),
        ({"eos_token_id": 1, "suppress_tokens": [5]}, r"suppress_tokens to \[5\], .* the runtime does not have it"),
        ({"eos_token_id": 1, "num_beams": 4}, "sets num_beams to 4"),
        ({"eos_token_id": 1, "forced_eos_token_id": 4}, "sets forced_eos_token_id to 4"),
        ({"eos_token_id": 1, "bad_words_ids": [[n] for n in range(99)]}, r"bad_words_ids to \[\[0\], .*\.\.\., which"),
        ({}, "generation_config.json names no eos_token_id; config.json names 9"),
        (None, None),
        ({"eos_token_id": 1, "do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 20}, None),
        ({"eos_token_id": 1, "repetition_penalty": 1.0, "num_beams": 1, "suppress_tokens": []}, None),
    ],
    ids=str,
)
def test_what_the_user_is_told(generation: dict[str, Any] | None, words: str | None) -> None:
    found = warnings_of(generation, {"eos_token_id": 9})
    assert len(found) == (words is not None)
    if words is not None:
        assert re.search(words, found[0]), found[0]


@pytest.mark.parametrize("value", [7, [7, 1], True, 7.0, [7.0, -1], -1, [], None], ids=str)
def test_token_ids_are_those_of_the_tensor_that_generate_makes(value: Any) -> None:
    torch = pytest.importorskip("torch")
    want = [] if value is None else torch.tensor(value, dtype=torch.long).flatten().tolist()
    assert token_ids(value, "eos_token_id") == want


@pytest.mark.parametrize("value", ["7", ["7"], [[7, 1]], {"a": 7}, [None], 7.5, float("nan")], ids=str)
def test_what_is_no_token_id_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="expected `eos_token_id` to be a token id"):
        warnings_of({"eos_token_id": value}, {})


def test_ends_that_the_vocabulary_does_not_have_are_told_of() -> None:
    (warning,) = warnings_of({"eos_token_id": [-1, 512]}, {"vocab_size": 512})
    assert "which the vocabulary of 512 does not have" in warning
    assert not warnings_of({"eos_token_id": [-1, 511]}, {"vocab_size": 512})
