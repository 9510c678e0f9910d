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
import difflib
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leptonc.errors import InputError
from leptonc.formats import FORMATS
from leptonc.options import BuildOptions, LayerRule
from leptonc.passes.quantize.weights import BLOCK_SIZES, KEPT, METHODS, LayerFormat
from runtime_edge.toml import toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import onnx_ir as ir

SHIPPED = Path(__file__).parent / "recipes"
LARGEST = 2**20  # bytes of a recipe
# Options that are one build's own affair, and no part of a recipe.
NO_RECIPE = ("source", "target", "out", "layers", "dump_ir", "eval_text", "check", "force", "resume")
SHOWN = 8  # layers that a message lists one by one; of more it has a line for all that are alike


def with_recipe(options: BuildOptions, recipe: str | None, given: Collection[str] = ()) -> BuildOptions:
    """Returns options with what a recipe says; those `given` stay.

    Args:
        options: What a build was asked for.
        recipe: A file's name, or a shipped recipe's; None for none.
        given: Fields of `options` that stand above the recipe's.

    Raises:
        InputError: It is not there, no TOML, has an unknown field, or a value that does not fit.
    """
    if recipe is None:
        return options
    path = recipe_file(recipe)
    found = read_recipe(path, type(options))
    text = found.get("calibration")
    if text is not None:
        found["calibration"] = path.parent / text
    return dataclasses.replace(options, **{name: value for name, value in found.items() if name not in given})


# What fields may say, and the least that numbers may be; a backend has more to say of some of them.
_CHOICES = {"method": METHODS, "embeddings": ("int8", "int4"), "kv_cache": ("int8",), "prefill": ("int8", "shared")}
_LEAST = {"memory_gb": 0, "max_seq_len": 1, "seed": 0}


def check_values(options: BuildOptions) -> None:
    """Refuses values that no backend takes, whoever gave them (raises `InputError`)."""
    for name, choices in _CHOICES.items():
        value = getattr(options, name)
        if value is not None and value not in choices:
            raise InputError(
                f"expected {name} among {', '.join(choices)}, found {value!r}", hint=near(str(value), choices)
            )
    for name, least in _LEAST.items():
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:
            raise InputError(f"expected {name} of at least {least}, found {value}", hint=f"a number from {least} up")
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
    found = _fields(where, raw, options, NO_RECIPE)
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
    return {**found, "layers": tuple(rules)}


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
    kinds = {f.name: str(f.type).split(" | ")[0] for f in dataclasses.fields(record) if f.name not in without}
    found = {}
    for name, value in raw.items():
        if name not in kinds:
            hint = near(name, list(kinds))
            if name in without:
                hint = f"{name} belongs to one build: give it on the command line"
            raise InputError(f"{where}: unknown field {name!r}", hint=hint)
        expected, read = _KINDS[kinds[name]]
        found[name] = read(value)
        if found[name] is None:
            raise InputError(f"{where}: expected {name} to be {expected}, found {value!r}")
    return found


def number(value: object) -> float | None:
    """Returns a finite number, or one that a text holds, with a percent sign or without; None for anything else."""
    try:
        found = float(value.strip().removesuffix("%")) if isinstance(value, str) else value
    except ValueError:
        return None
    if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
        return None
    return float(found)


def near(word: str, known: Sequence[str]) -> str:
    """What a hint says of a word that is not among those known."""
    close = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known are: {', '.join(known)}"


