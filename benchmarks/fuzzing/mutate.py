"""Changes to JSON and to bytes: the values that readers trip over, in the places where they look."""

from __future__ import annotations

import json
import random
from typing import Any

NUMBERS = (
    0, 1, -1, 2, 3, 5, 7, 8, 16, 63, 64, 127, 128, 255, 256, 1023, 2**15, 2**16, 10**5, 10**6, 2**24, 2**31 - 1, 2**31,
    2**32 - 1, 2**32, 2**53 + 1, 2**59 + 4, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -2, -128, -(2**31),
    -(2**63), 0.5, -0.0, 1e-45, 1e-300, 3.5e38, 1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
TEXTS = (
    "", " ", "\0", "a", "a\nb", "..", "../x", "/", "/dev/zero", "C:\\x", "\\", "%s%n%99999d", "{{ 7 * 7 }}", "nan",
    "1e9",
    "null", "true", "é", "e\u0301", "\ud800", "\ufeff", "\u202e", "🦙", "日本語", "<s>", "</s>",
    "<|im_start|>", "<pad>",
    "float32", "int4", "bfloat16", "manifest.json", "model.safetensors", "$(id)", "a" * 300, "x" * 5000, "é" * 1000,
)  # fmt: skip
LONG = 50_000  # characters of what is put in a second time


def times(value: Any, count: int) -> list[Any]:
    """Returns a list of so many of a value, or of as many as are 2 MB of JSON."""
    return [value] * max(1, min(count, 2_000_000 // len(json.dumps(value))))


def hostile(rng: random.Random, depth: int = 0) -> Any:
    """Returns some value that nobody expects."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice(TEXTS)
    if kind == 7 or depth > 2:
        return rng.choice((None, True, False))
    if kind == 8:
        return [hostile(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 9)))]
    return {rng.choice(TEXTS): hostile(rng, depth + 1) for _ in range(rng.randrange(3))}


def place(rng: random.Random, value: Any) -> tuple[Any, Any] | None:
    """Returns a container within a value and a key of it, as likely high up as deep down; None where there is none."""
    found = None
    while isinstance(value, (dict, list)) and value:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        found, value = (value, key), value[key]
        if rng.random() < 0.3:
            break
    return found


def change(rng: random.Random, value: Any) -> Any:
    """Changes JSON data in one place, in place where it can; returns it."""
    at = place(rng, value)
    if at is None:
        return hostile(rng)
    holder, key = at
    old = holder[key]
    how = rng.randrange(12)
    if how < 4:
        holder[key] = hostile(rng)
    elif how == 4:
        del holder[key]
    elif how == 5 and isinstance(old, (int, float)):
        holder[key] = rng.choice((old + 1, old - 1, -old, 2 * old, str(old), [old], not old))
    elif how == 5 and isinstance(old, str):
        holder[key] = rng.choice((old + "x", old[:-1], old.upper(), old * 3, [old], old + "\0", old[::-1]))
    elif how == 6:
        holder[key] = rng.choice(([old], {"a": old}, [old, old], str(old)[:200]))
    elif how == 7 and isinstance(holder, list):
        holder[key:key] = [old] * rng.choice((1, 2, 50))
    elif how == 8 and isinstance(holder, dict):
        holder[rng.choice((*TEXTS, *map(str, holder)))] = old
    elif how == 9:
        other = place(rng, value)
        text = json.dumps(other[0][other[1]]) if other is not None else "null"
        holder[key] = json.loads(text) if len(text) < LONG else None
    elif how == 10 and isinstance(old, list):
        rng.shuffle(old)
    elif how == 11 and isinstance(old, list) and old:
        holder[key] = old[: rng.randrange(len(old))]
    else:
        holder[key] = hostile(rng)
    return value


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """Writes JSON, now and then in a way that is not quite JSON."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    if rng.random() < 0.93:
        return text.encode("utf-8", "surrogatepass")
    how = rng.randrange(8)
    if how == 0:
        text = text[: rng.randrange(len(text) + 1)]
    elif how == 1:  # a key twice
        text = text.replace("{", '{"a": 1, "a": 2, ', 1) if "{" in text else text * 2
    elif how == 2:
        depth = rng.choice((50, 500, 5000, 200_000))
        text = text.replace(": ", ": " + "[" * depth + "]" * depth + ', "b": ', 1)
    elif how == 3:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")), "surrogatepass")
    elif how == 4:
        text += rng.choice(("\0", "{}", "]", " ", "\n", "// x", text))
    elif how == 5:
        text = text.replace(
            ": ", f": {rng.choice(('1e9999', '-', '1' * 5000, 'NaN', '0x10', '01', 'undefined'))}, 'x': ", 1
        )
    elif how == 6:
        text = rng.choice(("", " ", "null", "0", "[]", "{}", '""', "[" * 100_000))
    return mutate(rng, text.encode("utf-8", "surrogatepass"))


def mutated_json(rng: random.Random, text: bytes) -> bytes:
    """Returns a document with one to three changes."""
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = change(rng, value)
    return json_bytes(rng, value)


def integer(rng: random.Random, width: int) -> bytes:
    """Returns a number of so many bytes, low ones first."""
    return (int(rng.choice([n for n in NUMBERS if isinstance(n, int)])) % 256**width).to_bytes(width, "little")


def varint(value: int) -> bytes:
    """Returns a number as protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def mutate(rng: random.Random, data: bytes, most: int = 4) -> bytes:
    """Returns bytes with one to four changes: bits, numbers, what is cut, doubled, moved or put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at, how = rng.randrange(len(out) + 1), rng.randrange(9)
        if how < 2 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif how == 2 and at < len(out):
            out[at] = rng.randrange(256)
        elif how < 5:
            width = rng.choice((1, 2, 4, 8))
            out[at : at + width] = integer(rng, width)
        elif how == 5:
            end = at + rng.choice((1, 4, 16, 200))
            out[at:at] = out[at:end]
        elif how == 6:
            del out[at : at + rng.choice((1, 2, 8, 64))]
        elif how == 7:
            put = rng.choice((b"\0", b"\xff" * 9, varint(rng.choice((2**31, 2**63, 2**64 - 1))), rng.randbytes(5)))
            out[at:at] = put
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)
