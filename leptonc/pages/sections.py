"""Sections of a variant's part of the page: its matrices of weights, layer by layer, in pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from leptonc.formats import FORMATS
from leptonc.pages import charts
from leptonc.pages.axes import Axis, number
from leptonc.pages.charts import Cell, Mark
from leptonc.pages.html import behind, paragraph, table
from leptonc.pages.kinds import KINDS, Place, Scale, place_of
from leptonc.report import Report, as_plain
from leptonc.report.variant import Matrix, VariantReport

Value = tuple[str, Place, float]  # a path, its place, and a figure of it
_LARGEST = 16  # bits of the format whose box is full, where none has more


def _matrices(report: VariantReport) -> list[tuple[Matrix, Place]]:
    tables = [(row, place_of(row.path, embedding=True)) for row in report.embeddings or ()]
    return [*tables, *((row, place_of(row.path)) for row in report.linears or ())]


def _plot(title: str, about: str, good: str, values: Sequence[Value], axis: str, *, log: bool = False) -> str:
    """Returns a chart of a figure of each layer, with what it shows and what is good about it."""
    values = [value for value in values if value[2] > 0] if log else list(values)
    if not values:
        return ""
    scale = Scale.of(place for _, place, _ in values)
    marks = [
        Mark(scale.index(at), value, at.kind, scale.shapes[at.kind, at.part], f"{path}: {number(value)}")
        for path, at, value in values
    ]
    y = Axis.over(axis, [mark.value for mark in marks], log=log)
    drawn = charts.over_layers(title, about, marks, scale.columns, y)
    return paragraph(f"{about} {good}") + drawn + charts.key(scale)


def formats(report: VariantReport) -> str:
    """Shows the number format of each matrix: as a picture where there are several, else in a sentence."""
    rows = _matrices(report)
    if not rows:
        return ""
    names = sorted({row.weights for row, _ in rows}, key=lambda name: _bits(name))
    details = behind("Every matrix of weights, with its bytes and losses", table([_readable(row) for row, _ in rows]))
    if len(names) == 1:
        return paragraph(f"All matrices of weights are {_named(names[0])}.") + details
    most = max(_LARGEST if max(map(_bits, names)) > 8 else 8, *map(_bits, names))
    scale = Scale.of(place for _, place in rows)
    cells: dict[str, dict[str, Cell]] = {}
    for row, at in sorted(rows, key=lambda pair: KINDS.index(pair[1].kind)):
        blocks = f", blocks of {row.block_size}" if row.block_size is not None else ""
        cell = Cell(at.kind, _bits(row.weights) / most, f"{row.path}: {row.weights}{blocks}")
        cells.setdefault(at.part, {})[at.layer] = cell
    about = "How many bits each weight has: the fuller a box, the more bits, and the less its rounding changes."
    columns = [name for name in scale.columns if name.isdigit()]
    picture = charts.grid("Number format of each matrix of weights", about, cells, columns)
    shares = {_named(name): _bits(name) / most for name in names}
    return paragraph(about) + picture + charts.fill_key(shares) + _kinds([at for _, at in rows]) + details


def _bits(name: str) -> int:
    return FORMATS[name].bits if name in FORMATS else 32


def _named(name: str) -> str:
    known = FORMATS.get(name)
    if known is None:
        return name
    return f"{name}, {known.bits}-bit {'integers with scales' if known.integer else 'numbers'}"


def _kinds(places: Sequence[Place]) -> str:
    return charts.kinds_key([kind for kind in KINDS if any(at.kind == kind for at in places)])


def _readable(row: Matrix) -> dict[str, Any]:
    return {k: " × ".join(map(str, v)) if k == "shape" else v for k, v in as_plain(row).items()}


def sizes(report: VariantReport) -> str:
    """Shows how many bytes each layer has."""
    rows = _matrices(report)
    if not rows:
        return ""
    scale = Scale.of(place for _, place in rows)
    columns: dict[str, dict[str, float]] = {name: {} for name in scale.columns}
    for row, at in sorted(rows, key=lambda pair: KINDS.index(pair[1].kind)):
        parts = columns[at.column]
        parts[at.kind] = parts.get(at.kind, 0.0) + row.bytes / 1e6
    about = "What each layer takes of the artifact. A tall column is where there is something to save."
    drawn = charts.stacks("Megabytes of each layer's weights", about, columns, "MB")
    return paragraph(about) + drawn + _kinds([at for _, at in rows])


def noise(report: VariantReport) -> str:
    """Shows the signal-to-noise ratio of each layer's output."""
    values = [(row.path, at, row.snr_db) for row, at in _matrices(report) if row.snr_db is not None]
    about = "How much louder each layer's output is than the error that rounding makes in it."
    good = "More is better: with 20 dB the error is a tenth of the output, with 40 dB a hundredth."
    return _plot("Signal-to-noise ratio of each layer's output", about, good, values, "dB")


def sensitivity(report: VariantReport) -> str:
    """Shows what rounding each layer alone does to the model's output."""
    values = [(row.path, at, row.sensitivity) for row, at in _matrices(report) if row.sensitivity is not None]
    inputs = report.quantization is not None and report.quantization.activations is not None
    what = "what it reads to 8 bits" if inputs else "it to 4 bits"
    about = f"What the model's output loses when one layer alone is changed, by rounding {what}."
    good = "Less is better; the layers at the top are those that need more bits first."
    return _plot("Sensitivity of each layer", about, good, values, "divergence, nats", log=True)


def ranges(report: VariantReport) -> str:
    """Shows the largest magnitude that each layer reads."""
    # Either the variant's graph or its graph for prompts has ranges.
    parts = [part.activations for part in (report.quantization, report.prefill) if part is not None]
    inputs = [value for part in parts if part is not None for value in part.inputs if value.layers]
    values = [(value.layers[0], place_of(value.layers[0]), max(map(abs, value.range))) for value in inputs]
    about = "The largest magnitude of what each layer reads, on the calibration text."
    good = "Evenly low is better: a layer far above the others is harder to read in 8 bits."
    return _plot("Ranges of activations", about, good, values, "largest magnitude", log=True)


SECTIONS: tuple[tuple[str, Callable[[VariantReport], str]], ...] = (
    ("Where the bytes are", sizes),
    ("Number formats", formats),
    ("Error of each layer", noise),
    ("Which layers matter most", sensitivity),
    ("Ranges of activations", ranges),
)


def pruned(report: Report) -> str:
    """Shows what is left of each block that was pruned."""
    if report.pruning is None:
        return ""
    rows: dict[str, dict[str, Cell]] = {}
    places: list[Place] = []
    for name, remaining in sorted((report.pruning.blocks or {}).items()):
        at = place_of(name)
        for some, whole, space in _parts(remaining):
            places.append(at)
            cell = Cell(at.kind, some / max(1, whole), f"{name}: {remaining}")
            rows.setdefault(f"{at.part} {space}".strip(), {})[at.layer] = cell
    if not rows:
        return ""
    scale = Scale.of(places)
    about = "How full a box is, is what is left of a part of the model; an empty one is gone."
    columns = [name for name in scale.columns if name.isdigit()]
    return paragraph(about) + charts.grid("What is left of each layer", about, rows, columns) + _kinds(places)


def _parts(remaining: str) -> list[tuple[int, int, str]]:
    """Reads `96 of 128 channels, 1 of 2 heads`; anything else is gone."""
    found = []
    for part in remaining.split(", "):
        some, _, rest = part.partition(" of ")
        whole, _, space = rest.partition(" ")
        if some.isdigit() and whole.isdigit():
            found.append((int(some), int(whole), space))
    return found or [(0, 1, "")]
