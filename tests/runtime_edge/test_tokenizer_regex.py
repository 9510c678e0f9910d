"""Expressions of real tokenizers pass; those that can take exponential or cubic time are refused."""

from __future__ import annotations

import pytest

from runtime_edge.tokenizer_regex import ExpressionError, shortest_match

_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
REAL = {
    "gpt2": (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", 1),
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+", 1,
    ),
    "gpt-4o": (rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}(?i:'s|'t|'re)?|\p{{N}}{{1,3}}|\s*[\r\n]+|\s+(?!\S)|\s+", 1),
    "possessive": (r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s", 1),
    "exaone4": (r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|\s*[\r\n]|\s+(?!\S)|\s+", 1),
    "bloom": (r" ?[^(\s|[.,!?…。，、।۔،])]+", 1),
    "digits from the right": (r"\d{1,3}(?=(?:\d{3})*\b)", 1),
    "chameleon": (r"<sentinel:[0-9]+>|(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z|([\t\n]|    |  )|\d|[\p{L}\p{M}]+", 1),
    "sets of sets": (r"[\p{Han}]+|[\p{Lu}\p{Lt}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+(?i:'s)?|[]a]", 1),
    "deepseek": (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}]?[\p{L}\p{M}]+|\s+""", 1),
    "runs of spaces": (" {2,}", 2),
    "a place": (r"(?<!\n)^", 0),
    "optional": ("a*", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_expressions_of_real_tokenizers(name: str) -> None:
    expression, shortest = REAL[name]
    assert shortest_match(expression) == shortest


@pytest.mark.parametrize(
    "expression",
    [
        "(a+)+$", "(a|aa)+$", "(a|a)*b", "(.*)*x", "(x+x+)+y", "(a?){30}a{30}", "a?" * 30 + "a" * 30, "a*a*b",
        "(?:a|b)" * 17 + "c", "((a{100}){100})", "(?=(a+)+b)c", r"(\w+\s?)*$", r"(a)\1", r"\g<0>", "(((a*)*)*)*b",
        "(?:(?:a|b)*c)*d", "a{0,500}a{0,500}a{0,500}b", "(a+|b)+$|c", "((a+)+)$", "(?:x|(a+)+)$", "(?i)(a+)+b",
        "(?:(a+)+)?b", "(a+)+?b", "(a{2,})*b", "^(([a-z])+.)+[A-Z]([a-z])+$", "(" * 40 + "a" + ")" * 40, "(a", "a)",
        "[a", "(?{x}a)", "a" * 10_000,
    ],
)  # fmt: skip
def test_expressions_that_are_refused(expression: str) -> None:
    with pytest.raises(ExpressionError, match="expected"):
        shortest_match(expression)
