"""The report's schema: every field is described, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from docs.generate.report import sections
from docs.generate.schema import described
from leptonc.report import SCHEMA_VERSION, Report, as_plain, report_of, to_json
from leptonc.report.quality import Fidelity


def test_every_field_is_described() -> None:
    kinds = sections()
    assert kinds[0] is Report
    assert len(kinds) > 20
    for kind in kinds:
        summary, meanings = described(kind)
        assert summary.endswith(".")
        assert list(meanings) == list(kind.__struct_fields__), kind
        assert all(text.endswith(".") for text in meanings.values()), kind


def test_what_is_written_reads_as_it_was_and_says_its_version() -> None:
    record = {
        "bytes": {"graph": 1, "tokenizer": 2, "weights": 3},
        "fidelity": {"kl_divergence": 0.5, "text": "built-in"},
        "variants": {"cpu": {"kept_in_half_precision": [], "quantization": {"budget": BUDGET}}},
    }
    report = report_of(record)
    assert json.loads(to_json(report)) == as_plain(report) == {"schema_version": SCHEMA_VERSION, **record}
    assert to_json(report_of(dict(reversed(record.items())))) == to_json(report)  # the order says nothing


BUDGET = {"bytes": 9, "least": 5, "spent": 4, "embeddings": None}  # null, and not left out


def test_what_was_not_measured_is_not_written() -> None:
    assert to_json(Report()) == b"{}\n"
    assert as_plain(Fidelity(perplexity=2.0)) == {"perplexity": 2.0}


def test_sections_are_taken_and_checked() -> None:
    assert report_of({"fidelity": Fidelity(tokens=3)}).fidelity == Fidelity(tokens=3)
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int | null`, got `str` - at `\$.fidelity.tokens`"):
        report_of({"fidelity": Fidelity(tokens="many")})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"fidelity": {"perplexty": 1.0}}, r"unknown field `perplexty` - at `\$.fidelity`"),
        ({"variants": {"cpu": {"linears": [{"path": "a"}]}}}, "missing required field `shape`"),
        ({"bytes": {"weights": "many", "graph": 1, "tokenizer": 1}}, r"Expected `int`, got `str` - at `\$.bytes"),
    ],
)
def test_what_does_not_fit_is_a_bug(record: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        report_of(record)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "auto:300kB"},
        {"weights": "int4", "prefill": "shared"},
        {"prune": "20%", "prune_compensation": "sequential", "activations": "int8"},
    ],
    ids=lambda options: " ".join(options.values()),
)
def test_a_builds_report_fits_and_is_whole(artifact: Callable[..., Path], text: Path, options: dict[str, Any]) -> None:
    path = artifact("sample:tiny-llama", calibration=text, eval_text=text, check=True, **options)
    data = (path / "report.json").read_bytes()
    report = msgspec.json.decode(data, type=Report)
    assert to_json(report) == data
    assert report.schema_version == SCHEMA_VERSION
    assert report.variants is not None
    (variant,) = report.variants.values()
    assert variant.linears
    assert variant.fidelity == report.fidelity is not None
