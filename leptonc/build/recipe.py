"""Recipes: what a build's options say, as a TOML file, with exceptions for single layers.

    weights = "int4"
    method = "gptq"
    embeddings = "int8"

    [[layers]]
    match = "model.layers.*.mlp.down_proj"
    weights = "int8"
    block_size = 64

A field at the top is one of `BuildOptions`; a table of `layers` has those of `LayerRule`. Of several tables that match
a layer, what a later one says stands. Shipped recipes are the files of `leptonc/recipes`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from leptonc.calibrate.texts import is_built_in
from leptonc.errors import InputError, near
from leptonc.options import BuildOptions, LayerRule, kinds_of, options_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).parent.parent / "recipes"
LARGEST = 2**20  # bytes of a recipe
# Options that are one build's own affair, and no part of a recipe; `layers` are its tables.
NO_RECIPE = tuple(name for name, option in options_of(BuildOptions).items() if not option.in_recipe)


def with_recipe(options: BuildOptions, recipe: str | None, given: Collection[str] = ()) -> BuildOptions:
    """Returns options with what a recipe says; those `given` stay.

    Args:
        options: What a build was asked for.
        recipe: A file's name, or a shipped recipe's; None for none.
        given: Fields of `options` that override the recipe's.

    Raises:
        InputError: It is not there, no TOML, has an unknown field, or a value that does not fit.
    """
    if recipe is None:
        return options
    path = recipe_file(recipe)
    values = read_recipe(path, type(options))
    text = values.get("calibration")
    if text is not None:
        values["calibration"] = text if is_built_in(text) else path.parent / text
    return dataclasses.replace(options, **{name: value for name, value in values.items() if name not in given})


def check_values(options: BuildOptions) -> None:
    """Refuses values that no backend takes, whoever gave them (raises `InputError`)."""
    for name, about in options_of(type(options)).items():
        value = getattr(options, name)
        if value is None:
            continue
        if about.open_choice is None and not about.may_be(value):  # of weights the target's own list says more
            listed = about.listed()
            raise InputError(
                f"expected {name} among {', '.join(listed)}, found {value!r}", hint=near(str(value), listed)
            )
        least, most = about.least, about.most
        if least is not None and not least <= value < math.inf:
            raise InputError(f"expected {name} of at least {least}, found {value}", hint=f"a number from {least} up")
        if most is not None and value > most:
            raise InputError(f"expected {name} from {least} to {most}, found {value}", hint=f"a number up to {most}")
    if options.max_loss is not None:
        if not math.isfinite(options.max_loss):
            raise InputError(f"expected max_loss in percent, found {options.max_loss}", hint="--max-loss 3%")
        if not options.check:
            raise InputError(
                f"expected the measurement that a loss of at most {options.max_loss:g} % is told by, found it left out",
                hint="leave out --no-check, or the bound",
            )


def shipped() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def recipe_file(name: str) -> Path:
    """Returns the file of a recipe: one that is there, else the shipped one of that name (raises `InputError`)."""
    path = Path(name)
    if path.is_file():
        return path
    if name in shipped():
        return SHIPPED / f"{name}.toml"
    if path.suffix or path.parent != Path():
        raise InputError(f"expected a recipe, found no file at {name}", hint=f"shipped ones: {', '.join(shipped())}")
    raise InputError(f"expected a recipe, found no file and none shipped named {name!r}", hint=near(name, shipped()))


def read_recipe(path: Path, options: type[BuildOptions]) -> dict[str, Any]:
    """Reads a recipe: values of fields of `options`, `layers` among them, each of its field's type.

    Raises:
        InputError: as `with_recipe` says.
    """
    where = f"recipe {path.name}"
    try:
        data = path.read_bytes()
        if len(data) > LARGEST:
            raise InputError(f"{where}: expected at most {LARGEST:,} bytes, found {len(data):,}")
        raw = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where}: expected a TOML file, found: {error}") from error
    tables = raw.pop("layers", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{where}: expected `layers` to be tables, found {tables!r}", hint="write [[layers]]")
    fields = _fields(where, raw, options, NO_RECIPE)
    rules = []
    for number, table in enumerate(tables, 1):
        place = f"{where}: [[layers]] {number}"
        match = table.pop("match", None)
        patterns = [match] if isinstance(match, str) else match
        if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) and p for p in patterns):
            raise InputError(
                f"{place}: expected `match` to be a pattern of module paths or a list of them, found {match!r}",
                hint='match = "model.layers.*.mlp.down_proj"',
            )
        values = _fields(place, table, LayerRule, ("match",))
        if not values:
            raise InputError(f"{place}: expected something to say of its layers, found match alone")
        rules.append(LayerRule(match=tuple(patterns), **values))
    return {**fields, "layers": tuple(rules)}


# What a field's type reads: what it is called, and the value or None.
_KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "str": ("a text", lambda v: v if isinstance(v, str) else None),
    "Path": ("the name of a file", lambda v: Path(v) if isinstance(v, str) and v else None),
    "int": ("a whole number", lambda v: v if isinstance(v, int) and not isinstance(v, bool) else None),
    "float": ("a number", lambda v: number(v)),
    "bool": ("true or false", lambda v: v if isinstance(v, bool) else None),
}


def _fields(where: str, raw: Mapping[str, Any], record: type[Any], without: Sequence[str]) -> dict[str, Any]:
    """Checks the fields of a table against those of a dataclass."""
    kinds = {name: kind for name, kind in kinds_of(record).items() if name not in without}
    values = {}
    for name, value in raw.items():
        if name not in kinds:
            hint = near(name, list(kinds))
            if name in without:
                hint = f"{name} belongs to one build: give it on the command line"
            raise InputError(f"{where}: unknown field {name!r}", hint=hint)
        expected, read = _KINDS[kinds[name]]
        values[name] = read(value)
        if values[name] is None:
            raise InputError(f"{where}: expected {name} to be {expected}, found {value!r}")
    return values


def number(value: object) -> float | None:
    """Returns a finite number, or one that a text holds, with a percent sign or without; None for anything else."""
    try:
        parsed = float(value.strip().removesuffix("%")) if isinstance(value, str) else value
    except ValueError:
        return None
    if not isinstance(parsed, int | float) or isinstance(parsed, bool) or not math.isfinite(parsed):
        return None
    return float(parsed)


def as_record(options: BuildOptions) -> dict[str, Any]:
    """Returns what a recipe would say to repeat a build: the options that are not as they are without one.

    Of a file it has the name alone: where it lay is nobody's affair.
    """
    record: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in NO_RECIPE and value != field.default:
            record[field.name] = Path(value).name if isinstance(value, Path | str) else value
            if field.name == "prune":  # the file of a plan, or no file
                record[field.name] = Path(value).name
    rules = [
        {k: list(v) if k == "match" else v for k, v in dataclasses.asdict(rule).items() if v is not None}
        for rule in options.layers
    ]
    return {**record, **({"layers": rules} if rules else {})}
