"""`report.html`: the manifest and the report of an artifact as one page for people.

The page is one file: no script, no request, readable without its plots, which have their figures in a table beside
them. A section appears where the report has its data, so that further passes' reports need no change here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from leptonc.artifact import plots
from leptonc.artifact.plots import Axis, Dot, number
from leptonc.report import Report, as_plain
from leptonc.report.section import Section
from leptonc.report.variant import Matrix, VariantReport
from runtime_edge.manifest import Manifest, Variant

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>{style}</style></head>
<body><main>{body}</main></body></html>
"""
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{font:16px/1.5 system-ui,sans-serif;margin:0}main{max-width:60rem;margin:auto;padding:1rem}
h1{font-size:1.6rem;margin:.2em 0}h2{font-size:1.25rem;margin:1.6em 0 .4em;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.2em 0 .2em}p{margin:.4em 0}.soft{opacity:.75;font-size:.9em}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;margin:1rem 0}
.cards div{background:var(--soft);border-radius:.5rem;padding:.6rem .8rem}.cards b{display:block;font-size:1.3rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.15em .8em .15em 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600}td.n,th.n{text-align:right}summary{cursor:pointer;font-size:.9em;padding:.2em 0}
code{font-size:.9em;overflow-wrap:anywhere}
"""

Rows = Sequence[Mapping[str, Any]]


def page(title: str, body: str) -> str:
    """Returns a whole page; `body` is HTML."""
    return _PAGE.format(title=escape(title), style=_STYLE.strip() + plots.STYLE.strip(), body=body)


def table(rows: Rows, names: Sequence[str] = ()) -> str:
    """Returns rows as a table with the named columns. Default: all columns that occur, in order."""
    columns = list(names or dict.fromkeys(name for row in rows for name in row))
    numeric = {n for n in columns if all(isinstance(row.get(n), int | float | None) for row in rows)}
    mark = {n: ' class="n"' if n in numeric else "" for n in columns}
    head = "".join(f'<th scope="col"{mark[n]}>{escape(_words(n))}</th>' for n in columns)
    lines = ("".join(f"<td{mark[n]}>{_plain(row.get(n))}</td>" for n in columns) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def behind(summary: str, content: str) -> str:
    """Returns content that the reader opens by its summary."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def facts(record: Mapping[str, Any] | Section | None, without: Iterable[str] = ()) -> str:
    """Returns names and values of nested data, lists of records as tables behind a line. Default: empty text."""
    values = as_plain(record) if isinstance(record, Section) else record or {}
    left_out = set(without)
    rows, tables = [], []
    for name, value in _flat({k: v for k, v in values.items() if k not in left_out}):
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            tables.append(behind(f"{name}: {len(value)} rows", table(value)))
        else:
            rows.append(f'<tr><th scope="row">{escape(_words(name))}</th><td>{_plain(value)}</td></tr>')
    listed = f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>' if rows else ""
    return listed + "".join(tables)


def report_page(manifest: Manifest, report: Report) -> bytes:
    """Returns `report.html`.

    Args:
        manifest: The artifact's manifest; its files are all but the page and the report.
        report: The content of `report.json`.
    """
    parts = [f"<h1>{escape(manifest.name)}</h1>"]
    parts.append(f"<p>{escape(manifest.task)}, {escape(manifest.architecture)}, {manifest.parameters:,} parameters</p>")
    parts.append(_section("Warnings", _warnings(report)))
    for variant in manifest.variants:
        parts.append(_variant(manifest, variant, report.variants.get(variant.name, VariantReport())))
    parts += [_section(title, make(report)) for title, make in _WHOLE]
    parts.append(_section("Passes", _passes(manifest)))
    parts.append(_section("Recipe", facts(report.recipe)))
    parts.append(_section("Where it came from", facts({**manifest.source, "built with": dict(manifest.toolchain)})))
    shown = {"schema_version", "variants", "recipe", "fidelity", "pruning", "structure", "bytes", "warnings"}
    parts.append(_section("More", facts(report, shown)))
    return page(f"{manifest.name}: report", "".join(parts)).encode()


