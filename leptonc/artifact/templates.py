"""Checks a model's chat templates before they go into an artifact: the runtime has to render as transformers does.

Probes are conversations with and without a system's message, with tools and their calls, and in parts. A template may
refuse some of them, as many do, but then transformers has to refuse them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leptonc.errors import InputError
from leptonc.sources.base import Source
from runtime_edge.chat import ChatTemplate
from runtime_edge.errors import ChatTemplateError

_SYSTEM = {"role": "system", "content": "Be brief — “ok”."}
_USER = {"role": "user", "content": " Hi <b>&</b> 'you'\n日本 "}
_ANSWER = {"role": "assistant", "content": "Hello\n"}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Zürich", "n": 1}},
        }
    ],
}
_RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": '{"degrees": 3}'}
_PARTS = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Today's weather — of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Its name"}, "n": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
PROBES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "a question": ([_USER], {}),
    "a system's message": ([_SYSTEM, _USER, _ANSWER, _USER], {}),
    "tools": ([_SYSTEM, _USER, _CALL, _RESULT], {"tools": _TOOLS}),
    "parts": ([_PARTS], {}),
}
_TRIES = 3  # a template may write the time


def check_templates(source: Source, special_tokens: Mapping[str, str]) -> None:
    """Compares the runtime's rendering of each template of a source with that of transformers.

    Args:
        source: The model's source.
        special_tokens: Texts of `bos_token`, `eos_token`, …, for the templates.

    Raises:
        InputError: A template does not compile, exceeds the runtime's bounds, or renders something else.
    """
    default = {} if source.chat_template is None else {"chat_template": source.chat_template}
    for name, text in {**default, **source.chat_templates}.items():
        _check(name, text, special_tokens)


def _check(name: str, text: str, special_tokens: Mapping[str, str]) -> None:
    try:
        template = ChatTemplate(text, special_tokens)
    except ChatTemplateError as error:
        raise InputError(
            f"{name}: {error.message}",
            hint="correct the template, or take it out of the model's files: prompts are text then",
        ) from error
    for probe, (messages, variables) in PROBES.items():
        for answer in (True, False):
            context = {"tools": None, "documents": None, **variables, "add_generation_prompt": answer}
            for attempt in range(_TRIES):
                expected = _reference(text, messages, {**special_tokens, **context})
                actual, reason = _rendered(template, messages, context)
                if expected == actual:
                    break
                if attempt == _TRIES - 1:
                    raise InputError(
                        f"{name}: expected what transformers renders of {probe}, {_part(expected, actual)}, found "
                        f"{reason or _part(actual, expected)}",
                        hint="the runtime cannot render this template as transformers does: use a simpler one",
                    )


def _reference(text: str, messages: list[dict[str, Any]], context: dict[str, Any]) -> str | None:
    """Returns the text that transformers renders, or None where it refuses."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered = render_jinja_template([messages], chat_template=text, **context)[0][0]
    except (TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError):
        return None
    return str(rendered)


def _rendered(
    template: ChatTemplate, messages: list[dict[str, Any]], context: dict[str, Any]
) -> tuple[str | None, str | None]:
    """Returns the text that the runtime renders, or None and the reason of its refusal."""
    try:
        return template.render(messages, variables=context), None
    except ChatTemplateError as error:
        return None, error.message


def _part(text: str | None, other: str | None) -> str:
    """Returns the part of a text where it begins to differ from another."""
    if text is None:
        return "a refusal"
    at = next((i for i, (a, b) in enumerate(zip(text, other or "", strict=False)) if a != b), len(other or ""))
    return repr(text[max(0, at - 20) : at + 40])
