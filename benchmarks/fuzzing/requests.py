"""Calls of a model's methods, as Python text: their arguments are what callers get wrong."""

from __future__ import annotations

import functools
import inspect
import random
import types
from typing import Any

import numpy as np

from runtime_edge.messages import ChatOptions
from runtime_edge.model import Model
from runtime_edge.request import Options


class Odd:
    """An object that is nothing, and whose text is long."""

    def __repr__(self) -> str:
        return "odd" * 1000


class Index:
    """An object that says that it is a whole number, and is none."""

    def __index__(self) -> int:
        raise ValueError("no number")


class Float:
    """An object that says that it is a number, and is none."""

    def __float__(self) -> float:
        raise OverflowError("no number")


class Endless:
    """Yields without end what a caller forgot to bound."""

    def __iter__(self) -> Any:
        return iter(range(10**4))


NAMES = {
    "np": np,
    "nan": float("nan"),
    "inf": float("inf"),
    "Odd": Odd,
    "Index": Index,
    "Float": Float,
    "Endless": Endless,
}
_VALUES = (
    "None", "True", "False", "0", "1", "-1", "2", "3", "0.0", "1.0", "0.5", "-0.5", "1e-45", "1e-320", "1e38",
    "3.5e38", "1e308",
    "nan", "inf", "-inf", "2**31", "2**63", "2**64", "-2**63", "10**400", "np.int64(3)", "np.float16(0.5)",
    "np.float32('nan')",
    "np.array(1)", "np.array([1, 2])", "np.array([])", "np.bool_(True)", "np.array(['a'])", "np.uint64(2**64 - 1)",
    "1j", "''",
    "'a'", "'3'", "'\\0'", "'\\ud800'", "'é'", "b'a'", "[]", "['']", "['a']", "['a', None]", "['a'] * 50", "[1]",
    "[[1]]", "{}",
    "{'a': 1}", "{1, 2}", "(1,)", "range(3)", "iter(['a'])", "Odd()", "Index()", "Float()", "Endless()", "object",
    "lambda: 1",
    "'x' * 10**5", "[0] * 10**4",
)  # fmt: skip
_TEXTS = (
    "'hello'", "''", "'a' * 300", "'é🦙\\0'", "'\\ud800'", "'<eos>' * 9", "[1, 2, 3]", "[0]", "np.array([1, 2])",
    "(1, 2)", "[256]",
    "[259]", "[2**40]", "[-1]", "[1.5]", "['a']", "[True]", "range(5)", "[1] * 300",
)  # fmt: skip
_CONTENTS = (
    "'hi'", "''", "None", "3", "['a']", "[{'type': 'text', 'text': 'a'}]", "[{'type': 'image'}]", "[{}]", "{}",
    "'\\ud800'", "Odd()",
    "'a' * 10**5", "b'a'", "nan", "[[[['a']]]]",
)  # fmt: skip
_METHODS = {
    "model": ("generate", "stream", "score", "logits", "logits_blocks", "tokenize", "detokenize", "encode", "classify"),
    "encoder": ("encode", "encode_query", "encode_document", "classify", "rerank", "tokenize", "generate"),
    "model.context()": ("generate", "score"),
}


@functools.cache
def parameters(method: str) -> tuple[int, tuple[str, ...]]:
    """Returns how many arguments a method must have, and the names of its options."""
    known = inspect.signature(getattr(Model, method)).parameters.values()
    needed = sum(each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD for each in known) - 1  # self
    names = [each.name for each in known if each.default is not each.empty or each.kind is each.KEYWORD_ONLY]
    if method.startswith("encode_"):
        return needed, parameters("encode")[1]
    if any(each.kind is each.VAR_KEYWORD for each in known):
        names += (Options if method in ("generate", "stream") else ChatOptions).__annotations__
    return needed, tuple(dict.fromkeys(names))


def message(rng: random.Random) -> str:
    """Returns a chat message."""
    role = rng.choice(("'user'", "'user'", "'assistant'", "'system'", "'tool'", "''", "None", "3", "'\\ud800'"))
    fields = [f"'role': {role}", f"'content': {rng.choice(_CONTENTS)}"]
    if rng.random() < 0.2:
        fields.append(f"{rng.choice(('3', repr('name'), repr('tool_calls'), repr('a')))}: {rng.choice(_VALUES)}")
    if rng.random() < 0.1:
        del fields[rng.randrange(len(fields))]
    return "{" + ", ".join(fields) + "}"


def prompt(rng: random.Random) -> str:
    """Returns a prompt."""
    kind = rng.randrange(10)
    if kind < 5:
        return rng.choice(_TEXTS)
    if kind < 8:
        return "[" + ", ".join(message(rng) for _ in range(rng.choice((1, 1, 2, 3)))) + "]"
    return rng.choice(_VALUES)


def call(rng: random.Random) -> str:
    """Returns a call, of a method that generates as often as not, with names that it has."""
    owner, method = "model", rng.choice(("generate", "generate", "stream"))
    if rng.random() < 0.4:
        owner = rng.choice(list(_METHODS))
        method = rng.choice(_METHODS[owner])
    needed, names = parameters(method)
    several = f"[{rng.choice(_TEXTS)}, {rng.choice(_TEXTS)}]"
    values = [rng.choice((prompt(rng), prompt(rng), rng.choice(_VALUES), several)) for _ in range(needed)]
    count = min(len(names), rng.choice((0, 1, 1, 1, 2, 3)))
    options = {name: rng.choice(_VALUES) for name in rng.sample(names, count)}
    if "max_new_tokens" in names:
        options.setdefault("max_new_tokens", "3")
    return f"{owner}.{method}({', '.join([*values, *(f'{name}={value}' for name, value in options.items())])})"


def is_lazy(value: Any) -> bool:
    """Whether a call has done nothing yet."""
    return isinstance(value, types.GeneratorType) or (hasattr(value, "__next__") and hasattr(value, "close"))
