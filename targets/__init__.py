"""Device profiles: what the compiler knows about the devices that it compiles for.

One TOML file a device or family, in this folder. A profile names another with `extends` and then says only what
differs; every fact about hardware or software has its source beside it, in the table `[sources]`:

    description = "NVIDIA Jetson AGX Orin 64GB"
    extends = "jetson-orin"
    memory_gb = 64
    [sources]
    memory_gb = "NVIDIA Jetson AGX Orin Series Modules Data Sheet, DS-10662-001 v1.8"

A table `[axis.NAME."VALUE"]` holds fields that depend on the value of field NAME (the JetPack release decides which
TensorRT is there). Users change fields behind the name: `jetson-orin,jetpack=7.2,memory_gb=8`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Target", "TargetError", "axes", "load", "names"]

_PROFILES = Path(__file__).parent
_ON_COMMAND_LINE = "given behind the target's name"


class TargetError(ValueError):
    """A target that does not exist, or a profile or override that breaks the rules.

    Args:
        message: What was expected and what was found.
        hint: What the user can do about it, or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Target:
    """A device, or a family of devices, to compile for.

    Attributes:
        name: The profile's name, without overrides.
        description: One line for people.
        backend: What runs the artifact: `onnxruntime`, `tensorrt` or `tensorrt-rtx`.
        arch: The processor's architecture, as `platform.machine()` names it on Linux, or `any`.
        precisions: Number formats that weights can have on the device with this backend.
        weights: The weight scheme that a build takes when none is asked for.
        max_seq_len: Tokens of context that a build provides for at most when none is asked for.
        compute_capabilities: CUDA compute capabilities of the GPUs.
        sparse_capabilities: Those of them whose tensor cores skip zeros where two of four weights are zero.
        memory_gb: Memory in GB (10^9 or 2^30 bytes, as the maker counts), shared with the CPU on a Jetson.
        bandwidth_gb_s: Peak memory bandwidth in 10^9 bytes a second.
        tensorrt: Versions of TensorRT that the device can have, as a version range.
        jetpack: The JetPack release of a Jetson.
        python: The Python that the device has, as `3.10`.
        glibc: The version of its C library, which decides which wheels it takes.
        overrides: What the user changed, as written.
        lineage: This profile's name and those that it extends, nearest first.
        sources: Where each fact comes from, by field.
    """

    name: str
    description: str
    backend: str
    arch: str
    precisions: tuple[str, ...]
    weights: str
    max_seq_len: int
    compute_capabilities: tuple[str, ...] = ()
    sparse_capabilities: tuple[str, ...] = ()
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None
    tensorrt: str | None = None
    jetpack: str | None = None
    python: str | None = None
    glibc: str | None = None
    overrides: tuple[str, ...] = ()
    lineage: tuple[str, ...] = ()
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def spec(self) -> str:
        """The name with its overrides: `load(target.spec)` gives this target again."""
        return ",".join((self.name, *self.overrides))

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain data, for JSON."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**record, "sources": dict(self.sources)}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _positive(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _one_of(*choices: str) -> Callable[[object], str | None]:
    return lambda value: value if isinstance(value, str) and value in choices else None


def _all_match(pattern: str) -> Callable[[object], tuple[str, ...] | None]:
    def check(value: object) -> tuple[str, ...] | None:
        if not isinstance(value, list) or not value:
            return None
        return tuple(value) if all(isinstance(item, str) and re.fullmatch(pattern, item) for item in value) else None

    return check


def _matches(pattern: str) -> Callable[[object], str | None]:
    return lambda value: value if isinstance(value, str) and re.fullmatch(pattern, value) else None


def _number(text: str) -> object:
    try:
        return int(text) if text.isascii() and text.isdigit() else float(text)
    except ValueError:
        return text


def _as_is(text: str) -> object:
    return text


def _list(text: str) -> object:
    return text.split("+")


_BOUND = r"(==|<=|>=|<|>)\d+(\.\d+)*"
_PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "fp4", "int8", "int4", "int2")


@dataclass(frozen=True)
class _Field:
    """What a field may hold: `check` gives the value, or None where it does not fit `expected`."""

    expected: str
    check: Callable[[object], Any]
    from_text: Callable[[str], object] = _as_is
    is_fact: bool = False  # needs a source


