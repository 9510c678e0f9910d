"""Where plans, measured times and compiled kernels are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_edge.tensorrt import cache as caches
from runtime_edge.tensorrt.device import Device


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("LEPTON_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert caches.cache_root() == tmp_path / ".cache" / "lepton"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert caches.cache_root() == tmp_path / ".cache" / "lepton"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert caches.cache_root() == tmp_path / "xdg" / "lepton"
    monkeypatch.setenv("LEPTON_CACHE", "~/own")
    assert caches.cache_root() == tmp_path / "own"
    assert caches.private_directory("plans") == tmp_path / "own" / "plans"


def test_the_place_of_compiled_kernels(tmp_path: Path) -> None:
    one = caches.jit_cache_path("a" * 64, Device("8.9", "1.7.1.116"), tmp_path)
    assert one.parent == tmp_path / "jit"
    assert one.parent.is_dir()
    others = {
        caches.jit_cache_path("b" * 64, Device("8.9", "1.7.1.116"), tmp_path),
        caches.jit_cache_path("a" * 64, Device("8.6", "1.7.1.116"), tmp_path),
        caches.jit_cache_path("a" * 64, Device("8.9", "1.7.2.1"), tmp_path),
    }
    assert len({one, *others}) == 4
