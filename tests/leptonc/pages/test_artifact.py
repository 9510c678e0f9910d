"""`report.html`: one file, whatever the report holds, with the report's own figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec

import runtime_edge
from leptonc.pages.artifact import report_page
from leptonc.pages.axes import number
from leptonc.pages.words import percent, verdict
from leptonc.report import Report, report_of
from leptonc.report.examples import Example, Examples
from leptonc.report.pruning import Pruning
from leptonc.report.quality import Judged, Recovery
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
    assert "All matrices of weights are int4" in read.text  # and no picture of what is the same
    column = number(float(f"{embedding['bytes'] / 1e6:.3g}"))
    assert f"embedding: embedding {column} MB" in read.text
    assert f"model.embed_tokens: {number(embedding['snr_db'])}" in read.text
    (headline,) = re.findall("<h1>(.*?)</h1>", page.decode())
    times = 4 * manifest.parameters / (report["bytes"]["weights"] + report["bytes"]["graph"])
    assert headline == f"{manifest.name}, made {times:.1f} times smaller"
    lost = 100 * (found["fidelity"]["perplexity"] / found["fidelity"]["perplexity_reference"] - 1)
    agreed = found["fidelity"]["top1_agreement"]
    assert f"Its answers are {verdict(lost, agreed)}: perplexity {percent(lost)}." in read.text
    for row in (*found["linears"], embedding):
        assert row["path"] in read.cells
        assert number(row["snr_db"]) in read.cells
    assert number(found["fidelity"]["kl_divergence"]) in read.cells
    assert {"quantize-weights", f"{report['bytes']['weights']:,}"} <= set(read.cells)
    wide = re.findall(r'<svg class="wide".*?</svg>', page.decode())
    (noise,) = [svg for svg in wide if "<title>Signal-to-noise" in svg]
    assert noise.count('class="mark ') == len(found["linears"]) + 1
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
    for title in ("model.layers.0/mlp: 96 of 128 channels", "model.layers.1/mlp: gone", "attention heads", "25%"):
        assert title in read.text, title
    assert {"recovery before kl divergence", "recovery after kl divergence"} <= set(read.cells)
    assert {"0.25", "cuts 5 of them"} <= set(read.cells)
    assert "Error of each layer" not in read.text  # not measured
    assert read.text.count("not measured") == 3  # the lead, quality and speed say so
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
    for title, about in (("Perplexity", found), ("Perplexity of prompts", found["prefill"])):
        ours, original = about["fidelity"]["perplexity"], about["fidelity"]["perplexity_reference"]
        figure = f"{number(float(f'{ours:.4g}'))} ({percent(100 * (ours / original - 1))})"
        assert f"{title}\n{figure}\nfloat32: {number(float(f'{original:.4g}'))}\n" in read.text
    assert "Ranges of activations" in read.text
    for each in found["prefill"]["activations"]["inputs"]:
        assert f"{each['layers'][0]}: {number(max(map(abs, each['range'])))}" in read.text


HOSTILE = "</p><script>alert(1)</script>\x00\x1b[31m\u202eevil 'quoted' \"twice\" & <b>"


def test_what_models_say_is_text_and_nothing_else(artifact: Callable[..., Path]) -> None:
    manifest = runtime_edge.verify(artifact("sample:tiny-llama", weights="int4"))
    rows = [Example(input=HOSTILE, original="The same <i>start</i>", artifact=f"The same {HOSTILE}")]
    told = VariantReport(examples=Examples(about=HOSTILE, asks=True, rows=rows))
    named = msgspec.structs.replace(manifest, name=HOSTILE, architecture=HOSTILE)
    page = report_page(named, Report(variants={"cpu": told}, warnings=[HOSTILE]))
    read = contained(page)
    assert not read.tags & {"script", "b", "i"}
    assert not re.search("[\x00\x1b\u202e]", page.decode())
    assert page.decode().count("&lt;script&gt;") >= 6
    assert "The same " in read.text
    assert "Underlined is what follows the first difference." in read.text


def test_a_page_says_what_is_good_of_every_figure_and_names_the_originals(artifact: Callable[..., Path]) -> None:
    """Each card of a decoder, a classifier and an embedding model has a sentence, and float32's figure where known."""
    for source in ("sample:tiny-llama", "sample:tiny-bert-classifier", "sample:tiny-sentence"):
        page = (artifact(source, weights="int8", check=True) / "report.html").read_text()
        begun = page.partition("</style>")[2].split('<div class="card">')[1:]
        cards = [card.partition("</p></div>")[0] + "</p>" for card in begun]
        assert len(cards) >= 3
        assert all(re.search(r'<p class="soft">[A-Z][^.]+\.', card) for card in cards)
        assert sum(">float32: " in card for card in cards) == len(cards) - 1  # speed is not measured
        assert "leptonc bench" in cards[-1]


def test_the_original_is_that_before_pruning(artifact: Callable[..., Path]) -> None:
    path = artifact("sample:tiny-llama", weights="int8", prune="25%", prune_method="magnitude")
    report, manifest = json.loads((path / "report.json").read_text()), runtime_edge.verify(path)
    assert report["parameters"] > manifest.parameters
    times = 4 * report["parameters"] / (report["bytes"]["weights"] + report["bytes"]["graph"])
    page = (path / "report.html").read_text()
    assert f"made {times:.1f} times smaller" in page
