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
    engine = next(variant["engine"] for variant in fields["variants"] if variant.get("engine"))
    engine["cache_dtype"] = "int8"
    path.write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match="one of float32, float16, bfloat16, found 'int8'"):
        read_manifest(root)