def as_record(options: BuildOptions) -> dict[str, Any]:
    """Returns what a recipe would say to repeat a build: the options that are not as they are without one.

    Of a file it has the name alone: where it lay is nobody's affair.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in NO_RECIPE and value != field.default:
            found[field.name] = Path(value).name if isinstance(value, Path | str) else value
            if field.name == "prune":  # the file of a plan, or no file
                found[field.name] = Path(value).name
    rules = [
        {k: list(v) if k == "match" else v for k, v in dataclasses.asdict(rule).items() if v is not None}
        for rule in options.layers
    ]
    return {**found, **({"layers": rules} if rules else {})}


@dataclasses.dataclass(frozen=True)
class Forms:
    """What a backend can give linear layers.

    Attributes:
        title: What messages call it.
        weights: Number formats that a rule may name.
        usual: What a layer has that no rule names.
        size: The block size that a number format has when none is named; 0 for whole output channels.
        sizes: The block sizes that it can have.
        whole: Whether blocks have to divide a layer's inputs.
        asymmetric: Whether there are zero points.
    """

    title: str
    weights: tuple[str, ...]
    usual: LayerRule
    size: Callable[[str], int]
    sizes: Callable[[str], Sequence[int]] = lambda _: BLOCK_SIZES[1:]
    whole: bool = False
    asymmetric: bool = True


def resolve(rules: Sequence[LayerRule], model: ir.Model, forms: Forms) -> tuple[LayerFormat, ...]:
    """Returns the formats of the layers that rules name, before anything long has begun.

    Args:
        rules: In the recipe's order.
        model: A captured graph.
        forms: What the target's backend can do.

    Raises:
        InputError: A pattern matches nothing, a format is not to be had, or blocks do not divide; each one is listed.
    """
    from leptonc.ir.dialect import module_of
    from leptonc.ir.structure import linears, lookups

    tables = lookups(model)
    columns = {each.path: each.shape[1] for each in linears(model) if each.weight not in tables}
    _check_patterns(rules, list(columns), [module_of(node) for node in tables.values()])
    _check_forms(rules, forms)
    chosen: dict[str, LayerRule] = {}
    for path in columns:
        for rule in rules:
            if any(fnmatchcase(path, pattern) for pattern in rule.match):
                own = chosen.get(path, LayerRule())
                said = {f.name: v for f in dataclasses.fields(rule) if (v := getattr(rule, f.name)) is not None}
                chosen[path] = dataclasses.replace(own, **said)
    groups: dict[tuple[int, int, bool], list[str]] = {}
    wrong: dict[int, list[str]] = {}
    for path, own in chosen.items():
        weights = own.weights or str(forms.usual.weights)
        bits = FORMATS[weights].bits if FORMATS[weights].scaled else KEPT
        usual = forms.usual.block_size if weights == forms.usual.weights else None
        size = next((s for s in (own.block_size, usual) if s is not None), forms.size(weights)) if bits < KEPT else 0
        symmetric = next((s for s in (own.symmetric, forms.usual.symmetric) if s is not None), True)
        if bits < KEPT and forms.whole and size and columns[path] % size:
            wrong.setdefault(size, []).append(path)
        groups.setdefault((bits, size, symmetric or bits == KEPT), []).append(path)
    for size, paths in wrong.items():
        raise ragged(size, {path: columns[path] for path in paths}, forms)
    return tuple(LayerFormat(*key, tuple(paths)) for key, paths in groups.items())


def ragged(size: int, columns: Mapping[str, int], forms: Forms) -> InputError:
    """The error for layers, by path with their inputs, that blocks of `size` do not divide."""
    weights = str(forms.usual.weights)
    fits = [s for s in forms.sizes(weights) if s and all(count % s == 0 for count in columns.values())]
    say = {"block_size": max(fits)} if fits else {"weights": forms.weights[0]}
    snippet = toml({"layers": [{"match": patterns_of(columns), **say}]}).strip()
    alike: dict[tuple[str, int], int] = {}
    for path, count in columns.items():
        (stem,) = patterns_of([path]) if len(columns) > SHOWN else (path,)
        alike[stem, count] = alike.get((stem, count), 0) + 1
    listed = ", ".join(
        f"{stem} ({count} inputs)" if n == 1 else f"{stem} ({n} layers of {count} inputs)"
        for (stem, count), n in alike.items()
    )
    return InputError(
        f"expected blocks that divide the inputs of each layer for {forms.title}, found {size} for {listed}",
        hint=f"add to the recipe:\n{snippet}",
    )


def patterns_of(paths: Collection[str]) -> list[str]:
    """Returns patterns for a message: paths that differ in their layer's number alone, as one."""
    found: dict[str, None] = {}
    for path in paths:
        stem = ".".join("*" if part.isdigit() else part for part in path.split("."))
        found[stem] = None
    return list(found)


def _check_patterns(rules: Sequence[LayerRule], paths: list[str], tables: list[str]) -> None:
    missed = [p for rule in rules for p in rule.match if not any(fnmatchcase(path, p) for path in paths)]
    if not missed:
        return
    known = patterns_of(paths)
    hints = [f"{pattern}: {near(pattern, known)}" for pattern in missed]
    if any(fnmatchcase(table, pattern) for pattern in missed for table in (*tables, "lm_head")):
        hints.append('the format of an embedding, and of a head tied to it, is `embeddings = "int8"` at the top')
    raise InputError(
        f"expected every pattern of the recipe to match a linear layer, found none for {', '.join(missed)}",
        hint="\n".join(hints),
    )


def _check_forms(rules: Sequence[LayerRule], forms: Forms) -> None:
    for rule in rules:
        if rule.weights is not None and rule.weights not in forms.weights:
            raise InputError(
                f"expected weights among {', '.join(forms.weights)} for layers on {forms.title}, found {rule.weights} "
                f"for {', '.join(rule.match)}", hint=near(rule.weights, forms.weights),
            )
        weights = rule.weights or str(forms.usual.weights)
        if not FORMATS[weights].scaled and (rule.block_size is not None or rule.symmetric is not None):
            raise InputError(
                f"expected blocks and zero points for weights of integers alone, found {weights} for "
                f"{', '.join(rule.match)}", hint="leave out block_size and symmetric there",
            )
        if rule.block_size is not None and rule.block_size not in forms.sizes(weights):
            listed = ", ".join(map(str, forms.sizes(weights))) or "none (whole channels)"
            raise InputError(
                f"expected a block size among {listed} for {weights} on {forms.title}, found {rule.block_size} for "
                f"{', '.join(rule.match)}", hint="block_size is one of those, or left out",
            )
        if rule.symmetric is False and not forms.asymmetric:
            raise InputError(
                f"expected symmetric weights for {forms.title}, found asymmetric ones for {', '.join(rule.match)}",
                hint="leave out `symmetric = false` there",
            )
