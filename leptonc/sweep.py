"""`sweep`: one model in several schemes, each built and measured; which of them nothing else beats.

A point that is kept has its artifact and, beside it, a record of what was asked for and what was measured. It is taken
again where both are there, the artifact is whole, and the same is asked for: a sweep that was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import runtime_edge
from leptonc import __version__
from leptonc.build.engine import text_readers
from leptonc.build.plan import artifact_plan
from leptonc.build.recipe import as_record, with_recipe
from leptonc.build.steps import TO_ARTIFACT
from leptonc.build.to_artifact import build
from leptonc.calibrate.texts import is_built_in
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from leptonc.pages.axes import number
from leptonc.progress import Progress
from leptonc.report import as_plain, read_report
from leptonc.report.quality import Fidelity
from runtime_edge.errors import LeptonError
from runtime_edge.files import MANIFEST_NAME
from runtime_edge.writing import write_output

# Names of schemes that say more than a number format of weights.
NAMED: Mapping[str, Mapping[str, str]] = {"w8a8": {"weights": "int8", "activations": "int8"}}
# What belongs to quantized weights alone.
_QUANTIZED = ("block_size", "symmetric", "method", "embeddings", "calibration", "layers", "activations")
# What is better smaller, what larger; of those that all points have.
LESS, MORE = ("bytes", "loss_percent"), ("prefill_tok_s", "decode_tok_s", "texts_s")

Record = dict[str, Any]
Measure = Callable[[Path], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Point:
    """One build of a sweep: what the table calls it, and its options."""

    name: str
    options: BuildOptions

    @property
    def stem(self) -> str:
        """Its artifact's name without suffix."""
        return re.sub(r"[^\w.-]+", "-", self.name)


def _read(options: BuildOptions) -> BuildOptions:
    """Leaves a calibration text away from a point that reads none: it is there for the others."""
    if any(text_readers(artifact_plan(options), TO_ARTIFACT).values()):
        return options
    return dataclasses.replace(options, calibration=None, chat=False)


def points(schemes: Sequence[str], recipes: Sequence[str], base: BuildOptions) -> list[Point]:
    """Returns a point for each scheme and each recipe.

    Args:
        schemes: Number formats of weights, auto:SIZE, or names of `NAMED`.
        recipes: Files, or names of shipped ones.
        base: Options of all; a recipe overrides them.

    Raises:
        InputError: There is none, one occurs twice, or a recipe cannot be read.
    """
    wanted = []
    for scheme in schemes:
        fields: Mapping[str, Any] = NAMED.get(scheme, {"weights": scheme})
        options = base
        if fields["weights"] in ("fp32", "fp16"):
            plain: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(base) if f.name in _QUANTIZED}
            options = dataclasses.replace(base, **plain)
        wanted.append(Point(scheme, _read(dataclasses.replace(options, **fields))))
    wanted += [Point(Path(recipe).stem, _read(with_recipe(base, recipe))) for recipe in recipes]
    names = [point.stem for point in wanted]
    if not wanted:
        raise InputError("expected at least one scheme or recipe, found none", hint="--schemes int4,int8,auto:95MB")
    if base.calibration is not None and all(point.options.calibration is None for point in wanted):
        raise InputError(
            f"expected a scheme or recipe that reads {base.calibration}, found {', '.join(names)}",
            hint="--schemes int4,auto:95MB, or --method gptq",
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"expected each scheme and recipe once, found {', '.join(twice)} twice")
    return wanted


