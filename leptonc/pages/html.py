"""What pages are made of: the frame with its style, tables, cards, and lines that open."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from leptonc.pages import charts
from leptonc.pages.axes import number
from leptonc.report import as_plain
from leptonc.report.section import Section

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>{style}</style></head>
<body><main>{body}</main></body></html>
"""
# Texts have a contrast of 4.5 at least, on the page and on cards, in both schemes.
_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c2128;--soft:#57606a;--line:#d0d7de;--card:#f4f6f8;--accent:#0860ad;
--k0:#00795a;--k1:#0072b2;--k2:#c04a00;--k3:#9a3d84;--k4:#57606a}
@media screen and (prefers-color-scheme:dark){:root{--page:#0f1318;--ink:#e6edf3;--soft:#a3adb8;--line:#343c46;
--card:#1a2027;--accent:#69b4f5;--k0:#34c69c;--k1:#58b4ec;--k2:#ff9354;--k3:#e08fce;--k4:#a3adb8}}
@media print{:root{color-scheme:light}main{max-width:none;padding:0}*{print-color-adjust:exact}}
body{font:16px/1.5 system-ui,sans-serif;margin:0;background:var(--page);color:var(--ink)}
main{max-width:60rem;margin:auto;padding:1rem;box-sizing:border-box;overflow-wrap:anywhere}
h1{font-size:1.75rem;line-height:1.2;margin:.6rem 0 .4rem}h2{font-size:1.3rem;margin:2rem 0 .3rem}
h2,h3{break-after:avoid}h3{font-size:1.05rem;margin:1.4rem 0 .2rem}p{margin:.35rem 0;max-width:46rem}
.lead{font-size:1.15rem}.soft{color:var(--soft);font-size:.9rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(12.5rem,100%),1fr));gap:.8rem;margin:1rem 0}
.card{background:var(--card);border-radius:.5rem;padding:.7rem .9rem;break-inside:avoid}
.card h3{margin:0;font-size:.95rem}
.big{font-size:1.6rem;line-height:1.2;font-weight:650}.bar{height:.45rem;border-radius:.2rem;margin:.25rem 0;
background:var(--accent)}.bar.whole{background:var(--soft)}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:.8rem;margin:.4rem 0 1rem;break-inside:avoid}
.pair>div{background:var(--card);border-radius:.5rem;padding:.6rem .9rem}.said{white-space:pre-wrap}
@media screen and (max-width:640px){.pair{grid-template-columns:1fr}h1{font-size:1.45rem}}
.wide-table{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
td,th{text-align:left;padding:.2rem .9rem .2rem 0;border-bottom:1px solid var(--line);vertical-align:top}
table{overflow-wrap:normal}.facts td{overflow-wrap:anywhere}th{font-weight:600}td.n,th.n{text-align:right}
summary{cursor:pointer;font-size:.9rem;padding:.3rem 0}
code{font-size:.9em;background:var(--card);padding:.05em .3em;border-radius:.2em}
mark{background:none;color:inherit;text-decoration:underline;text-decoration-thickness:2px;
text-decoration-color:var(--k2)}
"""
# What would turn or hide the text around it, or is no text at all.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

Rows = Sequence[Mapping[str, Any]]


def page(title: str, body: str) -> bytes:
    """Returns a whole page; `body` is HTML."""
    return _PAGE.format(title=text(title), style=_STYLE.strip() + charts.STYLE.strip(), body=body).encode()


def text(value: str) -> str:
    """Returns any text as HTML; characters that control are shown as a box."""
    return escape(_CONTROL.sub("\ufffd", value)).encode("utf-8", "replace").decode()


def section(title: str, content: str, level: int = 2) -> str:
    """Returns a section with its heading, or nothing where there is no content."""
    return f"<h{level}>{text(title)}</h{level}>{content}" if content else ""


def paragraph(words: str, kind: str = "") -> str:
    """Returns a paragraph of plain words."""
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def table(rows: Rows, names: Sequence[str] = ()) -> str:
    """Returns rows as a table with the named columns. Default: all columns that occur, in order."""
    columns = list(names or dict.fromkeys(name for row in rows for name in row))
    numeric = {n for n in columns if all(isinstance(row.get(n), int | float | None) for row in rows)}
    mark = {n: ' class="n"' if n in numeric else "" for n in columns}
    head = "".join(f'<th scope="col"{mark[n]}>{text(_words(n))}</th>' for n in columns)
    lines = ("".join(f"<td{mark[n]}>{_plain(row.get(n))}</td>" for n in columns) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide-table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def behind(summary: str, content: str) -> str:
    """Returns content that the reader opens by its summary; nothing where there is no content."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>" if content else ""


def facts(record: Mapping[str, Any] | Section | None, without: Iterable[str] = ()) -> str:
    """Returns names and values of nested data, lists of records as tables behind a line. Default: empty text."""
    values = as_plain(record) if isinstance(record, Section) else record or {}
    left_out = set(without)
    rows, tables = [], []
    for name, value in _flat({k: v for k, v in values.items() if k not in left_out}):
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            tables.append(behind(f"{_words(name)}: {len(value)} rows", table(value)))
        else:
            rows.append(f'<tr><th scope="row">{text(_words(name))}</th><td>{_plain(value)}</td></tr>')
    body = f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'
    listed = f'<div class="wide-table">{body}</div>' if rows else ""
    return listed + "".join(tables)


def card(title: str, figure: str, beside: str, about: str, bars: tuple[float, float] | None = None) -> str:
    """Returns a card: a figure, the original's beside it, and a sentence on what is good.

    Args:
        title: What the figure tells.
        figure: It.
        beside: The original's; empty where it has none.
        about: The sentence, as HTML.
        bars: Both figures, the original's first, which become bars. Default: no bars.
    """
    drawn = ""
    if bars is not None and max(bars) > 0:
        shares = [100 * value / max(bars) for value in bars]
        drawn = (
            f'<div aria-hidden="true"><div class="bar whole" style="width:{shares[0]:.1f}%"></div>'
            f'<div class="bar" style="width:{shares[1]:.1f}%"></div></div>'
        )
    compared = paragraph(beside) if beside else ""
    return (
        f'<div class="card"><h3>{text(title)}</h3><p class="big">{text(figure)}</p>{compared}{drawn}'
        f'<p class="soft">{about}</p></div>'
    )


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
    return "" if value is None else text(str(value))
