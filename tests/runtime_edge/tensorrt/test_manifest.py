"""What a manifest may say of an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime_edge.errors import ArtifactError
from runtime_edge.verify import read_manifest
from tests.runtime_edge.tensorrt.graphs import write_artifact


def test_an_engine_with_a_cache_of_integers_is_refused(tmp_path: Path) -> None:
    """Graphs may have one; no backend runs an engine with it."""
    root = write_artifact(tmp_path / "model.lepton")
    path = root / "manifest.json"
    fields = json.loads(path.read_text())
    engine = fields["variants"][1]["graphs"][0]["engine"]
    engine["cache_dtype"] = "int8"
    path.write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match="one of float32, float16, bfloat16, found 'int8'"):
        read_manifest(root)


def test_whether_weights_are_sparse_is_yes_or_no_and_no_where_nothing_is_said(tmp_path: Path) -> None:
    root = write_artifact(tmp_path / "model.lepton")
    path = root / "manifest.json"
    fields = json.loads(path.read_text())
    spec = fields["variants"][1]["graphs"][0]["engine"]["spec"]
    assert "sparse_weights" not in spec
    for said, wanted in ((None, False), (False, False), (True, True), ("2:4", None), (1, None)):
        spec |= {} if said is None else {"sparse_weights": said}
        path.write_text(json.dumps(fields))
        if wanted is None:
            with pytest.raises(ArtifactError, match="sparse_weights"):
                read_manifest(root)
            continue
        engines = [variant.engine for variant in read_manifest(root).variants if variant.engine is not None]
        assert [engine.spec.sparse_weights for engine in engines] == [wanted]


def test_an_engine_has_a_spec_and_no_other_field_for_it(tmp_path: Path) -> None:
    root = write_artifact(tmp_path / "model.lepton")
    path = root / "manifest.json"
    fields = json.loads(path.read_text())
    engine = fields["variants"][1]["graphs"][0]["engine"]
    engine["recipe"] = engine.pop("spec")
    path.write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match="unknown field"):
        read_manifest(root)
