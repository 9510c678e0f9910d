"""Both pages in a browser: no text overlaps, leaves its plot or the page, or is hard to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import runtime_edge
from leptonc.pages.artifact import report_page
from leptonc.pages.sweep import sweep_page
from leptonc.report import Report, read_report
from leptonc.report.examples import Example, Examples
from leptonc.report.pruning import Pruning
from leptonc.report.section import Change
from leptonc.report.variant import Matrix, VariantReport
from leptonc.sweep import mark, row
from tests.browser import Browser, browser, found
from tests.layout import all_faults, faults_of

PARTS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj",
)  # fmt: skip
LONG = "an-organisation-with-a-very-long-name/" + "a-model-whose-name-does-not-end-" * 4


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = found()
    if program is None:
        pytest.skip("no Chromium is installed, and LEPTON_CHROMIUM names none")
    with browser(program) as opened:
        yield opened


def decoder(layers: int) -> VariantReport:
    """A report with everything that is drawn."""
    linears = [
        Matrix(
            path=f"model.layers.{i}.{part}", shape=(576, 576), weights="int8" if (i + at) % 3 else "int4",
            bytes=10_000 * (at + i % 4 + 1), snr_db=20.0 + at * 5 + i % 7, sensitivity=10.0 ** -(1 + (i + at) % 5),
        )
        for i in range(layers)
        for at, part in enumerate(PARTS)
    ]  # fmt: skip
    table = Matrix(path="model.embed_tokens", shape=(49152, 576), weights="int4", bytes=16_000_000, snr_db=25.0)
    head = Matrix(path="lm_head", shape=(49152, 576), weights="int8", bytes=30_000_000, snr_db=40.0, sensitivity=0.1)
    said = Example(input="Why is the sky blue? " * 3, original="Light " * 40, artifact="Light " * 20 + "x" * 300)
    about = Examples(about="What both say.", asks=True, rows=[said, said])
    return VariantReport(linears=[*linears, head], embeddings=[table], examples=about)


def pages(artifact: Callable[..., Path], folder: Path) -> dict[str, Path]:
    path = artifact("sample:tiny-llama", weights="int8", check=True)
    manifest, report = runtime_edge.verify(path), read_report(path / "report.json")
    names = [(i, kind) for i in range(32) for kind in ("attention", "mlp")]
    blocks = {f"model.layers.{i}/{kind}": f"{i + 1} of 40 {kind} units" for i, kind in names}
    pruning = Pruning(
        asked="25%", method="reconstruction", blocks=blocks, weights=Change(before=4, after=3), removed_percent=25.0
    )  # fmt: skip
    told = msgspec.structs.replace(decoder(32), fidelity=report.fidelity)
    targets = ("cpu", "jetson-agx-orin-64gb")
    several = tuple(msgspec.structs.replace(manifest.variants[0], name=name, target=name) for name in targets)
    named = msgspec.structs.replace(manifest, name=LONG, variants=several)
    made = {
        "decoder": report_page(manifest, Report(variants={"cpu": told}, pruning=pruning, fidelity=report.fidelity)),
        "many-layers": report_page(named, Report(variants={"cpu": decoder(126), several[1].name: decoder(1)})),
        "encoder": (artifact("sample:tiny-sentence", weights="int8", check=True) / "report.html").read_bytes(),
        "nothing": report_page(manifest, Report(warnings=[LONG])),
    }
    for name, content in made.items():
        (folder / f"{name}.html").write_bytes(content)
    return {name: folder / f"{name}.html" for name in made}


def test_reports(chromium: Browser, artifact: Callable[..., Path], tmp_path: Path) -> None:
    for name, path in pages(artifact, tmp_path).items():
        assert all_faults(chromium, path) == [], name


def point(name: str, megabytes: float, loss: float, decode: float, prefill: float) -> dict[str, Any]:
    return {
        "name": name, "bytes": int(megabytes * 1e6), "loss_percent": loss, "perplexity": 22.3 * (1 + loss / 100),
        "decode_tok_s": decode, "prefill_tok_s": prefill, "fidelity": {"kl_divergence": 0.01, "top1_agreement": 0.97},
    }  # fmt: skip


SWEEPS: dict[str, list[dict[str, Any]]] = {
    "usual": [
        point("fp32", 538.2, 0, 24.1, 410), point("int8", 144.3, 0.26, 61.2, 640), point("w8a8", 146, 1.9, 60.1, 905),
        point("auto:105MB", 104.9, 2.6, 70.3, 560), point("int4", 79.2, 7.5, 80.2, 520),
    ],
    "nearly equal": [point(f"{LONG}-{i}", 100 + i * 0.01, 3 + 0.01 * (i % 3), 50 + i / 10, 500 + i) for i in range(20)],
    "equal": [point(f"s{i}", 100, 1, 50, 500) for i in range(8)],
    "alone": [point("int8", 144.3, 0.26, 61.2, 640)],
    "failed": [
        point("int8", 144.3, 0.26, 61.2, 640), point("int4", 79.2, 7.5, 80.2, 520),
        {"name": "auto:20kB", "error": {"message": LONG, "hint": None, "exit_code": 3}},
    ],
    "all failed": [{"name": "fp8", "error": {"message": "expected another one", "hint": None, "exit_code": 3}}],
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps(chromium: Browser, name: str, tmp_path: Path) -> None:
    page = sweep_page(LONG if name == "alone" else "model", "cpu", mark(SWEEPS[name]), row)
    (tmp_path / "page.html").write_bytes(page)
    assert all_faults(chromium, tmp_path / "page.html") == []


PLANTED = {
    "overlap": '<svg viewBox="0 0 200 40" width="200"><text y="20">one text</text><text x="40" y="24">two</text></svg>',
    "leaves its plot": '<svg viewBox="0 0 90 40" width="90" overflow="visible"><text x="60" y="20">a text</text></svg>',
    "wide, and": '<div style="width:2000px">wide</div>',
    "contrast": '<p style="color:#999;background:#fff">pale</p>',
    "10 pixels": '<p style="font-size:8px">small</p>',
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_fault_that_is_planted_is_found(chromium: Browser, what: str, tmp_path: Path) -> None:
    page = sweep_page("model", "cpu", mark(SWEEPS["usual"]), row).decode()
    (tmp_path / "page.html").write_text(page.replace("</main>", f"{PLANTED[what]}</main>"))
    faults = faults_of(chromium, tmp_path / "page.html", 800)
    assert faults
    assert all(what in fault for fault in faults), faults


def test_it_is_dark_where_the_reader_wants_it(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_bytes(sweep_page("model", "cpu", mark(SWEEPS["usual"]), row))
    seen = []
    for dark, printed in ((False, False), (True, False), (True, True)):
        chromium.show(tmp_path / "page.html", 800, dark=dark, printed=printed)
        seen.append(chromium.run("getComputedStyle(document.body).backgroundColor"))
    assert seen == ["rgb(255, 255, 255)", "rgb(15, 19, 24)", "rgb(255, 255, 255)"]
