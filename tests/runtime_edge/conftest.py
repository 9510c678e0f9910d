"""The tiny artifacts, built once, and models that are closed after each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import runtime_edge
from tests.runtime_edge import tiny


@pytest.fixture(scope="session")
def weights() -> tiny.Weights:
    return tiny.Weights.seeded()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, weights: tiny.Weights) -> Path:
    """The decoder's artifact, not to be changed."""
    return tiny.write_decoder(tmp_path_factory.mktemp("decoder"), weights=weights)


@pytest.fixture
def artifact(built: Path, tmp_path: Path) -> Path:
    """A copy of the decoder's artifact, to be changed."""
    return Path(shutil.copytree(built, tmp_path / "tiny.lepton"))


@pytest.fixture
def model(built: Path) -> Iterator[runtime_edge.Model]:
    with runtime_edge.load(built, threads=1) as opened:
        yield opened
