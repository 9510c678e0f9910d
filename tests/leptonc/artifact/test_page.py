"""`report.html`: one file, whatever the report holds, with the report's own figures."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

import runtime_edge
from leptonc.artifact.page import report_page
from leptonc.artifact.plots import Axis, Dot, dots, number
from leptonc.evaluate.bounds import loss
from leptonc.report import Report, report_of
from leptonc.report.pruning import Pruning
from leptonc.report.quality import Fidelity, Judged, Recovery
from leptonc.report.quantization import Activations, Quantization, QuantizedInput
from leptonc.report.section import Change
from leptonc.report.variant import Matrix, VariantReport
from runtime_edge.manifest import PassRecord

VOID = {"meta"}


class Reader(HTMLParser):
    """Reads a page: that tags close in order, attributes, texts and the cells of tables."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.text = ""
        self.feed(page.decode())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def contained(page: bytes) -> Reader:
    """Asserts that nothing outside the page is asked for, and nothing in it runs."""
    read = Reader(page)
    assert not read.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a", "use", "image"}
    names = {name for name, _ in read.attributes}
    assert not names & {"src", "href", "xlink:href", "srcset", "action"}
    assert not any(name.startswith("on") for name in names)
    assert not re.search(rb"url\(|@import|https?:", page)
    assert b"default-src 'none'" in page
    return read


def test_an_artifacts_page_is_one_file_with_the_reports_figures(
    artifact: Callable[..., Path], leptonc: Callable[..., Any], tmp_path: Path
) -> None:
    path = artifact("sample:tiny-llama", weights="int4", check=True)
    manifest, report = runtime_edge.verify(path), json.loads((path / "report.json").read_text())
    page = (path / "report.html").read_bytes()
    read = contained(page)
    assert len(page) < 200_000
    found = report["variants"]["cpu"]
    (embedding,) = found["embeddings"]
    # The step of a block of 32 is 2 bytes beside 16 of codes.
    assert (embedding["path"], embedding["head"], embedding["weights"]) == ("model.embed_tokens", "lm_head", "int4")
    assert embedding["bytes"] == embedding["shape"][0] * embedding["shape"][1] // 32 * 18
    assert f"{embedding['bytes']:,}" in read.cells
    assert "embedding: int4, blocks of 32" in read.text
    assert f"embedding: {number(embedding['bytes'] / 1e6)}" in read.text  # its column of megabytes
    assert f"embedding: {number(embedding['snr_db'])}" in read.text
    for row in (*found["linears"], embedding):
        assert row["path"] in read.cells
        assert number(row["snr_db"]) in read.cells
    assert number(found["fidelity"]["kl_divergence"]) in read.cells
    assert {"quantize-weights", f"{report['bytes']['weights']:,}"} <= set(read.cells)
    assert page.count(b"<circle") == len(found["linears"]) + 1
    assert "Pruned" not in read.text
    listed = msgspec.structs.replace(
        manifest, report=None, files=tuple(f for f in manifest.files if not f.path.startswith("report."))
    )
    assert report_page(listed, report_of(report)) == page  # of the manifest and the report alone
    assert leptonc("inspect", path, "--html", tmp_path / "copy.html").code == 0
    assert (tmp_path / "copy.html").read_bytes() == page


def test_a_page_that_was_changed_or_is_not_there_is_not_copied(
    artifact: Callable[..., Path], tiny_artifact: Path, leptonc: Callable[..., Any], tmp_path: Path
) -> None:
    import shutil

    path = shutil.copytree(artifact("sample:tiny-llama", weights="int4"), tmp_path / "m")
    (path / "report.html").write_bytes((path / "report.html").read_bytes() + b" ")
    done = leptonc("inspect", path, "--html", tmp_path / "copy.html")
    assert (done.code, "expected sha256" in done.err) == (1, True)
    done = leptonc("inspect", tiny_artifact, "--html", tmp_path / "copy.html")
    assert (done.code, "expected report.html, found none" in done.err) == (1, True)
    assert not (tmp_path / "copy.html").exists()


