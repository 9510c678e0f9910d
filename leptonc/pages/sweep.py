"""The page of a sweep: what to choose, size against quality and speed, and all figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leptonc.pages import charts, words
from leptonc.pages.axes import Axis, number
from leptonc.pages.charts import Dot
from leptonc.pages.html import behind, page, paragraph, section, table, text

Record = Mapping[str, Any]
Row = Callable[[Record], Mapping[str, Any]]

_TITLES = {
    "bytes": "MB of graph and weights", "loss_percent": "loss, %", "decode_tok_s": "tokens/s of an answer",
    "prefill_tok_s": "tokens/s of a prompt", "texts_s": "texts/s",
}  # fmt: skip
_LESS = ("bytes", "loss_percent")
_FAR = 3  # times as large as the least is the largest of what is shown on a logarithmic axis
# What is plotted: across, upwards, the heading, and where the best points are.
_PLOTS = (
    ("bytes", "loss_percent", "Size and quality", "Best is at the bottom left: small, with little loss."),
    ("decode_tok_s", "loss_percent", "Speed and quality", "Best is at the bottom right: fast, with little loss."),
    ("bytes", "decode_tok_s", "Size and speed", "Best is at the top left: small and fast."),
    ("bytes", "prefill_tok_s", "Size and speed of prompts", "Best is at the top left: small and fast."),
    ("bytes", "texts_s", "Size and speed", "Best is at the top left: small and fast."),
)
_HOW = (
    "Each point is a scheme; its number is that of the table below. Filled points are not beaten: no other scheme is "
    "at least as good in everything that was measured, and better in something. The line joins those that no other "
    "beats in the two figures of its plot."
)
_LOSS = f"Loss is what a scheme is worse by than float32. {words.SCALE}"


def sweep_page(source: str, target: str, records: Sequence[Record], row: Row) -> bytes:
    """Returns one page without script or request.

    Args:
        source: The model, as it was asked for.
        target: The target.
        records: Points, as `leptonc.sweep.Sweep.run` returns them, with their marks.
        row: Returns a point's figures for people, by the names of columns.
    """
    numbered = [{**record, "number": index + 1} for index, record in enumerate(whole_of(records))]
    parts = [f"<h1>{text(headline(source, target, numbered))}</h1>"]
    parts.append(paragraph(_counted(records), "lead"))
    parts.append(section("What to choose", _choices(numbered)))
    plots = [section(title, _plot(title, good, numbered, x, y), 3) for x, y, title, good in _PLOTS]
    drawn = "".join(plots)
    parts.append(section("Plots", paragraph(_HOW) + drawn if drawn else ""))
    shown = [{"number": r["number"], **{k: v for k, v in row(r).items() if v not in ("", None)}} for r in numbered]
    parts.append(section("All figures", _columns(shown) + _explained(shown) if shown else ""))
    failed = [{"name": r["name"], "why": r["error"]["message"]} for r in records if "error" in r]
    parts.append(section("Failed", table(failed) if failed else ""))
    compared = [{"name": record["name"], **record["fidelity"]} for record in numbered if record.get("fidelity")]
    parts.append(behind("Each against the original, on the text of the builds", table(compared) if compared else ""))
    return page(f"{source} for {target}: sweep", "".join(parts))


def whole_of(records: Sequence[Record]) -> list[Record]:
    """Returns the points that did not fail."""
    return [record for record in records if "error" not in record]


def headline(source: str, target: str, records: Sequence[Record]) -> str:
    """Returns the first line: what is smallest within the least loss that some quantized scheme has."""
    for bound in words.WISHES:
        best = smallest(records, bound)
        largest = max((record["bytes"] for record in records), default=0)
        if best is not None and best["bytes"] < largest:
            size, lost = words.megabytes(best["bytes"]), words.percent(best["loss_percent"])
            return f"{source} for {target}: {best['name']} is the smallest within {bound:g} % of loss, {size} ({lost})"
    return f"{source} for {target}, in several schemes" if len(records) > 1 else f"{source} for {target}"


def smallest(records: Sequence[Record], bound: float) -> Record | None:
    """Returns the smallest point that loses at most so many percent; None where there is none."""
    able = [record for record in records if record.get("loss_percent", float("inf")) <= bound]
    return min(able, key=lambda record: (record["bytes"], record["loss_percent"]), default=None)


def _counted(records: Sequence[Record]) -> str:
    built, failed = len(whole_of(records)), len(records) - len(whole_of(records))
    told = "1 scheme was" if built == 1 else f"{built} schemes were"
    return f"{told} built and measured" + (f", {failed} failed." if failed else ".")


def _choices(records: Sequence[Record]) -> str:
    """Returns a table of wishes and the scheme for each; nothing where no loss was measured."""
    known = [record for record in records if "loss_percent" in record]
    if not known:
        return ""
    rows = [_choice(f"smallest with at most {bound:g} % loss", smallest(known, bound)) for bound in words.WISHES]
    rows.append(_choice("least loss", min(known, key=lambda record: (record["loss_percent"], record["bytes"]))))
    for name in ("decode_tok_s", "prefill_tok_s", "texts_s"):
        fast = [record for record in known if name in record]
        if fast:
            best = max(fast, key=lambda record: record[name])
            rows.append(_choice(f"most {_TITLES[name]}: {number(best[name])}", best))
    return paragraph(_LOSS) + table(rows)


def _choice(wish: str, best: Record | None) -> dict[str, Any]:
    if best is None:
        return {"wish": wish, "scheme": "none of these"}
    lost = words.percent(best["loss_percent"])
    return {"wish": wish, "scheme": best["name"], "size": words.megabytes(best["bytes"]), "loss": lost}


def _columns(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(rows, [name for name in dict.fromkeys(name for row in rows for name in row) if name != "front"])


def _explained(rows: Sequence[Mapping[str, Any]]) -> str:
    best = ", ".join(str(row["number"]) for row in rows if row.get("front"))
    return paragraph(f"Not beaten in all figures together: {best}.", "soft") if best else ""


def _plot(title: str, good: str, records: Sequence[Record], x: str, y: str) -> str:
    some = [record for record in records if x in record and y in record]
    if len(some) < 2:
        return ""
    places = [(_amount(record, x), _amount(record, y)) for record in some]
    dots = [
        Dot(at[0], at[1], str(record["name"]), int(record["number"]), bool(record.get("front")))
        for record, at in zip(some, places, strict=True)
    ]
    across, up = [at[0] for at in places], [at[1] for at in places]
    far = x == "bytes" and min(across) > 0 and max(across) > _FAR * min(across)
    axis = Axis.over(_TITLES[x] + (", logarithmic" if far else ""), across, log=far)
    upwards = Axis.over(_TITLES[y], up, zero=True)
    drawn = charts.scatter(title, f"{good} {_HOW}", dots, axis, upwards, _front(places, x, y))
    return paragraph(good) + drawn


def _amount(record: Record, name: str) -> float:
    return float(record[name]) / (1e6 if name == "bytes" else 1)


def _front(places: Sequence[tuple[float, float]], x: str, y: str) -> list[int]:
    """Returns the indices of the points that no other beats in both figures, from left to right."""
    signs = [-1 if name in _LESS else 1 for name in (x, y)]
    goods = [(signs[0] * a, signs[1] * b) for a, b in places]

    def beaten(mine: tuple[float, float]) -> bool:
        return any(other[0] >= mine[0] and other[1] >= mine[1] and other != mine for other in goods)

    return sorted((i for i, good in enumerate(goods) if not beaten(good)), key=lambda i: places[i])