class Sweep:
    """Builds and measures points, one after the other.

    Args:
        keep: Folder of the artifacts.
        measure: Measures an artifact; returns figures by name: `perplexity`, those of `LESS` and `MORE`.
        how: What decides what `measure` finds: figures that were measured with the same are taken again.
        progress: What shows how far a build is.
    """

    def __init__(self, keep: Path, measure: Measure, how: Mapping[str, Any], progress: Progress | None = None) -> None:
        self._keep, self._measure, self._how, self._progress = keep, measure, dict(how), progress
        self._texts: dict[Any, Any] = {}  # what the model wrote for its calibration is the same in every point

    def run(self, wanted: Sequence[Point]) -> list[Record]:
        """Returns a record for each point; one that failed has `error` in the place of figures."""
        origin = _origin(wanted[0].options.source)
        return mark([self._point(point, origin) for point in wanted])

    def _point(self, point: Point, origin: Mapping[str, str]) -> Record:
        asked = _asked(point.options, origin)
        artifact, beside = self._keep / f"{point.stem}.lepton", self._keep / f"{point.stem}.json"
        try:
            known = _known(artifact, beside, asked)
            reused = known is not None
            if known is None:
                options = dataclasses.replace(point.options, out=artifact, force=True)
                result = build(options, self._progress, self._texts)
                known = {"asked": asked, "manifest": _digest(artifact / MANIFEST_NAME), "seconds": result.seconds}
                known["estimated_seconds"] = result.estimated_seconds
                _write(beside, known)
            if known.get("how") != self._how:
                known |= {"how": self._how, "measured": self._measure(artifact)}
                _write(beside, known)
        except LeptonError as error:
            failed = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
            return {"name": point.name, "error": failed}
        report, (variant, *_) = read_report(artifact / "report.json"), runtime_edge.verify(artifact).variants
        stored = report.bytes.weights + report.bytes.graph if report.bytes is not None else 0
        return {
            "name": point.name, "artifact": str(artifact), "weights": variant.weights,
            "activations": variant.main.activations, "bytes": stored, "reused": reused,
            "fidelity": as_plain(report.fidelity or Fidelity()), **known["measured"],
        }  # fmt: skip


def _origin(source: str) -> dict[str, str]:
    from leptonc.sources import open_source

    with open_source(source) as opened:
        return dict(opened.origin)


def _asked(options: BuildOptions, origin: Mapping[str, str]) -> dict[str, Any]:
    """What decides a point's bytes, as JSON has it."""
    texts = {name: getattr(options, name) for name in ("calibration", "eval_text")}
    asked = {
        "leptonc": __version__, "origin": origin, "target": options.target, "recipe": as_record(options),
        "sha256": {name: _digest(path) for name, path in texts.items()
                   if path is not None and not is_built_in(path)},
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(asked))
    return plain


def _known(artifact: Path, beside: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is recorded of a point that is whole and was asked for as now, or None."""
    try:
        known: dict[str, Any] = json.loads(beside.read_text())
        if known["asked"] != asked or known["manifest"] != _digest(artifact / MANIFEST_NAME):
            return None
        runtime_edge.verify(artifact)
    except (OSError, ValueError, KeyError, TypeError, LeptonError):
        return None  # not there, or not whole: it is built anew
    return known


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a record whole or not at all (raises `RequestError`: it cannot be written)."""
    write_output(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def mark(records: list[Record]) -> list[Record]:
    """Says of each record whether it is on the front, `front`: no other is at least as good in all and better in one.

    Compared is what all records without an error have, of `LESS` and `MORE`.
    """
    whole = [record for record in records if "error" not in record]
    names = [name for name in (*LESS, *MORE) if all(name in record for record in whole)]
    goods = {id(record): tuple(-record[n] if n in LESS else record[n] for n in names) for record in whole}
    for record in whole:
        mine = goods[id(record)]
        record["front"] = not any(beats(other, mine) for other in goods.values())
    return records


def beats(other: Sequence[float], mine: Sequence[float]) -> bool:
    """Whether figures, all better when larger, are at least as good everywhere and better somewhere."""
    return all(a >= b for a, b in zip(other, mine, strict=True)) and tuple(other) != tuple(mine)


def row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's figures for people."""
    fidelity = record.get("fidelity", {})
    figures = {"KL": fidelity.get("kl_divergence"), "top-1": fidelity.get("top1_agreement"),
               "cosine": fidelity.get("cosine_mean")}  # fmt: skip
    speeds = {name.replace("_tok_s", " tok/s").replace("_s", "/s"): record.get(name) for name in MORE}
    return {
        "name": record["name"], "MB": round(record["bytes"] / 1e6, 2),
        "perplexity": record.get("perplexity"), "loss %": record.get("loss_percent"), **figures,
        **{name: round(value, 1) if value is not None else None for name, value in speeds.items()},
        "front": "*" if record.get("front") else "",
    }  # fmt: skip


def lines(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Returns headings and rows of a table for a terminal: the columns that some point has."""
    rows = [row(record) for record in records if "error" not in record]
    columns = dict.fromkeys(name for figures in rows for name in figures)
    names = [name for name in columns if any(r[name] is not None for r in rows)]
    texts = [["" if r[n] is None else r[n] if isinstance(r[n], str) else number(r[n]) for n in names] for r in rows]
    return names, texts
