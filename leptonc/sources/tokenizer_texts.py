"""Texts of many kinds on which tokenizers are compared."""

from __future__ import annotations

from collections.abc import Sequence

_ALONE = 256  # added tokens that have texts of their own; of more, many share one
_TOGETHER = 32

PAIRS = (("What is a cat?", "A Cat is an animal."), ("", "Ünïcode  text"), ("a", ""))

TEXTS = (
    "",
    " ",
    "  ",
    "\n",
    "\t",
    "a",
    "A",
    ".",
    "Hello World",
    "hello world",
    "HELLO WORLD",
    " Hello World",
    "Hello World ",
    "  two  spaces  and   three   ",
    "tabs\tand\t\tmore\t",
    "lines\nand\n\nmore\n\n\n",
    "windows\r\nlines\r\n",
    "\n \n\t\n x",
    "The quick brown fox jumps over the lazy dog.",
    "Don't, can't, won't! I'm, you're; they've (we'd).",
    "It 's n't 'm . , ! ?",
    "caf\u00e9 na\u00efve r\u00e9sum\u00e9 \u00c5ngstr\u00f6m \u0130stanbul \u1e9e\u00df",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m o\u0302\u0323",
    "\ufb01ne \ufb02ow \u00bd \u2460 \u210c \u2126 \uff21\uff22\uff23 \uff11\uff12",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8",
    "mixed\u4e2d\u6587and\u65e5\u672c English",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u1112\u1161\u11ab \u1100\u1173\u11af",
    "\U0001f600 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "math: \u222b\u2211\u221a\u221e \u2260 \u2264 \U0001d465\u00b2 \u20ac\u00a3\u00a5",
    "def f(x):\n    return {'a': [x**2, 0x1F]}  # code\n\n\tif x:\n\t\tpass\n",
    '<html><body class="a">&amp;</body></html>',
    "SELECT * FROM t WHERE a='b';",
    "0 1 12 123 1234 12345 1,234,567.89 1e-10 3.14 -7 2026-11-30 007",
    "\u0661\u0662\u0663 \u216b \u00b2\u00b3",
    "https://example.com/a/b?c=d&e=f#g user@example.org",
    "C:\\path\\to\\file.txt ~/x_y-z",
    "``quoted'' \"text\" \u201ccurly\u201d \u2018single\u2019 \u00abguillemets\u00bb \u2013 \u2014 \u2026",
    "a\u00a0b\u2003c\u3000d\u200be\ufefff\u00adg",
    "\u0000\u0001\u0008\u001b\u007f\u0085 control",
    "\u2028\u2029 separators \u202eoverride\u202c",
    "\u2581\u2581visible\u2581space\u2581",
    "##piece \u0120byte \u0108level <0x41> </w> @@",
    "[UNK] <unk> <s> </s> <pad> [CLS] [SEP] [MASK]",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "CamelCaseAndSnake_case_and-kebab-case",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "x" * 90,
    "y" * 300,
    "ab" * 600,
    " " * 40 + "far",
    "!" * 50,
    "\n" * 20,
    "\u0301\u0301 \u200d \ufe0f",
    "\ue000\uffff\U000e0001\U0010ffff",
    "An ending without a stop",
    "trailing spaces   ",
    "   leading spaces",
    "one.two,three;four:five!six?seven",
    "\u00c0\u00c8\u00cc\u00d2\u00d9 \u00e0\u00e8\u00ec\u00f2\u00f9 \u0104\u0118",
)


def texts_for(added: Sequence[str], named: Sequence[str]) -> list[str]:
    """Returns the texts for a tokenizer.

    Args:
        added: Its added tokens.
        named: Tokens that have a name in its configuration; they may be in neither list.
    """
    texts = list(TEXTS)
    alone = list(dict.fromkeys([*named, *added[:_ALONE]]))
    for token in alone:
        texts += [token, f"word{token}word", f"A  {token}  b", f"\u00c9{token} {token}{token}\n{token}.", token.upper()]
    rest = added[_ALONE:]
    for start in range(0, len(rest), _TOGETHER):
        chunk = rest[start : start + _TOGETHER]
        texts += ["".join(chunk), " A".join(chunk), " ".join(chunk)]
    return texts