_FIELDS: dict[str, _Field] = {
    "description": _Field("a text", _text),
    "backend": _Field("one of onnxruntime, tensorrt, tensorrt-rtx", _one_of("onnxruntime", "tensorrt", "tensorrt-rtx")),
    "arch": _Field("one of any, x86_64, aarch64", _one_of("any", "x86_64", "aarch64")),
    "precisions": _Field(f"some of {', '.join(_PRECISIONS)}", _all_match("|".join(_PRECISIONS)), _list, is_fact=True),
    "weights": _Field("one of fp32, fp16, fp8, int8, int4", _one_of("fp32", "fp16", "fp8", "int8", "int4")),
    "max_seq_len": _Field("a whole number of tokens above 0", _count, _number, is_fact=True),
    "compute_capabilities": _Field("versions such as 8.7", _all_match(r"\d{1,2}\.\d"), _list, is_fact=True),
    "sparse_capabilities": _Field("versions such as 8.7", _all_match(r"\d{1,2}\.\d"), _list, is_fact=True),
    "memory_gb": _Field("a number of GB above 0", _positive, _number, is_fact=True),
    "bandwidth_gb_s": _Field("a number of GB/s above 0", _positive, _number, is_fact=True),
    "tensorrt": _Field("a version range such as >=10.3;<10.8", _matches(rf"{_BOUND}(;{_BOUND})*"), is_fact=True),
    "jetpack": _Field("a version such as 6.2", _matches(r"\d+\.\d+(\.\d+)?")),
    "python": _Field("a version such as 3.10", _matches(r"3\.\d{1,2}"), is_fact=True),
    "glibc": _Field("a version such as 2.35", _matches(r"2\.\d{1,2}"), is_fact=True),
}
_TABLES = ("extends", "sources", "axis")
_FIXED = ("description",)  # not the user's to change
_REQUIRED = ("description", "backend", "arch", "precisions", "weights", "max_seq_len")


def names(*, directory: Path = _PROFILES) -> list[str]:
    """Names of all targets, sorted."""
    return sorted(path.stem for path in directory.glob("*.toml"))


def load(spec: str, *, directory: Path = _PROFILES) -> Target:
    """Loads a target by its name, with overrides behind it.

    Args:
        spec: `NAME` or `NAME,FIELD=VALUE,…`; values of lists are joined by `+`.
        directory: Where the profiles are.

    Raises:
        TargetError: The target or a field is unknown, a value does not fit, or a profile breaks the rules.
    """
    name, *overrides = (part.strip() for part in spec.split(","))
    profile = _resolve(name, (), directory)
    lineage = profile.pop("lineage")
    axes, sources = profile.pop("axis"), profile.pop("sources")
    given: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = (part.strip() for part in override.partition("="))
        allowed = [field for field in _FIELDS if field not in _FIXED]
        if not equals:
            raise TargetError(f"target {spec!r}: expected FIELD=VALUE after a comma, found {override!r}")
        if key not in allowed:
            raise TargetError(f"target {spec!r}: unknown field {key!r}", hint=_suggest(key, allowed))
        if key in given:
            raise TargetError(f"target {spec!r}: expected each field once, found {key!r} twice")
        given[key] = _checked(f"target {spec!r}", key, _FIELDS[key].from_text(text))
    fields = {**profile, **given}
    for axis, values in axes.items():
        value = fields.get(axis)
        if value not in values:
            raise TargetError(
                f"target {spec!r}: expected {axis} to be one of {', '.join(values)}, found {value}",
                hint=f"say another release with `--target {name},{axis}={next(reversed(values))}`",
            )
        # What the user gave stands above what follows from the axis.
        fields = {**fields, **values[value]["fields"], **given}
        sources = {**sources, **values[value]["sources"]}
    missing = [field for field in _REQUIRED if field not in fields]
    if missing:
        raise TargetError(f"target {name!r}: expected the fields {', '.join(_REQUIRED)}, found no {', '.join(missing)}")
    if fields["weights"] not in fields["precisions"]:
        raise TargetError(
            f"target {spec!r}: expected weights to be one of its precisions, {', '.join(fields['precisions'])}, "
            f"found {fields['weights']}"
        )
    if "sparse_capabilities" in fields:  # a family's profile names them for all of its series
        own = fields.get("compute_capabilities", ())
        sparse = fields["sparse_capabilities"]
        fields["sparse_capabilities"] = tuple(capability for capability in sparse if capability in own)
    kept = {field: source for field, source in sources.items() if fields.get(field)}
    kept.update(dict.fromkeys(given, _ON_COMMAND_LINE))
    return Target(name=name, **fields, overrides=tuple(overrides), lineage=lineage, sources=MappingProxyType(kept))


