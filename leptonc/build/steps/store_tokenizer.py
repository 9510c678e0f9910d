"""Stores the tokenizer and the chat templates, which are checked before anything long begins."""

from __future__ import annotations

from typing import ClassVar

from leptonc.artifact.describe import named_templates, tokenizer_of
from leptonc.artifact.templates import check_templates
from leptonc.artifact.tokenizer import stored
from leptonc.build.context import BuildContext
from leptonc.build.step import ModelStep


class StoreTokenizer(ModelStep):
    """Writes `tokenizer.json` and the chat templates.

    Raises:
        InputError: The runtime cannot use one of them as transformers does.
    """

    name: ClassVar[str] = "tokenizer"
    several_parts: ClassVar[bool] = True

    def run(self, context: BuildContext) -> BuildContext:
        source, writer = context.source, context.writer
        check_templates(source, tokenizer_of(source, context.captured).special_tokens)
        writer.add("tokenizer.json", stored(source.tokenizer_json))
        if source.chat_template:
            writer.add("chat_template.jinja", source.chat_template.encode())
        for name, path in named_templates(source).items():
            writer.add(path, source.chat_templates[name].encode())
        return context
