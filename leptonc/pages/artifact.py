"""`report.html`: the manifest and the report of an artifact as one page for people.

The page begins with what was done and what it cost, in words, and goes on from there to every figure. It is readable
without its pictures, whose figures are in tables. A section appears where the report has its data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leptonc.pages import words
from leptonc.pages.axes import number
from leptonc.pages.html import behind, card, facts, page, paragraph, section, table, text
from leptonc.pages.sections import SECTIONS, pruned
from leptonc.report import Report, as_plain
from leptonc.report.examples import Examples
from leptonc.report.quality import Fidelity
from leptonc.report.variant import VariantReport
from runtime_edge.manifest import Manifest, Variant

FLOAT32 = 4  # bytes of a weight of the original
_PERPLEXITY = (
    "Perplexity says between how many tokens the model hesitates on average, as it reads a text. Less is better."
)


def report_page(manifest: Manifest, report: Report) -> bytes:
    """Returns `report.html`.

    Args:
        manifest: The artifact's manifest; its files are all but the page and the report.
        report: The content of `report.json`.
    """
    first = manifest.variants[0]
    told = _report_of(report, first)
    parts = [f"<h1>{text(_headline(manifest, report))}</h1>"]
    parts.append(paragraph(words.quality(told.fidelity, _outputs(told)), "lead"))
    parts.append(paragraph(f"{manifest.task}, {manifest.architecture}, {manifest.parameters:,} parameters", "soft"))
    parts.append(section("Warnings", _warnings(report)))
    for variant in manifest.variants:
        parts.append(_variant(manifest, variant, report))
    parts.append(section("What was pruned", _pruning(report)))
    parts.append(section("How it was built", _built(manifest, report)))
    shown = {"schema_version", "variants", "recipe", "fidelity", "pruning", "structure", "bytes", "warnings"}
    parts.append(section("All figures", _figures(manifest, report) + behind("Of the model", facts(report, shown))))
    return page(f"{manifest.name}: report", "".join(parts))


def _report_of(report: Report, variant: Variant) -> VariantReport:
    return report.variants.get(variant.name, VariantReport())


def _outputs(report: VariantReport) -> str:
    return "answers" if report.fidelity is not None and report.fidelity.perplexity is not None else "outputs"


def _whole(manifest: Manifest, report: Report) -> int | None:
    """Returns the original's bytes in float32; None where a report of earlier versions does not know them."""
    if report.parameters is not None:
        return FLOAT32 * report.parameters
    return None if report.pruning is not None else FLOAT32 * manifest.parameters


def _stored(manifest: Manifest, variant: Variant) -> int:
    sizes = {file.path: file.size for file in manifest.files}
    return sum(sizes.get(path, 0) for path in (variant.main.file, *variant.blobs))


def _headline(manifest: Manifest, report: Report) -> str:
    whole, stored = _whole(manifest, report), _stored(manifest, manifest.variants[0])
    if whole is None or not stored:
        return manifest.name
    return f"{manifest.name}, {words.smaller(whole, stored)}"


def _variant(manifest: Manifest, variant: Variant, report: Report) -> str:
    told = _report_of(report, variant)
    cards = [_size(manifest, variant, report, told), *_quality(told), _speed(report, told)]
    parts = [f'<div class="cards">{"".join(cards)}</div>', _examples(told.examples)]
    parts += [section(title, make(told), 3) for title, make in SECTIONS]
    return section(f"For {variant.target}, run by {variant.backend}", "".join(parts))


# Cards


def _size(manifest: Manifest, variant: Variant, report: Report, told: VariantReport) -> str:
    whole, stored = _whole(manifest, report), _stored(manifest, variant)
    about = f"Weights are stored as {variant.weights}. Less is better: a device reads all of them for each token."
    if told.fidelity is None or told.fidelity.perplexity is None:
        about = f"Weights are stored as {variant.weights}. Less is better."
    if variant.main.activations != "none":
        about += f" Layers read {variant.main.activations} activations."
    beside = f"float32: {words.megabytes(whole)}" if whole is not None else ""
    bars = (float(whole), float(stored)) if whole is not None else None
    return card("Size of graph and weights", words.megabytes(stored), beside, text(about), bars)


def _quality(told: VariantReport) -> list[str]:
    if told.fidelity is None:
        about = text("A build measures it on a text, unless ") + "<code>--no-check</code>" + text(" is given.")
        return [card("Quality", "not measured", "", about)]
    cards = _measured(told.fidelity, "")
    if told.prefill is not None and told.prefill.fidelity is not None:
        cards += _measured(told.prefill.fidelity, " of prompts")
    return cards


