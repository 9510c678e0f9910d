"""Between text and token ids: the artifact's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime_edge import request as check
from runtime_edge.errors import ArtifactError, ChatTemplateError, RequestError
from runtime_edge.manifest import Manifest
from runtime_edge.tokenizer import BoundedTokenizer

if TYPE_CHECKING:
    from runtime_edge.chat import ChatTemplate

_MAX_TEMPLATE_BYTES = 2**20


class TextCodec:
    """The tokenizer of a verified artifact, and its chat template, compiled when messages first need it.

    Raises:
        ArtifactError: The tokenizer's file is not one.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        record = manifest.tokenizer
        self.tokenizer = BoundedTokenizer((root / record.file).read_bytes(), record.file)
        added = self.tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.eos_ids = frozenset(record.eos_token_ids)
        self.pad_id = record.pad_token_id or 0
        self._special_tokens = record.special_tokens
        self._source = None if record.chat_template is None else _template(root, record.chat_template)
        self._template: ChatTemplate | None = None

    def prompt_ids(self, prompt: Any, vocab_size: int) -> list[int]:
        """Token ids of a prompt: text (with the tokenizer's own special tokens), ids, or chat messages.

        Raises:
            RequestError: It is none of these.
            ChatTemplateError: It is messages, and they cannot be rendered.
        """
        if isinstance(prompt, str):
            found = self.encode(prompt)
        elif not isinstance(prompt, Iterable) or isinstance(prompt, (bytes, Mapping)):
            raise RequestError(f"prompt: expected text, token ids or a list of messages, found {type(prompt).__name__}")
        else:
            values = list(prompt)
            if not values or not isinstance(values[0], (Mapping, str)):
                return check.token_ids("prompt", values, vocab_size)
            # The template writes the special tokens itself.
            found = self.encode(self.render(values), add_special_tokens=False)
        return check.token_ids("prompt", found, vocab_size)

    def render(self, messages: Sequence[Any]) -> str:
        """The text of chat messages, up to where the answer begins (raises as `prompt_ids`)."""
        checked = check.messages(messages)
        if self._source is None:
            raise ChatTemplateError(
                "messages: expected a model with a chat template, found none in this artifact",
                hint="give the prompt as text: this is probably a base model, not one for chat",
            )
        if self._template is None:
            from runtime_edge.chat import ChatTemplate  # jinja2 is not needed without messages

            self._template = ChatTemplate(self._source, self._special_tokens)
        return self._template.render(checked)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text (raises `RequestError`)."""
        ids: list[int] = self.tokenizer.encode(check.text("text", text), add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids that the tokenizer does not have are left out."""
        ids = [check.integer("token_ids", token, 0, 2**32 - 1) for token in token_ids]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text


def _template(root: Path, name: str) -> str:
    data = (root / name).read_bytes()
    if len(data) > _MAX_TEMPLATE_BYTES:
        raise ArtifactError(f"{name}: expected at most {_MAX_TEMPLATE_BYTES} bytes, found {len(data)}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{name}: expected text in UTF-8, found: {error}") from error