def _variant(manifest: Manifest, variant: Variant, report: VariantReport) -> str:
    sizes = {file.path: file.size for file in manifest.files}
    stored = sum(sizes.get(path, 0) for path in (variant.main.file, *variant.blobs))
    cards = [("graph and weights", f"{stored / 1e6:,.1f} MB"), ("weights", variant.weights)]
    if variant.main.activations != "none":
        cards.append(("activations", variant.main.activations))
    prompts = report.prefill.fidelity if report.prefill is not None else None
    for label, fidelity in (("against float32", report.fidelity), ("prompts against float32", prompts)):
        if fidelity is not None:
            from leptonc.evaluate.bounds import loss

            how, lost = loss(fidelity)
            cards.append((f"{label}: {how}", f"{lost:.2f} %"))
    shown = "".join(f"<div>{escape(name)}<b>{escape(value)}</b></div>" for name, value in cards)
    parts = [f'<div class="cards">{shown}</div>']
    for title, make in _SECTIONS:
        content = make(report)
        parts.append(f"<h3>{title}</h3>{content}" if content else "")
    rest = {name: v for name, v in as_plain(report).items() if name not in ("linears", "embeddings", "fidelity")}
    parts.append(f"<h3>Everything reported</h3>{facts(rest)}" if rest else "")
    return f"<h2>{escape(variant.target)}, {escape(variant.backend)}</h2>{''.join(parts)}"


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}" if content else ""


# Sections of a variant


def _fidelity(report: VariantReport) -> str:
    return facts(report.fidelity)


def _place(path: str) -> tuple[str, str, str]:
    """Splits a module path into its layer, the layer's number, and the rest: `model.layers.3`, `3`, `mlp.down_proj`."""
    match = re.match(r"^(.*?\.(\d+))(?:[./](.*)|$)", path)
    return (match[1], match[2], match[3] or "") if match else ("", "", path)


def _axes(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the numbers of the layers, and the kinds of linear layers in them."""
    places = [_place(path) for path in paths]
    return list(dict.fromkeys(p[1] or p[2] for p in places)), list(dict.fromkeys(p[2] if p[1] else "" for p in places))


def _embeddings(report: VariantReport) -> list[tuple[str, Matrix]]:
    """Returns the rows of embeddings with a name that stands in the place of a layer's number."""
    return [("embedding", row) for row in report.embeddings or ()]


def _linears(report: VariantReport) -> list[tuple[str, Matrix]]:
    return [(row.path, row) for row in report.linears or ()]


def _precision(report: VariantReport) -> str:
    rows = [*_embeddings(report), *_linears(report)]
    if not rows:
        return ""
    layers, kinds = _axes([path for path, _ in rows])
    forms = sorted({row.weights for _, row in rows})
    cells = {}
    for path, row in rows:
        _, layer, kind = _place(path)
        blocks = f", blocks of {row.block_size}" if row.block_size is not None else ""
        title = f"{path}: {row.weights}{blocks}"
        cells[kind if layer else "", layer or kind] = (forms.index(row.weights), 1.0, title)
    picture = plots.grid("Number format of each matrix of weights", kinds, layers, cells) + plots.key(forms)
    return picture + behind("as a table, with bytes and losses", table([_readable(row) for _, row in rows]))


def _readable(row: Matrix) -> dict[str, Any]:
    return {k: " × ".join(map(str, v)) if k == "shape" else v for k, v in as_plain(row).items()}


def _by_kind(values: Sequence[tuple[str, float]]) -> tuple[list[str], list[Dot], list[str]]:
    """Returns layers, points and kinds of values that module paths have."""
    layers, kinds = _axes([path for path, _ in values])
    points = []
    for path, value in values:
        _, layer, kind = _place(path)
        title = f"{path}: {number(value)}"
        points.append(Dot(layers.index(layer or kind), value, kinds.index(kind if layer else ""), title))
    return layers, points, [kind or "outside the layers" for kind in kinds]


def _noise(report: VariantReport) -> str:
    # Embeddings come last, so that the axis begins with the layers' numbers.
    rows = [*_linears(report), *_embeddings(report)]
    layers, points, kinds = _by_kind([(path, row.snr_db) for path, row in rows if row.snr_db is not None])
    if not points:
        return ""
    x, y = Axis("layer", -0.5, len(layers) - 0.5), Axis.over("dB", [point.y for point in points])
    cause = "rounding the layer's weights, and what it reads, changes in it"
    about = f"<p class='soft'>Each output against what {cause}: more is better.</p>"
    return about + plots.dots("Signal-to-noise of each linear layer's output", points, x, y) + plots.key(kinds)


def _sensitivity(report: VariantReport) -> str:
    rows = [*_linears(report), *_embeddings(report)]
    measured = [(path, row.sensitivity) for path, row in rows if row.sensitivity is not None]
    layers, points, kinds = _by_kind([(path, value) for path, value in measured if value > 0])
    if not points:
        return ""
    x, y = Axis("layer", -0.5, len(layers) - 0.5), Axis.over("divergence", [point.y for point in points], log=True)
    inputs = report.quantization is not None and report.quantization.activations is not None
    rounded = "what it reads to 8 bits" if inputs else "one layer to 4 bits"
    about = f"<p class='soft'>What rounding {rounded} alone does to the model's output: less is better.</p>"
    return about + plots.dots("Sensitivity of each linear layer", points, x, y) + plots.key(kinds)


def _sizes(report: VariantReport) -> str:
    rows = [*_embeddings(report), *_linears(report)]
    if not rows:
        return ""
    layers, kinds = _axes([path for path, _ in rows])
    sums: dict[tuple[str, str], float] = {}
    for path, row in rows:
        _, layer, kind = _place(path)
        at = (layer or kind, kind if layer else "")
        sums[at] = sums.get(at, 0.0) + row.bytes / 1e6
    stacks = [(layer, [sums.get((layer, kind), 0.0) for kind in kinds]) for layer in layers]
    names = [kind or "outside the layers" for kind in kinds]
    return plots.columns("Megabytes of each layer's weights", stacks, "MB") + plots.key(names)


def _ranges(report: VariantReport) -> str:
    # Either the variant's graph or its graph for prompts has ranges.
    parts = [part.activations for part in (report.quantization, report.prefill) if part is not None]
    inputs = [value for part in parts if part is not None for value in part.inputs if value.layers]
    largest = [(value.layers[0], max(map(abs, value.range))) for value in inputs]
    layers, points, kinds = _by_kind([(path, value) for path, value in largest if value > 0])
    if not points:
        return ""
    x, y = Axis("layer", -0.5, len(layers) - 0.5), Axis.over("largest", [point.y for point in points], log=True)
    about = "<p class='soft'>The largest magnitude of what linear layers read, on the calibration text.</p>"
    return about + plots.dots("Ranges of activations", points, x, y) + plots.key(kinds)


_SECTIONS: tuple[tuple[str, Callable[[VariantReport], str]], ...] = (
    ("Quality against the original in float32", _fidelity),
    ("Number formats", _precision),
    ("Signal-to-noise", _noise),
    ("Sensitivity", _sensitivity),
    ("Bytes of each layer", _sizes),
    ("Ranges of activations", _ranges),
)

# Sections of the whole model

_LEFT = re.compile(r"(\d+) of (\d+) (\w+)")


def _pruning(report: Report) -> str:
    if report.pruning is None:
        return ""
    cells: dict[tuple[str, str], tuple[int, float, str]] = {}
    kinds: dict[str, None] = {}
    layers: dict[str, None] = {}
    for name, remaining in sorted((report.pruning.blocks or {}).items()):
        _, layer, kind = _place(name)
        parts = _LEFT.findall(remaining) or [("0", "1", "all")]
        for some, whole, space in parts:
            row = f"{kind} {space}".strip()
            kinds[row] = layers[layer or name] = None
            cells[row, layer or name] = (0, int(some) / max(1, int(whole)), f"{name}: {remaining}")
    ordered = sorted(layers, key=lambda layer: (not layer.isdigit(), int(layer) if layer.isdigit() else 0, layer))
    picture = plots.grid("What is left of each layer", list(kinds), ordered, cells) if cells else ""
    about = "<p class='soft'>How full a box is, is what is left of a block.</p>" if picture else ""
    return about + picture + facts(report.pruning)


def _warnings(report: Report) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in report.warnings or ())
    return f"<ul>{items}</ul>" if items else ""