def axes(name: str, *, directory: Path = _PROFILES) -> dict[str, tuple[str, ...]]:
    """Returns the values that a target's profile has a table of, by field: the releases of `jetpack`.

    Raises:
        TargetError: As `load`.
    """
    return {field: tuple(values) for field, values in _resolve(name, (), directory)["axis"].items()}


def _resolve(name: str, seen: tuple[str, ...], directory: Path) -> dict[str, Any]:
    """Reads a profile and those that it extends into one dict of fields, with `lineage`, `axis` and `sources`."""
    if name in seen:
        raise TargetError(f"target {seen[0]!r}: `extends` goes in a circle: {' -> '.join((*seen, name))}")
    known = names(directory=directory)
    if name not in known:
        where = f", which {seen[-1]!r} extends" if seen else ""
        raise TargetError(f"unknown target {name!r}{where}", hint=_suggest(name, known))
    own = _read(directory / f"{name}.toml", name)
    parent = own.pop("extends", None)
    base: dict[str, Any] = {"lineage": (), "axis": {}, "sources": {}}
    if parent is not None:
        base = _resolve(parent, (*seen, name), directory)
    axes = base["axis"].keys() | own["axis"].keys()
    return {
        **base,
        **own,
        "lineage": (name, *base["lineage"]),
        "axis": {axis: {**base["axis"].get(axis, {}), **own["axis"].get(axis, {})} for axis in sorted(axes)},
        "sources": {**base["sources"], **own["sources"]},
    }


def _read(path: Path, name: str) -> dict[str, Any]:
    """Reads one file: its fields checked, `axis` and `sources` always there."""
    where = f"target {name!r}"
    try:
        with path.open("rb") as file:
            raw = tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TargetError(f"{where}: expected a TOML file, found: {error}") from error
    tables = {key: raw.pop(key) for key in _TABLES if key in raw}
    if not isinstance(tables.get("extends", ""), str):
        raise TargetError(f"{where}: expected `extends` to be one target's name, found {tables['extends']!r}")
    sources = _sources(where, tables.pop("sources", {}))
    fields = _checked_fields(where, raw, sources)
    axes: dict[str, Any] = {}
    for axis, values in tables.pop("axis", {}).items():
        if axis not in _FIELDS:
            raise TargetError(f"{where}: unknown field {axis!r} in [axis]", hint=_suggest(axis, list(_FIELDS)))
        if not isinstance(values, dict) or not all(isinstance(content, dict) for content in values.values()):
            raise TargetError(f"{where}: expected [axis.{axis}] to hold a table for each value, found {values!r}")
        axes[axis] = {}
        for value, content in values.items():
            place = f"{where}: [axis.{axis}.{value}]"
            _checked(place, axis, value)
            its_sources = _sources(place, content.pop("sources", {}))
            axes[axis][value] = {"fields": _checked_fields(place, content, its_sources), "sources": its_sources}
    return {**fields, **tables, "axis": axes, "sources": sources}


def _sources(where: str, table: object) -> dict[str, str]:
    fits = isinstance(table, dict) and all(isinstance(text, str) and text.strip() for text in table.values())
    if not isinstance(table, dict) or not fits:
        raise TargetError(f"{where}: expected [sources] to give a text for each field, found {table!r}")
    return table


def _checked_fields(where: str, raw: Mapping[str, object], sources: Mapping[str, str]) -> dict[str, Any]:
    for field in (*raw, *sources):
        if field not in _FIELDS:
            raise TargetError(f"{where}: unknown field {field!r}", hint=_suggest(field, list(_FIELDS)))
    unsourced = [field for field in raw if _FIELDS[field].is_fact and field not in sources]
    if unsourced:
        raise TargetError(f"{where}: expected a source for {', '.join(unsourced)} in [sources], found none")
    return {field: _checked(where, field, value) for field, value in raw.items()}


def _checked(where: str, field: str, value: object) -> Any:
    result = _FIELDS[field].check(value)
    if result is None:
        raise TargetError(f"{where}: expected {field} to be {_FIELDS[field].expected}, found {value!r}")
    return result


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known are: {', '.join(known)}"
