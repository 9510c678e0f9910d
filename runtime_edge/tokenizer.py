"""The tokenizer of an artifact: the `tokenizers` library within bounds, its failures as errors of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer, decoders

from runtime_edge.errors import ArtifactError, LeptonError, RequestError
from runtime_edge.tokenizer_bounds import Bounded, BoundError, bounded

_DAMAGED = "the tokenizer is damaged or was made to do harm: build the artifact again from a model that you trust"


@contextmanager
def failures(error_type: type[LeptonError], label: str, *, hint: str | None = _DAMAGED) -> Iterator[None]:
    """Turns what the `tokenizers` library raises into an error of ours: its exceptions, and panics of its Rust code.

    Args:
        error_type: The error to raise.
        label: What was expected, the message's beginning.
        hint: The error's hint.
    """
    try:
        yield
    except LeptonError:
        raise
    except BaseException as error:  # the library raises nothing narrower than Exception; panics are no Exceptions
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # an interrupt, an exit
        reason = " ".join(str(error).split()) or repr(error)
        raise error_type(f"{label}, found: {reason[:200]}", hint=hint) from error


def within_bounds(
    data: bytes, label: str, *, error_type: type[LeptonError] = ArtifactError, hint: str | None = _DAMAGED
) -> Bounded:
    """Checks a tokenizer.json that nobody vouches for, before the library reads it (arguments as of `parse`)."""
    try:
        return bounded(data)
    except BoundError as error:
        raise error_type(f"{label}: {error}", hint=hint) from error


def parse(
    data: bytes, label: str, *, error_type: type[LeptonError] = ArtifactError, hint: str | None = _DAMAGED
) -> tuple[Tokenizer, int]:
    """Reads a tokenizer.json that nobody vouches for.

    Args:
        data: The file.
        label: What error messages call it.
        error_type: The error to raise.
        hint: Its hint.

    Returns:
        The library's tokenizer without truncation and padding, and the characters that a text may have.

    Raises:
        LeptonError: Of that type: it is no tokenizer, or asks for more than `tokenizer_bounds` allows.
    """
    checked = within_bounds(data, label, error_type=error_type, hint=hint)
    with failures(error_type, f"{label}: expected a tokenizer", hint=hint):
        # What was set for training or another program must not change or cut a prompt; `bounded` leaves it out.
        return Tokenizer.from_buffer(checked.data), checked.max_chars


class _Joining:
    """Makes text of tokens, before the replacements."""

    def __init__(self, tokenizer: Tokenizer, label: str) -> None:
        self._tokenizer, self._label = tokenizer, label

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        with failures(ArtifactError, f"{self._label}: expected a decoder that makes text of tokens"):
            text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
            return text


class BoundedTokenizer:
    """A tokenizer whose calls end: texts are bounded, and what fails inside of the library is an error of ours.

    Args:
        data: A tokenizer.json.
        label: What error messages call it.

    Attributes:
        max_chars: Characters that a text may have.
        replacements: What is replaced in decoded text, one pair of texts after the other.
        joining: Decodes as this one does, without the replacements: text to which later tokens only add.
        decoder: The library's decoder without the replacements, or None.

    Raises:
        ArtifactError: It is no tokenizer, or asks for more than `tokenizer_bounds` allows.
    """

    def __init__(self, data: bytes, label: str) -> None:
        self._begin(*parse(data, label), label)

    @classmethod
    def of(cls, tokenizer: Tokenizer, max_chars: int, label: str) -> BoundedTokenizer:
        """Returns the same of what `parse` made; the tokenizer is this one's from then on, and its decoder changes."""
        bounded = cls.__new__(cls)
        bounded._begin(tokenizer, max_chars, label)
        return bounded

    def _begin(self, tokenizer: Tokenizer, max_chars: int, label: str) -> None:
        self._tokenizer, self.max_chars = tokenizer, max_chars
        self._label = label
        with failures(ArtifactError, f"{label}: expected a decoder"):
            self.replacements = _split_off_replacements(self._tokenizer)
        self.decoder = self._tokenizer.decoder
        self.joining = _Joining(self._tokenizer, label)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Any:
        """The library's encoding of a text (raises `RequestError`)."""
        self._check(text)
        with failures(RequestError, "text: expected one that the tokenizer can cut into tokens", hint=None):
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def encode_batch_fast(self, texts: Sequence[Any], *, add_special_tokens: bool = True) -> list[Any]:
        """The encodings of texts, or of pairs of texts, without offsets (raises `RequestError`)."""
        for item in texts:
            for text in item if isinstance(item, tuple) else (item,):
                self._check(text)
        with failures(RequestError, "texts: expected some that the tokenizer can cut into tokens", hint=None):
            encodings: list[Any] = self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
            return encodings

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids that the tokenizer does not have are left out (raises `ArtifactError`)."""
        text = self.joining.decode(token_ids, skip_special_tokens=skip_special_tokens)
        for pattern, content in self.replacements:
            text = text.replace(pattern, content)
        return text

    def enable_truncation(self, max_length: int, **options: Any) -> None:
        """Cuts every text that is encoded from now on to `max_length` tokens, those around it counted.

        Raises:
            ArtifactError: The tokens around a text alone are more.
        """
        around = self._tokenizer.num_special_tokens_to_add(False)
        if around > max_length:  # the library would not cut at all
            raise ArtifactError(
                f"{self._label}: expected at most {max_length} tokens around a text, found {around}", hint=_DAMAGED
            )
        with failures(ArtifactError, f"{self._label}: expected a tokenizer that cuts texts at {max_length} tokens"):
            self._tokenizer.enable_truncation(max_length, **options)

    def num_special_tokens_to_add(self, is_pair: bool = False) -> int:
        """Tokens that the tokenizer puts around a text, or a pair of texts."""
        return int(self._tokenizer.num_special_tokens_to_add(is_pair))

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """The added tokens by id."""
        tokens: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        return tokens

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, or None."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id, or None."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        """Number of tokens."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens))

    def _check(self, text: str) -> None:
        if len(text) > self.max_chars:
            raise RequestError(
                f"text: expected at most {self.max_chars:,} characters, found {len(text):,}",
                hint="give a long text in parts",
            )


def _split_off_replacements(tokenizer: Tokenizer) -> tuple[tuple[str, str], ...]:
    """Takes from a decoder what it replaces once tokens are joined, which changes text that came before."""
    decoder = tokenizer.decoder
    stages = json.loads(decoder.__getstate__()).get("decoders", []) if decoder is not None else []
    joined = len(stages)
    while joined and stages[joined - 1].get("type") == "Replace" and stages[joined - 1]["pattern"].get("String"):
        joined -= 1
    if joined == len(stages) or joined == 0 or stages[joined - 1].get("type") != "Fuse":
        return ()
    rest = decoders.Sequence([])
    rest.__setstate__(json.dumps({"type": "Sequence", "decoders": stages[:joined]}).encode())
    tokenizer.decoder = rest
    return tuple((stage["pattern"]["String"], stage["content"]) for stage in stages[joined:])
