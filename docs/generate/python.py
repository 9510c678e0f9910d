"""`docs/reference/python.md`, made of the docstrings of the public API, which griffe reads."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe

import runtime_edge
from docs.generate import MADE, marked, table
from leptonc.build import to_artifact

_HEAD = """# Python API

```python
import runtime_edge

with runtime_edge.load("smollm2.lepton") as model:
    print(model.generate("Once upon a time", max_new_tokens=40).text)
```

A model has the methods of its task: a language model those of [text](#text), an encoder those of
[embeddings, labels and scores](#embeddings-labels-and-scores). Threads may share a model. There are
[programs to copy](../../examples/README.md) and a page of [errors](exit-codes.md#errors-in-a-program).
"""
# What the page has, in a reader's order: headings, and under each the objects with the names that programs use.
_SECTIONS: dict[str, tuple[str, ...]] = {
    "Opening a model": ("runtime_edge.load", "runtime_edge.verify", "runtime_edge.Model", "runtime_edge.Model.close"),
    "Text": tuple(
        f"runtime_edge.Model.{name}"
        for name in ("generate", "stream", "score", "logits", "logits_blocks", "tokenize", "detokenize", "context")
    ),
    "Embeddings, labels and scores": tuple(
        f"runtime_edge.Model.{name}" for name in ("encode", "encode_query", "encode_document", "classify", "rerank")
    ),
    "What comes back": tuple(
        f"runtime_edge.{name}" for name in ("Generation", "Chunk", "Stats", "Classification", "Context", "Manifest")
    ),
    "Warnings": ("runtime_edge.BackendWarning", "runtime_edge.RequestWarning"),
    "Building": ("leptonc.build.to_artifact.build", "leptonc.build.to_artifact.BuildResult"),
}
_NOTES = {
    "runtime_edge.Manifest": "The meaning of each field is in [manifest.json](manifest.md).",
    "leptonc.build.to_artifact.build": "The fields of `BuildOptions` are the options of [`build`](cli.md#build).",
}
# Aliases of the code, as a reader knows them.
_TYPES = {
    "Floats": "NDArray[float32]",
    "Event": "threading.Event",
    "Prompt": "str | token ids | messages",
    "Prompts": "list of prompts",
    "Count": "int",
    "Size": "int",
}


def page() -> str:
    """Returns the page."""
    build = Path(to_artifact.__file__)  # in a folder without a module of its own, which griffe does not enter
    modules = {
        "runtime_edge": griffe.load("runtime_edge", resolve_aliases=True),
        "leptonc": griffe.visit(to_artifact.__name__, filepath=build, code=build.read_text(encoding="utf-8")),
    }
    parts = [MADE, _HEAD]
    for heading, paths in _SECTIONS.items():
        parts.append(f"\n## {heading}\n")
        for path in paths:
            parts.extend(_entry(path, _member(modules, path)))
    text = re.sub(r"\n{3,}", "\n\n", "".join(parts))
    return text.replace("docs/reference/artifact.md", "[artifact.md](artifact.md)").rstrip("\n") + "\n"


def names() -> set[str]:
    """Returns the names of `runtime_edge` that the page has."""
    return {path.split(".")[1] for paths in _SECTIONS.values() for path in paths if path.startswith("runtime_edge.")}


def _member(modules: dict[str, Any], path: str) -> Any:
    """Returns griffe's object for what a program calls by a name; inherited members too."""
    package, *inner = path.split(".")
    if package == "runtime_edge":  # names are imported when asked for: their own modules say where they are
        module = getattr(runtime_edge, inner[0]).__module__.split(".")[1:]
        found = modules[package][".".join([*module, inner[0]])]
        return found.all_members[inner[1]] if len(inner) > 1 else found
    return modules[package][inner[-1]]


def _entry(path: str, item: Any) -> Iterator[str]:
    """Yields the text of one object."""
    name = path.removeprefix("runtime_edge.").removeprefix("leptonc.build.to_artifact.")
    owner, _, last = name.rpartition(".")
    shown = f"{owner.lower()}.{last}" if owner else name
    yield f"\n### {shown}\n\n"
    if item.kind.value == "function":
        yield f"```text\n{_signature(shown, item)}\n```\n\n"
    if item.docstring is None:
        return
    for section in item.docstring.parse("google", warnings=False):
        yield from _section(section, item)
    if path in _NOTES:
        yield f"{_NOTES[path]}\n"


def _section(section: Any, item: Any) -> Iterator[str]:
    kind, value = section.kind.value, section.value
    if kind == "text":
        yield f"{marked(value)}\n\n"
    elif kind in ("parameters", "attributes"):
        types = dict(_types(item))
        rows = [
            (
                f"`{'**' * _is_open(types.get(entry.name))}{entry.name}`",
                _type(types.get(entry.name)),
                marked(entry.description),
            )
            for entry in value
        ]
        rows += _properties(item) if kind == "attributes" else []
        yield table(("argument" if kind == "parameters" else "field", "type", "meaning"), rows) + "\n"
    elif kind == "returns":
        text = " ".join(" ".join(entry.description.split()) for entry in value)
        yield f"Returns {text[0].lower()}{text[1:]}\n\n"
    elif kind == "raises":
        errors = [(_errors(str(entry.annotation)), marked(entry.description)) for entry in value]
        yield table(("raises", "where"), errors) + "\n"
    elif kind == "admonition" and value.kind == "example":
        yield f"```python\n{textwrap.dedent(value.contents)}\n```\n\n"
    else:
        raise ValueError(f"{item.path}: expected a section that this page knows, found {kind}")


def _errors(names: str) -> str:
    return ", ".join(f"`{name}`" for name in re.findall(r"\w+", names))


def _is_open(type_: str | None) -> bool:
    """Whether an argument stands for any options of a record."""
    return bool(type_) and str(type_).startswith("Unpack")


def _properties(item: Any) -> list[tuple[str, str, str]]:
    """Returns the rows of a class's properties that are not its fields."""
    described = item.docstring.value
    return [
        (f"`{name}`", _type(str(member.annotation or "")), marked(member.docstring.value))
        for name, member in item.members.items()
        if "property" in member.labels and member.docstring and not name.startswith("_") and f"{name}:" not in described
    ]


def _types(item: Any) -> Iterable[tuple[str, str]]:
    """Yields the arguments or fields of an object, with their types as they are written."""
    if item.kind.value != "function":
        for name, member in item.all_members.items():
            if member.is_attribute:
                yield name, str(member.annotation or "")
        yield from ((entry.name, str(entry.annotation or "")) for entry in getattr(item, "parameters", ()))
        return
    for parameter in item.parameters:
        yield parameter.name, str(parameter.annotation or "")
        if str(parameter.annotation).startswith("Unpack"):
            yield from _options(item)


def _options(item: Any) -> Iterable[tuple[str, str]]:
    """Yields the options that a method takes as `**options`."""
    from runtime_edge.messages import ChatOptions
    from runtime_edge.request import Options

    for record in (Options, ChatOptions):
        yield from (
            (name, str(getattr(hint, "__forward_arg__", hint))) for name, hint in record.__annotations__.items()
        )


def _signature(name: str, item: Any) -> str:
    """Returns how a function is called, each argument on a line of its own where there are many."""
    arguments, is_keyword = [], False
    for parameter in item.parameters:
        kind = parameter.kind.value if parameter.kind else ""
        if parameter.name == "self":
            continue
        if kind == "keyword-only" and not is_keyword:
            arguments.append("*")
            is_keyword = True
        star = "**" if kind == "variadic keyword" else ""
        default = f"={parameter.default}" if parameter.default is not None and not star else ""
        arguments.append(f"{star}{parameter.name}{default}")
    result = f" -> {_named(str(item.returns))}" if item.returns else ""
    call = f"{name}({', '.join(arguments)}){result}"
    return call if len(call) <= 100 else "\n".join(textwrap.wrap(call, 100, subsequent_indent="    "))


def _type(text: str | None) -> str:
    """Returns a type for a table's cell."""
    return f"`{_named(text)}`" if text and not _is_open(text) else ""


def _named(text: str) -> str:
    """Returns a type with what a reader knows in the place of aliases."""
    text = re.sub(r"Annotated\[(.*), (?:msgspec\.)?Meta\(.*\)\]", r"\1", text)  # bounds are the manifest's
    return re.sub(r"\b(?:" + "|".join(_TYPES) + r")\b", lambda found: _TYPES[found[0]], text)
