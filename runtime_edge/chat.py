"""Renders chat messages with the model's own template, which is untrusted: sandboxed, and in a budget.

The template language is that of `transformers`' chat templates: Jinja with `raise_exception`, `strftime_now`, a plain
`tojson`, loop controls, and `{% generation %}` blocks, which only training needs. What each operation costs is in
`runtime_edge.template`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from runtime_edge.errors import ChatTemplateError
from runtime_edge.template.budget import plain
from runtime_edge.template.environment import Environment

Message = Mapping[str, Any]

# What jinja2, and the code that it makes of a template, raise for one that is wrong.
_FAULTS = (
    TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: The template.
        special_tokens: `bos_token`, `eos_token`, … as the template's variables.

    Raises:
        ChatTemplateError: The template does not parse, or uses what chat templates may not.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._environment = Environment()
        self._special_tokens = dict(special_tokens)
        self._lock = threading.Lock()  # the environment counts the work of one rendering at a time
        try:
            self._template = self._environment.from_string(source)
        except _FAULTS as error:
            raise ChatTemplateError(
                f"chat template: expected a Jinja template, found {_described(error)}",
                hint="transformers refuses it too: correct it in the model's files, or give prompts as text",
            ) from error

    def render(
        self, messages: Sequence[Message], *, answer: bool = True, variables: Mapping[str, Any] | None = None
    ) -> str:
        """Returns the prompt, ending where the assistant's answer begins, or after the last message.

        Args:
            messages: The conversation; values that are not JSON's become the names of their types.
            answer: Whether the text goes on to where the assistant answers: `add_generation_prompt`.
            variables: Further variables, such as `tools`; they win over special tokens and `answer`.

        Raises:
            ChatTemplateError: The template refused the messages, failed, or exceeded its budget.
        """
        # Templates test `tools is none` too, so what nobody gave is there, as None.
        given, size = plain(
            {
                **self._special_tokens,
                "tools": None,
                "documents": None,
                "add_generation_prompt": answer,
                **(variables or {}),
                "messages": list(messages),
            }
        )
        with self._lock:
            self._environment.budget.start(size)
            try:
                return self._template.render(given)
            except ChatTemplateError:
                raise
            except _FAULTS as error:
                raise ChatTemplateError(
                    f"chat template: expected to render the messages, found {_described(error)}",
                    hint="see the roles, the order and the fields of the messages",
                ) from error


def _described(error: BaseException) -> str:
    text = str(error)[:400]
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}"