def test_sections_follow_from_what_is_reported(artifact: Callable[..., Path]) -> None:
    manifest = runtime_edge.verify(artifact("sample:tiny-llama", weights="int4"))
    manifest = msgspec.structs.replace(
        manifest, name="<b>bold</b> & co", passes=(PassRecord(name="p", version=1, config={"cuts": [1, 2, 3, 4, 5]}),)
    )
    linears = [
        Matrix(path=f"model.layers.{i}.mlp.up_proj", shape=(8, 8), weights=w, bytes=100, sensitivity=10.0**-i)
        for i, w in enumerate(("int4", "int8", "fp32"))
    ]
    inputs = [
        QuantizedInput(
            layers=[row.path], bits=8, range=(-3.0, 10.0 * (i + 1)), scale=1.0, zero=0, outliers=[], smoothing=0.0,
            error=0.0, error_unsmoothed=0.0, divergence=0.0,
        )
        for i, row in enumerate(linears)
    ]  # fmt: skip
    activations = Activations(
        calibrator="search", int8_share=1.0, int16_share=0.0, int8_share_of="all", inputs=inputs
    )  # fmt: skip
    recovery = Recovery(
        text="<script>x</script>", steps=1, seconds=1.0, learned_from=1, held_out=1, before=Judged(kl_divergence=0.5),
        after=Judged(kl_divergence=0.25),
    )  # fmt: skip
    quantization = Quantization(activations=activations)
    blocks = {
        "model.layers.0/mlp": "96 of 128 channels", "model.layers.1/mlp": "gone",
        "model.layers.0/attention": "1 of 2 groups, 3 of 4 heads",
    }  # fmt: skip
    warnings = ["the head is <b>not</b> tied", "config.json sets num_beams to 3"]
    report = Report(
        variants={"cpu": VariantReport(linears=linears, quantization=quantization, recovery=recovery)},
        pruning=Pruning(
            asked="25%", method="reconstruction", blocks=blocks, weights=Change(before=4, after=3), removed_percent=25.0
        ),
        warnings=warnings,
    )  # fmt: skip
    page = report_page(manifest, report)
    read = contained(page)
    assert b"<b>bold" not in page
    for expected in ("What was pruned", "Ranges of activations", "Sensitivity", "int4", "int8", "fp32"):
        assert expected in read.text, expected
    for title in ("model.layers.0/mlp: 96 of 128 channels", "model.layers.1/mlp: gone", "attention heads", "30", "25%"):
        assert title in read.text, title
    assert {"recovery before kl divergence", "recovery after kl divergence"} <= set(read.cells)
    assert {"0.25", "cuts 5 of them"} <= set(read.cells)
    assert "Signal-to-noise" not in read.text  # not measured
    assert page.index(b"<h2>Warnings</h2>") < page.index(b"What was pruned")
    for told in warnings:
        assert page.decode().count(f"<li>{escape(told)}</li>") == 1
    assert b"Warnings" not in report_page(manifest, Report())
    assert contained(report_page(manifest, Report()))  # nothing known is a page too


def test_a_page_of_two_graphs_shows_the_one_for_prompts(artifact: Callable[..., Path], text: Path) -> None:
    options = {"weights": "int4", "prefill": "shared", "calibration": text, "eval_text": text, "check": True}
    path = artifact("sample:tiny-llama", **options)
    read = contained((path / "report.html").read_bytes())
    found = json.loads((path / "report.json").read_text())["variants"]["cpu"]
    for what, about in (("against float32", found), ("prompts against float32", found["prefill"])):
        how, lost = loss(Fidelity(**about["fidelity"]))
        assert f"{what}: {how}\n{lost:.2f} %" in read.text
    assert "Ranges of activations" in read.text
    for each in found["prefill"]["activations"]["inputs"]:
        assert f"{each['layers'][0]}: {number(max(map(abs, each['range'])))}" in read.text


@pytest.mark.parametrize("log", [False, True])
def test_points_lie_where_their_axes_say(log: bool) -> None:
    values = [1.0, 10.0, 100.0]
    x, y = Axis.over("x", values, log=log), Axis.over("y", values, log=log)
    drawn = dots("t", [Dot(v, v, 0, "p") for v in values], x, y, line=(0, 1, 2))
    centres = [tuple(map(float, c)) for c in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    steps = [(b[0] - a[0], a[1] - b[1]) for a, b in itertools.pairwise(centres)]
    expected = 1.0 if log else 10.0
    for axis in (0, 1):
        assert steps[1][axis] / steps[0][axis] == pytest.approx(expected, rel=0.02)
    assert all(56 <= cx <= 708 and 10 <= cy <= 220 for cx, cy in centres)
    assert all(x.low <= tick <= x.high for tick in x.ticks())
    assert len(x.ticks()) >= 3


def test_axes_of_a_single_value_and_of_zeros() -> None:
    for values in ([5.0], [0.0, 0.0]):
        axis = Axis.over("x", values)
        assert 0 < axis.at(values[0]) < 1
        assert axis.ticks()
    assert (number(1234567.0), number(0.000123456), number(12.5)) == ("1,234,567", "0.0001235", "12.5")
