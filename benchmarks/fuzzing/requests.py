"""Calls of a model's methods, as Python text: their arguments are what callers get wrong."""

from __future__ import annotations

import random
import types
from typing import Any

import numpy as np


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
    "'a'", "'3'", "'\\0'", "'\\ud800'", "'é'", "b'a'", "[]", "['']", "['a']", "['a', None]", "['a'] * 500", "[1]",
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
_OPTIONS = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop",
    "stop_token_ids", "cancel",
    "drafts", "tools", "chat_template_kwargs", "deadline", "unknown",
)  # fmt: skip
_CALLS = (
    "model.score", "model.logits", "model.tokenize", "model.encode", "model.classify", "encoder.encode",
    "encoder.classify",
    "encoder.generate", "model.detokenize", "model.render", "model.context().generate",
)  # fmt: skip


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
    """Returns a call."""
    if rng.random() < 0.75:
        method = rng.choice(("model.generate", "model.generate", "model.stream"))
        options = {name: rng.choice(_VALUES) for name in rng.sample(_OPTIONS, rng.choice((0, 1, 1, 1, 2, 3)))}
        options.setdefault("max_new_tokens", "3")
        return f"{method}({prompt(rng)}, {', '.join(f'{name}={value}' for name, value in options.items())})"
    value = rng.choice((prompt(rng), rng.choice(_VALUES), f"[{rng.choice(_TEXTS)}, {rng.choice(_TEXTS)}]"))
    more = f", {rng.choice(('batch_size', 'prompt', 'prompt_name', 'truncate_dim', 'unknown'))}={rng.choice(_VALUES)}"
    return f"{rng.choice(_CALLS)}({value}{more if rng.random() < 0.3 else ''})"


def is_lazy(value: Any) -> bool:
    """Whether a call has done nothing yet."""
    return isinstance(value, types.GeneratorType) or (hasattr(value, "__next__") and hasattr(value, "close"))
