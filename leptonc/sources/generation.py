"""Where an answer ends, and what else `generate` of transformers does by default: its rules of 5.24.

A generation_config.json decides alone where there is one, even where it does not name an end. Where there is none,
transformers makes it of config.json as it is written: its own keys, then those of the language model inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from leptonc.errors import InputError

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_INNER = ("decoder", "generator", "text_config")
# Settings that change the tokens of an answer, each with the values that change nothing. Not among them: sampling
# (do_sample, temperature, top_k ...) and lengths, which the caller chooses in each request.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,), "encoder_repetition_penalty": (1,), "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,), "bad_words_ids": ([],), "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (), "sequence_bias": ({}, []),
    "min_length": (0,), "min_new_tokens": (0,), "num_beams": (1,), "num_beam_groups": (1,), "stop_strings": ([],),
    "exponential_decay_length_penalty": (), "guidance_scale": (1,), "token_healing": (False,), "constraints": ([],),
    "force_words_ids": ([],), "penalty_alpha": (0,), "dola_layers": (), "watermarking_config": (),
}  # fmt: skip
_PER_REQUEST = {"repetition_penalty": "repetition_penalty", "stop_strings": "stop"}
_LONGEST = 60


def of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what transformers takes for `generate` from a config.json that stands alone."""
    inners = [config[name] for name in _INNER if isinstance(config.get(name), dict) and config[name]]
    inner: Mapping[str, Any] = inners[0] if inners else {}
    settings = {}
    for name in (*SPECIAL_IDS, *_NEUTRAL):
        value = inner.get(name) if config.get(name) is None else config.get(name)
        if value is not None:
            settings[name] = value
    return settings


def effective(generation: Mapping[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that count: of generation_config.json where there is one, else of config.json."""
    if generation is None:
        return of_config(config)
    return {**dict.fromkeys(SPECIAL_IDS), **generation}


def token_ids(value: Any, name: str) -> list[int]:
    """Returns the ids that a setting such as `eos_token_id` names: one, or a list of them.

    `generate` makes a tensor of whole numbers of it, so that true is 1 and 2.0 is 2 there.

    Raises:
        InputError: there is something else in it, on which `generate` fails.
    """
    ids = []
    for item in value if isinstance(value, list) else () if value is None else (value,):
        if not isinstance(item, (bool, int)) and not (isinstance(item, float) and item.is_integer()):
            raise InputError(
                f"expected `{name}` to be a token id or a list of them, found {json.dumps(value)[:_LONGEST]}",
                hint="correct it in generation_config.json, or in config.json where there is no other file",
            )
        ids.append(int(item))
    return ids


def warnings_of(generation: Mapping[str, Any] | None, config: Mapping[str, Any]) -> list[str]:
    """Returns what a user must know where an answer of the artifact is not what `generate` gives by default.

    Raises:
        InputError: a token id is none.
    """
    name = "config.json" if generation is None else "generation_config.json"
    settings = effective(generation, config)
    warnings = []
    for key, neutral in _NEUTRAL.items():
        value = settings.get(key)
        if value is None or value in neutral:
            continue
        text = json.dumps(value)
        text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
        option = _PER_REQUEST.get(key)
        then = f"give {option}={text} with each request" if option else "the runtime does not have it"
        warnings.append(f"{name} sets {key} to {text}, which transformers' generate applies by default: {then}")
    ends = token_ids(settings.get("eos_token_id"), "eos_token_id")
    rows = config.get("vocab_size")
    if ends and type(rows) is int and not any(0 <= end < rows for end in ends):
        warnings.append(
            f"{name} names the eos_token_id {settings['eos_token_id']}, which the vocabulary of {rows} does not have: "
            f"an answer goes on to max_new_tokens, as transformers' generate does; correct it, or give stop= with each "
            "request"
        )
    if not ends:
        other = of_config(config).get("eos_token_id")
        beside = "" if other is None else f"; config.json names {other}, which transformers does not look at then"
        warnings.append(
            f"{name} names no eos_token_id{beside}: an answer goes on to max_new_tokens, as transformers' generate "
            f"does; add eos_token_id to {name}, or give stop= with each request"
        )
    return warnings
