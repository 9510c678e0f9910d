"""`docs/reference/recipes.md`, made of the options of a build."""

from __future__ import annotations

import re
from itertools import groupby

from docs.generate import MADE, marked, table
from docs.generate.schema import described
from leptonc.build.recipe import SHIPPED
from leptonc.options import BuildOptions, LayerRule, Option, kinds_of, options_of

_HEAD = """# Fields of a recipe

A recipe is a TOML file with options of `leptonc build`, and exceptions for single layers.
[The guide](../guides/recipes.md) shows how to use one. The [command line](cli.md#build) tells all of the options and
their defaults.

- An option on the command line, or in the environment, wins over the recipe's.
- A `calibration` file is looked for beside the recipe. `max_loss` may be a text: `"3%"`.
- An unknown field, a value of another type, and a pattern that matches no layer are errors, before any long step.

"""
_LAYERS = """
## Exceptions for layers

A table `[[layers]]` has `match` and at least one other field. Where several tables match a layer, a later one wins.
What no table says of a layer is what the top of the recipe says.

"""
_SHIPPED = """
## Shipped recipes

`leptonc build --recipe NAME` takes one of these by its name.

"""
_TYPES = {"str": "text", "Path": "file", "int": "integer", "float": "number", "bool": "true or false"}


def page() -> str:
    """Returns the page."""
    kinds = kinds_of(BuildOptions)
    fields = [(name, option) for name, option in options_of(BuildOptions).items() if option.in_recipe]
    parts = [MADE, _HEAD]
    order = list(dict.fromkeys(option.group or "Other" for _, option in fields))
    fields = sorted(fields, key=lambda field: order.index(field[1].group or "Other"))  # as `--help` has them
    for group, members in groupby(fields, key=lambda field: field[1].group or "Other"):
        rows = ((f"`{name}`", _values(kinds[name], option), _meaning(option)) for name, option in members)
        parts.append(f"## {group}\n\n{table(('field', 'values', 'meaning'), rows)}\n")
    _, meanings = described(LayerRule)
    layers = ((f"`{name}`", meaning) for name, meaning in meanings.items())
    parts.append(_LAYERS.lstrip("\n") + table(("field", "meaning"), layers))
    shipped = (
        (f"`{path.stem}`", _comment(path.read_text(encoding="utf-8"))) for path in sorted(SHIPPED.glob("*.toml"))
    )
    parts.append(_SHIPPED + table(("name", "what it builds"), shipped))
    return "".join(parts)


def _values(kind: str, option: Option) -> str:
    """Returns what a field's value may be."""
    quote = '"' if kind == "str" else ""
    return ", ".join(f"`{quote}{value}{quote}`" for value in option.listed()) or _TYPES[kind]


def _meaning(option: Option) -> str:
    """Returns the first sentence of an option's help."""
    return marked(re.split(r"(?<=[a-z`])\. ", option.help)[0].rstrip(".") + ".")


def _comment(text: str) -> str:
    """Returns the comment at the start of a recipe."""
    return " ".join(re.findall(r"^# ?(.*)$", text.split("\n\n")[0], re.M))
