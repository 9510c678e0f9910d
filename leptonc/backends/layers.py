"""Formats of single layers: a recipe's rules, resolved against a graph and the formats that a backend has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from leptonc.errors import InputError, near
from leptonc.formats import FORMATS
from leptonc.options import LayerRule
from leptonc.passes.quantize.weights import BLOCK_SIZES, KEPT, LayerFormat
from runtime_edge.toml_writer import toml

if TYPE_CHECKING:
    import onnx_ir as ir

SHOWN = 8  # layers that a message lists one by one; more of them are grouped


@dataclasses.dataclass(frozen=True)
class Forms:
    """The formats that a backend has for linear layers.

    Attributes:
        title: The backend's name in messages.
        weights: Number formats that a rule may name.
        usual: The format of a layer that no rule names.
        size: Returns a number format's default block size; 0 stands for whole output channels.
        sizes: Returns the block sizes that a number format can have. Default: those of `BLOCK_SIZES`, without 0.
        whole: Whether blocks have to divide a layer's inputs. Default: they need not.
        asymmetric: Whether weights may have zero points. Default: they may.
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
        rules: The rules, in the recipe's order.
        model: A captured graph.
        forms: The formats of the target's backend.

    Raises:
        InputError: A pattern matches nothing, the backend lacks a format, or blocks do not divide a layer's inputs.
    """
    from leptonc.ir.dialect import module_of
    from leptonc.ir.structure import linears, lookups

    tables = lookups(model)
    columns = {linear.path: linear.shape[1] for linear in linears(model) if linear.weight not in tables}
    _check_patterns(rules, list(columns), [module_of(node) for node in tables.values()])
    _check_forms(rules, forms)
    chosen: dict[str, LayerRule] = {}
    for path in columns:
        for rule in rules:
            if any(fnmatchcase(path, pattern) for pattern in rule.match):
                own = chosen.get(path, LayerRule())
                fields = {f.name: v for f in dataclasses.fields(rule) if (v := getattr(rule, f.name)) is not None}
                chosen[path] = dataclasses.replace(own, **fields)
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
    """Returns the error for layers whose inputs blocks of `size` do not divide; `columns` has inputs by path."""
    weights = str(forms.usual.weights)
    fits = [s for s in forms.sizes(weights) if s and all(count % s == 0 for count in columns.values())]
    remedy = {"block_size": max(fits)} if fits else {"weights": forms.weights[0]}
    snippet = toml({"layers": [{"match": patterns_of(columns), **remedy}]}).strip()
    counts: dict[tuple[str, int], int] = {}
    for path, count in columns.items():
        (stem,) = patterns_of([path]) if len(columns) > SHOWN else (path,)
        counts[stem, count] = counts.get((stem, count), 0) + 1
    listed = ", ".join(
        f"{stem} ({count} inputs)" if n == 1 else f"{stem} ({n} layers of {count} inputs)"
        for (stem, count), n in counts.items()
    )
    return InputError(
        f"expected blocks that divide the inputs of each layer for {forms.title}, found {size} for {listed}",
        hint=f"add to the recipe:\n{snippet}",
    )


def patterns_of(paths: Collection[str]) -> list[str]:
    """Returns patterns for a message: paths that differ only in their layer's number become one pattern."""
    patterns: dict[str, None] = {}
    for path in paths:
        stem = ".".join("*" if part.isdigit() else part for part in path.split("."))
        patterns[stem] = None
    return list(patterns)


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
                f"for {', '.join(rule.match)}",
                hint=near(rule.weights, forms.weights),
            )
        weights = rule.weights or str(forms.usual.weights)
        if not FORMATS[weights].scaled and (rule.block_size is not None or rule.symmetric is not None):
            raise InputError(
                f"expected blocks and zero points for weights of integers alone, found {weights} for "
                f"{', '.join(rule.match)}",
                hint="leave out block_size and symmetric there",
            )
        if rule.block_size is not None and rule.block_size not in forms.sizes(weights):
            listed = ", ".join(map(str, forms.sizes(weights))) or "none (whole channels)"
            raise InputError(
                f"expected a block size among {listed} for {weights} on {forms.title}, found {rule.block_size} for "
                f"{', '.join(rule.match)}",
                hint="block_size is one of those, or left out",
            )
        if rule.symmetric is False and not forms.asymmetric:
            raise InputError(
                f"expected symmetric weights for {forms.title}, found asymmetric ones for {', '.join(rule.match)}",
                hint="leave out `symmetric = false` there",
            )
