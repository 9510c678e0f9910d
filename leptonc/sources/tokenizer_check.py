"""Compares the tokenizer that an artifact gets with the reference's, on texts of many kinds.

The reference is transformers' tokenizer, called as its users call it; the other side is the runtime's own code. A
difference is refused with the text, what was expected, and what came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from leptonc.errors import InputError
from leptonc.sources.tokenizer_texts import PAIRS, texts_for
from runtime_edge.detokenize import Detokenizer
from runtime_edge.errors import LeptonError
from runtime_edge.tokenizer import BoundedTokenizer, failures

_SHOWN = 12  # ids on each side of a difference that a message shows
_UNLIKE = "this tokenizer cannot be carried into an artifact: what it does is in Python code, not in its files"


def check_tokenizer(ours: BoundedTokenizer, reference: Any, label: str) -> None:
    """Compares token ids and decoded text.

    Args:
        ours: The tokenizer as the artifact gets it.
        reference: transformers' tokenizer.
        label: The model, for messages.

    Raises:
        InputError: They differ, or the tokenizer fails on a text.
    """
    added = [str(token) for _, token in sorted(reference.added_tokens_decoder.items())]
    named = [value for name, value in reference.init_kwargs.items() if name.endswith("_token")]
    named += [*reference.special_tokens_map.values(), *getattr(reference, "extra_special_tokens", [])]
    named = [text for value in named if (text := _text(value))]
    texts = texts_for(added, named)
    for add in (True, False):
        _compare_ids(ours, reference, texts, add, label)
    _compare_alone(ours, reference, named, label)
    _compare_pairs(ours, reference, label)
    _compare_texts(ours, reference, texts, label)


def _text(token: Any) -> str:
    return token if isinstance(token, str) else str(getattr(token, "content", ""))


def _compare_ids(ours: BoundedTokenizer, reference: Any, texts: Sequence[str], add: bool, label: str) -> None:
    with failures(InputError, f"{label}: expected a tokenizer that transformers can run", hint=None):
        expected = reference(list(texts), add_special_tokens=add)["input_ids"]
    for text, wanted in zip(texts, expected, strict=True):
        came = _encoded(ours, text, add, label)
        if came != list(wanted):
            with_or_not = "with" if add else "without"
            raise _difference(label, f"tokens of {text!r:.200} ({with_or_not} special tokens)", list(wanted), came)


def _compare_alone(ours: BoundedTokenizer, reference: Any, named: Sequence[str], label: str) -> None:
    """Some classes look for a token of theirs in Python, in a text that is given alone (Code Llama's <FILL_ME>)."""
    for token in dict.fromkeys(named):
        text = f"A {token} b"
        wanted = list(reference(text)["input_ids"])
        if (came := _encoded(ours, text, True, label)) != wanted:
            raise _difference(label, f"tokens of {text!r:.200}", wanted, came)


def _encoded(ours: BoundedTokenizer, text: str, add: bool, label: str) -> list[int]:
    try:
        ids: list[int] = ours.encode(text, add_special_tokens=add).ids
    except LeptonError as error:
        raise InputError(f"{label}: the text {text!r:.200}: {error.message}", hint=error.hint) from error
    return ids


def _compare_pairs(ours: BoundedTokenizer, reference: Any, label: str) -> None:
    for pair in PAIRS:
        wanted = list(reference([pair[0]], [pair[1]])["input_ids"][0])
        came = list(ours.encode_batch_fast([pair])[0].ids)
        if came != wanted:
            raise _difference(label, f"tokens of the pair {pair!r:.200}", wanted, came)


def _compare_texts(ours: BoundedTokenizer, reference: Any, texts: Sequence[str], label: str) -> None:
    special = frozenset(index for index, token in ours.get_added_tokens_decoder().items() if token.special)
    for ids, text in _sequences(ours, texts, label):
        for skip in (True, False):
            wanted = reference.decode(ids, skip_special_tokens=skip)
            came = ours.decode(ids, skip_special_tokens=skip)
            if came != wanted:
                raise _difference(label, f"text of the tokens of {text!r:.200}", wanted, came)
        detokenizer = Detokenizer(ours.joining, special, replacements=ours.replacements)
        streamed = "".join([detokenizer.push(index) for index in ids]) + detokenizer.flush()
        wanted = reference.decode(ids, skip_special_tokens=True)
        if streamed != wanted:
            raise _difference(label, f"text, as it comes, of the tokens of {text!r:.200}", wanted, streamed)


def _sequences(ours: BoundedTokenizer, texts: Sequence[str], label: str) -> Iterator[tuple[list[int], str]]:
    for text in texts:
        yield _encoded(ours, text, True, label), text


def _difference(label: str, what: str, wanted: Any, came: Any) -> InputError:
    at = next((i for i, (a, b) in enumerate(zip(wanted, came, strict=False)) if a != b), min(len(wanted), len(came)))
    start, end = max(0, at - _SHOWN), at + _SHOWN
    where = f" (from place {start})" if start else ""
    return InputError(
        f"{label}: {what}: expected {wanted[start:end]!r} as transformers has it, found {came[start:end]!r}{where}",
        hint=_UNLIKE,
    )
