"""Markdown of an answer while it comes: what is finished, what is still open, and how both look."""

from __future__ import annotations

import re
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, MarkdownElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

# Nothing that a model writes may be missing on the screen: tags, definitions, backslashes (of formulas), line feeds and
# the blanks behind them are text.
_PARSER = MarkdownIt("commonmark", {"html": False})
_PARSER.enable(["strikethrough", "table"]).disable(["escape", "image", "reference", "newline"])
_MARKER = re.compile(r"\s*(?:\d{1,9}[.)]?|[-+*]+)\s*")  # what may become an item of the list before it
_LISTS = ("bullet_list_open", "ordered_list_open")
_FENCE = "fence"

# Colours of the terminal's own, without a background, so that light and dark ones are readable.
THEME = Theme(
    {
        "markdown.code": "cyan",
        "markdown.code_block": "default",
        "markdown.h1": "bold underline",
        "markdown.h2": "bold",
        "markdown.h3": "bold",
        "markdown.h4": "bold italic",
        "markdown.h5": "italic",
        "markdown.h6": "italic",
        "markdown.block_quote": "italic",
        "markdown.item.bullet": "default",
        "markdown.item.number": "default",
        "markdown.link": "underline",
        "markdown.link_url": "default",
        "markdown.table.header": "bold",
        "markdown.table.border": "default",
    }
)


class Unfinished:
    """Text of which the finished blocks are taken off at the front."""

    def __init__(self) -> None:
        self.text = ""
        self._goes_on = True  # what is left goes on from what was taken: no blank line between them

    @property
    def gap(self) -> str:
        """What stands before the text that is left: a blank line, or nothing."""
        return "" if self._goes_on else "\n"

    def take(self) -> list[str]:
        """Returns the blocks that nothing further can change, and forgets them; often none."""
        taken, gone = [], 0
        for line, goes_on in _starts(self.text):
            taken.append(self._cut(line - gone, goes_on))
            gone = line
        return [text for text in taken if text]

    def take_code(self, kept: int) -> str:
        """Returns the lines but the last `kept` of a fence that is still open; none where there is no such fence.

        What is left begins with the fence again.
        """
        lines = self.text.split("\n")
        tokens = _PARSER.parse(self.text)
        if not tokens or tokens[0].type != _FENCE or not tokens[0].map:
            return ""
        opening, end = tokens[0].map
        count = min(len(lines) - kept, end - 1)  # the last line may be the closing fence
        if count < opening + 2:
            return ""
        taken = self.gap + "\n".join([*lines[opening:count], tokens[0].markup])
        self.text = "\n".join([lines[opening], *lines[count:]])
        self._goes_on = True
        return taken

    def take_all(self) -> list[str]:
        """Returns all that is left: the answer is over."""
        self.text += "\n\n"
        taken = [*self.take(), self._cut(self.text.count("\n") + 1, False)]
        return [text for text in taken if text]

    def _cut(self, line: int, goes_on: bool) -> str:
        """Takes the lines before `line`; `goes_on` tells whether what is left is of the same block."""
        lines = self.text.split("\n")
        taken, self.text = "\n".join(lines[:line]), "\n".join(lines[line:])
        if not taken.strip():
            return ""
        taken = self.gap + taken.strip("\n")
        self._goes_on = goes_on
        return taken


def _starts(text: str) -> list[tuple[int, bool]]:
    """Lines where blocks begin, and items of the last list, and whether each goes on in that list.

    A line that is not complete may turn out to belong to what is before it, unless a blank line is between them and it
    is no marker of an item: it begins nothing yet.
    """
    tokens = _PARSER.parse(text)
    lines = text.split("\n")
    blocks = [index for index, token in enumerate(tokens) if token.level == 0 and token.map and token.nesting >= 0]
    starts = [(token.map[0], False) for index in blocks if (token := tokens[index]).map]
    if blocks and tokens[blocks[-1]].type in _LISTS:
        items = [token for token in tokens[blocks[-1] :] if token.type == "list_item_open" and token.level == 1]
        starts += [(token.map[0], True) for token in items[1:] if token.map]
    is_settled = not _MARKER.fullmatch(lines[-1])
    return [
        (line, goes_on)
        for line, goes_on in starts
        if line < len(lines) - 1 or (is_settled and line > 0 and not lines[line - 1].strip())
    ]


class _Code(CodeBlock):
    """Code in the terminal's colours, without a frame: it is copied as it is."""

    more = ""  # what stands behind the opening fence, beside the language

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _Code:
        """See `MarkdownElement.create`."""
        language, _, more = token.info.strip().partition(" ")
        code = cls(language if re.fullmatch(r"[\w+#.-]+", language) else "text", "ansi_dark")
        code.more = more if code.lexer_name == language else token.info.strip()
        return code

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip("\n")
        highlighted = Syntax(code, self.lexer_name, theme=self.theme, background_color="default").highlight(code)
        highlighted.rstrip()
        if self.more:
            yield Text(self.more)
        highlighted.no_wrap, highlighted.overflow = False, "fold"
        yield highlighted


class _Item(ListItem):
    """An item of a list, with its number as the model wrote it."""

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        width = len(f"{last_number}. ")
        inner = console.render_lines(self.elements, options.update(width=max(1, options.max_width - width)), pad=False)
        for index, line in enumerate(inner):
            yield Segment(f"{number}. ".rjust(width) if index == 0 else " " * width)
            yield from line
            yield Segment.line()

    def render_bullet(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inner = console.render_lines(self.elements, options.update(width=max(1, options.max_width - 2)), pad=False)
        for index, line in enumerate(inner):
            yield Segment("  " if index else "\u2022 ")
            yield from line
            yield Segment.line()


class _Heading(Heading):
    """A heading at the left margin."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text: Text = self.text.copy()
        text.justify = "left"
        yield text


class Rendered(Markdown):
    """Markdown as a chat shows it: lines end where the model ended them."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
        "list_item_open": _Item,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = text
        self.parsed = _PARSER.parse(text)


def lines(console: Console, text: str, width: int) -> list[list[Segment]]:
    """Markdown as lines of at most `width` cells, without blanks at their ends; leading line feeds are blank lines."""
    rest = text.lstrip("\n")
    options = console.options.update(width=width)
    rendered = [_stripped(line) for line in console.render_lines(Rendered(rest), options, pad=False)]
    while rendered and not rendered[0]:
        del rendered[0]
    while rendered and not rendered[-1]:
        del rendered[-1]
    return [[] for _ in range(len(text) - len(rest))] + rendered


def _stripped(line: list[Segment]) -> list[Segment]:
    line = [segment for segment in line if not segment.control]
    while line and not line[-1].text.strip():
        line.pop()
    if line:
        line[-1] = line[-1]._replace(text=line[-1].text.rstrip())
    return line
