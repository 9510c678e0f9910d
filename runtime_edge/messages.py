"""Chat messages and what else a template is given, checked and copied: a template sees plain data alone.

What becomes of them is what `transformers`' `apply_chat_template` does (5.24): keys whose value is None are left out, a
message's reasoning is there under all names that templates read, and everything else is the template's to judge.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np

from runtime_edge.errors import ChatTemplateError, RequestError
from runtime_edge.listed import listed

MAX_VALUES = 100_000  # of all that one template is given
MAX_DEPTH = 64
_LARGEST = 2**63  # of whole numbers
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing, the first is what most templates read
_MEDIA = frozenset({"image", "audio", "video", "file"})
_OURS = ("messages", "tools", "documents", "add_generation_prompt")
_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "  # ends with a space, which tells whether a template strips the message
_MARK = "lepton_part_of_content"  # a key of parts that shows where a template prints a part as it is


class ChatOptions(TypedDict, total=False):
    """What may go with messages; see `TextGeneration.generate`."""

    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | str


@dataclass(frozen=True)
class Chat:
    """A checked conversation.

    Attributes:
        messages: Plain data.
        variables: The template's other variables.
        template: Name of the template to render it with. Default: the model chooses.
        continued: The field of the last message that the answer goes on from, or None.
    """

    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    template: str | None = None
    continued: str | None = None


def chat(
    messages: Iterable[Any],
    *,
    answer: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | str = False,
) -> Chat:
    """Checks a conversation and its options (raises `RequestError`).

    `answer` is what `add_generation_prompt` is by default; other arguments are those of `TextGeneration.generate`.
    """
    copy = _Copy()
    checked = [_with_reasoning(_message(f"messages[{index}]", value, copy)) for index, value in enumerate(messages)]
    if not checked:
        raise RequestError("messages: expected at least one, found none")
    if chat_template is not None and not isinstance(chat_template, str):
        raise RequestError(f"chat_template: expected a template's name, found {type(chat_template).__name__}")
    if not isinstance(continue_final_message, (bool, str)):
        raise RequestError(
            f"continue_final_message: expected True, False or a field's name, found "
            f"{type(continue_final_message).__name__}"
        )
    if add_generation_prompt is not None and not isinstance(add_generation_prompt, bool):
        raise RequestError(f"add_generation_prompt: expected a bool, found {type(add_generation_prompt).__name__}")
    if continue_final_message and add_generation_prompt:
        raise RequestError(
            "continue_final_message: expected add_generation_prompt=False beside it, found True",
            hint="an answer either goes on from the last message or begins a new one",
        )
    given = {} if chat_template_kwargs is None else copy("chat_template_kwargs", chat_template_kwargs)
    if not isinstance(given, dict):
        raise RequestError(f"chat_template_kwargs: expected a dict, found {type(chat_template_kwargs).__name__}")
    for name in _OURS:
        if name in given:
            raise RequestError(f"chat_template_kwargs: expected {name!r} as an option of its own, found it here")
    if add_generation_prompt is None:
        add_generation_prompt = answer and not continue_final_message
    variables = {
        **given,
        "tools": _mappings("tools", tools, copy),
        "documents": _mappings("documents", documents, copy),
        "add_generation_prompt": add_generation_prompt,
    }
    continued = None
    if continue_final_message:
        continued = continue_final_message if isinstance(continue_final_message, str) else "content"
        if checked[-1].get(continued) is None:
            raise RequestError(f"messages[{len(checked) - 1}].{continued}: expected what to go on from, found none")
    return Chat(checked, variables, chat_template, continued)


def rendered(conversation: Chat, source: str, render: Callable[[list[dict[str, Any]], dict[str, Any]], str]) -> str:
    """Returns the text of a conversation.

    Args:
        conversation: Its messages are checked.
        source: The template's text.
        render: Renders messages with variables.

    Raises:
        RequestError: The template knows no such field to go on from.
        ChatTemplateError: The template refuses the messages, or leaves out what the answer is to go on from.
    """
    if conversation.continued is None:
        return _with_parts(conversation, render)
    last = conversation.messages[-1]
    value = last[conversation.continued]
    names = [conversation.continued]
    if conversation.continued in _REASONING:
        names = [name for name in _REASONING if last.get(name) == value]
    if not any(name in source for name in names):
        raise RequestError(
            f"continue_final_message: expected a field that the chat template reads, found {conversation.continued!r}"
        )
    final, tagged = _tagged(value)
    text = _with_parts(
        replace(conversation, messages=[*conversation.messages[:-1], {**last, **dict.fromkeys(names, tagged)}]), render
    )
    place = text.rfind(_CONTINUE.strip())
    if place < 0 or final.strip() not in text:
        raise ChatTemplateError(
            "continue_final_message: expected a template that renders the whole last message, found that it is cut",
            hint="give the prompt as text, up to where the answer begins",
        )
    return text[:place] if text.startswith(_CONTINUE, place) else text[:place].rstrip()


def _tagged(value: Any) -> tuple[str, Any]:
    """The text to go on from, and the value with the tag at its end."""
    if isinstance(value, str):
        return value, value + _CONTINUE
    if isinstance(value, list):
        for index in range(len(value) - 1, -1, -1):
            part = value[index]
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                text = part["text"]
                return text, [*value[:index], {**part, "text": text + _CONTINUE}, *value[index + 1 :]]
    raise RequestError("continue_final_message: expected text in the last message, found none")


def _with_parts(conversation: Chat, render: Callable[[list[dict[str, Any]], dict[str, Any]], str]) -> str:
    """Renders; where the template takes text only, the texts of a content's parts are joined by line feeds.

    A template that takes a list reads the texts of its parts. One that does not fails, prints the list as it is, which
    a key of ours would show, or leaves it out.
    """
    if not any(isinstance(message.get("content"), list) for message in conversation.messages):
        return render(conversation.messages, conversation.variables)
    try:
        text = render(conversation.messages, conversation.variables)
        marked = render([_marked(message) for message in conversation.messages], conversation.variables)
    except ChatTemplateError:
        return render(_joined(conversation.messages), conversation.variables)
    if _MARK in marked:
        return render(_joined(conversation.messages), conversation.variables)
    lost = [part for part in _texts(conversation.messages) if part not in text]
    if lost:
        try:
            joined = render(_joined(conversation.messages), conversation.variables)
        except (ChatTemplateError, RequestError):
            return text
        if any(part in joined for part in lost):
            return joined
    return text


def _marked(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [{**part, _MARK: _MARK} if isinstance(part, dict) else part for part in content]}


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    joined = []
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            texts = [_text_of(f"messages[{index}].content[{at}]", part) for at, part in enumerate(content)]
            message = {**message, "content": "\n".join(texts)}
        joined.append(message)
    return joined


def _texts(messages: list[dict[str, Any]]) -> list[str]:
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    parts = [part for content in contents for part in content if isinstance(part, dict)]
    texts = [part["text"].strip() for part in parts if isinstance(part.get("text"), str)]
    return [text for text in texts if text]


def _text_of(where: str, part: Any) -> str:
    text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise RequestError(
            f"{where}: expected a part with text, which is all that this model's chat template takes, found "
            f"{part.get('type', 'none') if isinstance(part, dict) else type(part).__name__!r}"
        )
    return text


def _message(where: str, value: Any, copy: _Copy) -> dict[str, Any]:
    copied = copy(where, value)
    if not isinstance(copied, dict):
        raise RequestError(f"{where}: expected a dict with role and content, found {type(value).__name__}")
    message = {key: item for key, item in copied.items() if item is not None}
    if not isinstance(message.get("role"), str):
        raise RequestError(f"{where}.role: expected text, found {type(message.get('role')).__name__}")
    if message["role"] == "user" and "content" not in copied:
        raise RequestError(f"{where}.content: expected what the user says, found none")
    content = message.get("content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        _check_part(f"{where}.content[{index}]", part)
    return message


def _check_part(where: str, part: Any) -> None:
    """Refuses pictures and sounds, under any of the names that interfaces have for them."""
    if not isinstance(part, dict):
        return
    kind = part.get("type")
    names = [*([kind] if isinstance(kind, str) else []), *(key for key, value in part.items() if value is not None)]
    medium = next((name for name in names if not _MEDIA.isdisjoint(name.split("_"))), None)
    if medium is not None:
        raise RequestError(
            f"{where}: expected a part of text, found {medium!r}",
            hint='this model reads text only: give {"type": "text", "text": "…"}',
        )
    if kind == "text" and not isinstance(part.get("text"), str):
        raise RequestError(f"{where}.text: expected text, found {type(part.get('text')).__name__}")


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mappings(name: str, values: Any, copy: _Copy) -> list[dict[str, Any]] | None:
    if values is None:
        return None
    if (given := listed(values)) is None:
        raise RequestError(f"{name}: expected a list of dicts, found {type(values).__name__}")
    mappings = []
    for index, value in enumerate(given):
        if not isinstance(value, Mapping):
            hint = "transformers.utils.get_json_schema(function) makes one" if callable(value) else None
            raise RequestError(f"{name}[{index}]: expected a dict, found {type(value).__name__}", hint=hint)
        mappings.append(copy(f"{name}[{index}]", value))
    return mappings


class _Copy:
    """Copies of what a template is given, as dicts, lists, text, numbers, bools and None, within bounds."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, where: str, value: Any, depth: int = 0) -> Any:
        """Returns a copy (raises `RequestError`); numbers of numpy and objects with fields become plain ones."""
        self._count += 1
        if self._count > MAX_VALUES or depth > MAX_DEPTH:
            bound = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_VALUES} values"
            raise RequestError(f"{where[:200]}: expected at most {bound} for a chat template, found more")
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return _text(where, value)
        if isinstance(value, int):
            if not -_LARGEST <= value < _LARGEST:
                raise RequestError(f"{where}: expected a whole number of 64 bits, found a larger one")
            return int(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise RequestError(f"{where}: expected a finite number, found {value}")
            return float(value)
        if isinstance(value, (list, tuple)):
            return [self(f"{where}[{index}]", item, depth + 1) for index, item in enumerate(value)]
        return self._mapping(where, _fields(value), depth)

    def _mapping(self, where: str, value: Any, depth: int) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise RequestError(
                f"{where}: expected plain data for a chat template (dict, list, text, number, bool or None), found "
                f"{type(value).__name__}"
            )
        mapping = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise RequestError(f"{where}: expected keys that are text, found {type(key).__name__}")
            name = _text(where, key)
            mapping[name] = self(f"{where}.{name[:80]}", item, depth + 1)
        return mapping


def _fields(value: Any) -> Any:
    """The fields of a dataclass or of a pydantic model, as which clients return messages; others stay as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    return dump() if callable(dump) and not isinstance(value, type) else value


def _text(where: str, value: str) -> str:
    plain = str.__str__(value)  # of an enum's member its value, and none of its methods
    try:
        plain.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{where}: expected Unicode text, found a lone surrogate at character {error.start}"
        ) from error
    return plain