def _measured(fidelity: Fidelity, whom: str) -> list[str]:
    """Returns cards of what was measured; `whom` ends their titles."""
    cards = []
    text_name = "a text that Lepton carries" if fidelity.text in (None, "built-in") else str(fidelity.text)
    tokens = f" Measured on {fidelity.tokens} tokens of {text_name}." if fidelity.tokens else ""
    if fidelity.perplexity is not None and fidelity.perplexity_reference is not None:
        ours, original = fidelity.perplexity, fidelity.perplexity_reference
        lost = words.percent(100 * (ours / original - 1))
        about = text(f"{_PERPLEXITY} {words.SCALE}{tokens}")
        figure = f"{_rounded(ours)} ({lost})"
        cards.append(card(f"Perplexity{whom}", figure, f"float32: {_rounded(original)}", about, (original, ours)))
    if fidelity.score_error is not None:
        about = text(f"How far scores move on average. Less is better. {words.SCALE}")
        cards.append(card(f"Change of scores{whom}", f"{100 * fidelity.score_error:.2g} %", "float32: 0 %", about))
    if fidelity.top1_agreement is not None:
        what = "most likely next token" if fidelity.tokens else "label"
        figure = f"{100 * fidelity.top1_agreement:.4g} %"
        about = text(f"How often both have the same {what}. More is better, and 100 % is as good as the original.")
        cards.append(card(f"Same {what}{whom}", figure, "float32: 100 %", about, (1.0, fidelity.top1_agreement)))
    if fidelity.cosine_mean is not None and fidelity.perplexity is None:
        about = text("How alike both models' vectors of a text are. More is better, and 1 is the same direction.")
        figure = f"{fidelity.cosine_mean:.5f}"
        cards.append(card(f"Cosine similarity{whom}", figure, "float32: 1", about))
    return cards


def _speed(report: Report, told: VariantReport) -> str:
    bench = "<code>leptonc bench ARTIFACT</code>"
    if report.pruning is not None and (speed := report.pruning.speed) is not None:
        figure, beside = f"{_rounded(speed.after_ms)} ms", f"before pruning: {_rounded(speed.before_ms)} ms"
        about = f"For {speed.of}, on the machine that built it, with weights as {speed.weights}. Less is better."
        both = speed.before_ms, speed.after_ms
        return card("Time", figure, beside, f"{text(about)} On your device: {bench}.", both)
    preflight = told.preflight
    if preflight is not None and preflight.decode_tokens_per_s_at_most is not None:
        figure = f"at most {_rounded(preflight.decode_tokens_per_s_at_most)} tokens/s"
        about = f"Reckoned from the bandwidth of the device's memory, not measured. On the device: {bench}."
        return card("Speed", figure, "", about)
    compared = "<code>leptonc sweep MODEL --schemes fp32,int8 --speed</code>"
    about = f"A build measures none, because it depends on the device. There: {bench}. Beside float32: {compared}."
    return card("Speed", "not measured", "", about)


def _rounded(value: float) -> str:
    return number(float(f"{value:.4g}"))


# Sections


def _examples(examples: Examples | None) -> str:
    if examples is None or not examples.rows:
        return ""
    parts = [paragraph(examples.about)]
    for row in examples.rows:
        same = row.original == row.artifact
        ours = _differing(row.original, row.artifact)
        both = (("The original, float32", text(row.original)), ("This artifact", ours))
        shown = "".join(
            f'<div><p class="soft">{name}</p><p class="said" dir="auto">{said or "<em>nothing</em>"}</p></div>'
            for name, said in both
        )
        note = '<p class="soft">Both say the same.</p>' if same else ""
        parts.append(f'<h4 dir="auto">{text(row.input)}</h4><div class="pair">{shown}</div>{note}')
    if any(row.original != row.artifact for row in examples.rows):
        parts.append(paragraph("Underlined is what follows the first difference.", "soft"))
    return section("The same questions to both" if examples.asks else "The same texts to both", "".join(parts), 3)


def _differing(original: str, ours: str) -> str:
    """Returns a text as HTML, marked from the word on in which it differs from the original's."""
    same = 0
    for left, right in zip(original, ours, strict=False):
        if left != right:
            break
        same += 1
    if same == len(ours):
        return text(ours)
    same = ours.rfind(" ", 0, same) + 1 if same < len(ours) and same else same
    return f"{text(ours[:same])}<mark>{text(ours[same:])}</mark>"


def _pruning(report: Report) -> str:
    if report.pruning is None:
        return ""
    pruning = report.pruning
    gone, left = number(pruning.removed_percent), f"{pruning.weights.after:,} of {pruning.weights.before:,} are left"
    said = paragraph(f"{gone} % of the layers' weights are gone: {left}. What goes was chosen by {pruning.method}.")
    return said + pruned(report) + behind("Everything on pruning", facts(pruning))


def _warnings(report: Report) -> str:
    items = "".join(f"<li>{text(warning)}</li>" for warning in report.warnings or ())
    return f"<ul>{items}</ul>" if items else ""


def _built(manifest: Manifest, report: Report) -> str:
    rows = [
        {"pass": record.name, "version": record.version, "configuration": _short(record.config)}
        for record in manifest.passes
    ]
    asked = facts(report.recipe) or paragraph("Nothing but defaults was asked for.")
    origin = facts(manifest.source) + behind("What it was built with", facts(dict(manifest.toolchain)))
    return (
        section("What was asked for", asked, 3) + section("Where the model came from", origin, 3)
        + behind(f"What was done to the model, in order: {len(rows)} passes", table(rows) if rows else "")
    )  # fmt: skip


def _figures(manifest: Manifest, report: Report) -> str:
    parts = []
    for variant in manifest.variants:
        told = as_plain(_report_of(report, variant))
        rest = {name: value for name, value in told.items() if name not in ("linears", "embeddings", "examples")}
        parts.append(behind(f"Of the variant {variant.name}", facts(rest)))
    sizes = as_plain(report.bytes) if report.bytes is not None else {}
    parts.append(behind("Bytes", table([{"part": n, "bytes": size} for n, size in sizes.items()]) if sizes else ""))
    parts.append(behind("Structure", facts(report.structure)))
    return "".join(parts)


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
