"""Between text and token ids: the artifact's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime_edge import request as check
from runtime_edge.errors import ArtifactError, ChatTemplateError, RequestError
from runtime_edge.listed import listed
from runtime_edge.manifest import Manifest
from runtime_edge.messages import chat, rendered
from runtime_edge.stamps import read_regular
from runtime_edge.stops import Pieces
from runtime_edge.tokenizer import BoundedTokenizer

if TYPE_CHECKING:
    from runtime_edge.chat import ChatTemplate
    from runtime_edge.messages import Chat

_MAX_TEMPLATE_BYTES = 2**20
_MAX_TOKENIZER = 2**31  # bytes: what reads it has bounds of its own
_DEFAULT, _TOOL_USE = "default", "tool_use"  # names of templates that transformers knows


class TextCodec:
    """The tokenizer of a verified artifact, and its chat templates, compiled when messages first need them.

    Raises:
        ArtifactError: The tokenizer's file is not one.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        record = manifest.tokenizer
        self.tokenizer = BoundedTokenizer(read_regular(root / record.file, record.file, _MAX_TOKENIZER), record.file)
        added = self.tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.eos_ids = frozenset(record.eos_token_ids)
        self.pad_id = record.pad_token_id or 0
        self._vocab_size = record.vocab_size
        self._special_tokens = record.special_tokens
        names = {} if record.chat_template is None else {_DEFAULT: record.chat_template}
        self._sources = {name: _template(root, file) for name, file in {**record.chat_templates, **names}.items()}
        self._templates: dict[str, ChatTemplate] = {}

    @cached_property
    def pieces(self) -> Pieces:
        """What each token adds to a text, as bytes."""
        return Pieces(self.tokenizer)

    def prompt_ids(
        self, prompt: Any, vocab_size: int, options: Mapping[str, Any], name: str = "prompt", *, answer: bool = True
    ) -> list[int]:
        """Token ids of a prompt: text (with the tokenizer's own special tokens), ids, or chat messages.

        Args:
            prompt: One prompt.
            vocab_size: Ids are below this.
            options: Those of `messages.chat`.
            name: What an error calls the prompt.
            answer: Whether messages end with what begins an answer, where the options do not say.

        Raises:
            RequestError: It is none of these, or options for messages go with another kind of prompt.
            ChatTemplateError: It is messages, and they cannot be rendered.
        """
        if isinstance(prompt, str):
            _refuse(options, "text")
            ids = self.encode(prompt)
        elif isinstance(prompt, Set) or (given := listed(prompt)) is None:  # a set has no order
            raise RequestError(f"{name}: expected text, token ids or a list of messages, found {type(prompt).__name__}")
        else:
            values = list(given)
            if not values or not _is_message(values[0]):
                _refuse(options, "token ids")
                return check.token_ids(name, values, vocab_size)
            # The template writes the special tokens itself.
            ids = self.encode(self.render(values, options, answer=answer), add_special_tokens=False)
        self.check_rows(name, ids)
        return check.token_ids(name, ids, vocab_size)

    def check_rows(self, name: str, token_ids: Sequence[int]) -> None:
        """Refuses tokens of a text that the tokenizer has and the model has not (raises `RequestError`)."""
        worst = max(token_ids, default=0)
        if self._vocab_size is not None and worst >= self._vocab_size:
            token = str(self.tokenizer.id_to_token(worst))[:80]
            raise RequestError(
                f"{name}: expected tokens that the model has, found {token!r}: its id is {worst}, and the model has "
                f"{self._vocab_size} tokens",
                hint="leave it out: the model's files name a token that the model was not trained with",
            )

    def render(self, messages: Iterable[Any], options: Mapping[str, Any], *, answer: bool = True) -> str:
        """The text of chat messages (arguments and errors as of `prompt_ids`)."""
        conversation = chat(messages, answer=answer, **options)
        name = self._template_name(conversation)
        if name not in self._templates:
            from runtime_edge.chat import ChatTemplate  # jinja2 is not needed without messages

            self._templates[name] = ChatTemplate(self._sources[name], self._special_tokens)
        template = self._templates[name]
        return rendered(
            conversation, self._sources[name], lambda values, variables: template.render(values, variables=variables)
        )

    def _template_name(self, conversation: Chat) -> str:
        """Chooses among named templates as transformers does: the one named, that for tools, the default."""
        names = ", ".join(sorted(self._sources))
        if not names:
            raise ChatTemplateError(
                "messages: expected a model with a chat template, found none in this artifact",
                hint="give the prompt as text: this is probably a base model, not one for chat",
            )
        if conversation.template is not None:
            if conversation.template not in self._sources:
                raise RequestError(f"chat_template: expected one of {names}, found {conversation.template[:60]!r}")
            return conversation.template
        if conversation.variables["tools"] is not None and _TOOL_USE in self._sources:
            return _TOOL_USE
        if _DEFAULT not in self._sources:
            raise ChatTemplateError(
                f"messages: expected a default chat template, found only {names}", hint="name one: chat_template=…"
            )
        return _DEFAULT

    def tokenize(self, text: Any, options: Mapping[str, Any], *, add_special_tokens: bool) -> list[int]:
        """See `Model.tokenize`."""
        check.boolean("add_special_tokens", add_special_tokens)
        if isinstance(text, str):
            _refuse(options, "text")
            return self.encode(text, add_special_tokens=add_special_tokens)
        if (given := listed(text)) is None:
            raise RequestError(f"text: expected text or a list of messages, found {type(text).__name__}")
        return self.encode(self.render(given, options), add_special_tokens=False)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text (raises `RequestError`)."""
        ids: list[int] = self.tokenizer.encode(check.text("text", text), add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids that the tokenizer does not have are left out."""
        check.boolean("skip_special_tokens", skip_special_tokens)
        if isinstance(token_ids, Set) or (given := listed(token_ids)) is None:
            raise RequestError(f"token_ids: expected token ids in a list, found {type(token_ids).__name__}")
        ids = [check.integer("token_ids", token, 0, 2**32 - 1) for token in given]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text


def _is_message(value: Any) -> bool:
    """Whether the first value of a prompt makes it a conversation: all that is neither a number nor a list."""
    return not (hasattr(value, "__index__") or isinstance(value, (str, bytes, float, list, tuple)) or value is None)


def _refuse(options: Mapping[str, Any], kind: str) -> None:
    """Refuses options of messages where there are none."""
    given = [
        name
        for name, value in options.items()
        if value is not None and (value is not False or name != "continue_final_message")
    ]
    if given:
        raise RequestError(
            f"{given[0]}: expected it with chat messages, found a prompt of {kind}",
            hint='give messages: [{"role": "user", "content": "…"}]',
        )


def _template(root: Path, name: str) -> str:
    data = read_regular(root / name, name, _MAX_TEMPLATE_BYTES)
    if len(data) > _MAX_TEMPLATE_BYTES:
        raise ArtifactError(f"{name}: expected at most {_MAX_TEMPLATE_BYTES} bytes, found {len(data)}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{name}: expected text in UTF-8, found: {error}") from error