def _structure(report: Report) -> str:
    return facts(report.structure)


def _bytes(report: Report) -> str:
    sizes = as_plain(report.bytes) if report.bytes is not None else {}
    return table([{"part": name, "bytes": size} for name, size in sizes.items()]) if sizes else ""


_WHOLE: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("What was pruned", _pruning),
    ("Bytes", _bytes),
    ("Structure", _structure),
)


def _passes(manifest: Manifest) -> str:
    rows = [
        {"pass": record.name, "version": record.version, "configuration": _short(record.config)}
        for record in manifest.passes
    ]
    return table(rows) if rows else ""


def _short(config: Mapping[str, Any]) -> str:
    """Returns a configuration in one line, a long list as its length."""

    def written(value: Any) -> str:
        if isinstance(value, Mapping):
            return "; ".join(f"{name} {written(item)}" for name, item in sorted(value.items()))
        if isinstance(value, list | tuple):
            long = len(value) > 4 and not isinstance(value[0], Mapping)
            return f"{len(value)} of them" if long else ", ".join(map(written, value)) or "none"
        return str(value)

    return "; ".join(f"{name} {written(value)}" for name, value in sorted(config.items()))


def _flat(value: Mapping[str, Any], name: str = "") -> Iterable[tuple[str, Any]]:
    for own, item in sorted(value.items()):
        full = f"{name} {own}".strip()
        if isinstance(item, Mapping):
            yield from _flat(item, full)
        else:
            yield full, item


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value) if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, list | tuple):
        if len(value) > 1 and all(item == value[0] for item in value):
            return f"{_plain(value[0])} ({len(value)} times)"
        return ", ".join(map(_plain, value))
    return "" if value is None else escape(str(value))
