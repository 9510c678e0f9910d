"""benchmarks/prepare_peers.py: what it calls, and that its list is what curve.py reads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra compiler")

from benchmarks import curve, peer_quality, peer_speed, prepare_peers


@pytest.mark.parametrize("name", prepare_peers.PEERS)
def test_each_peer_is_installed_made_and_listed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, ran = prepare_peers.PEERS[name], []

    def run(command: list[str], folder: Path, **environment: str) -> None:
        ran.append(command)
        for model in peer.models:
            if model.path in command:
                for file in model.files:
                    (folder / file).parent.mkdir(exist_ok=True)
                    (folder / file).write_bytes(b"weights")

    def create(home: Path, **options: Any) -> None:
        home.mkdir()

    monkeypatch.setattr(prepare_peers, "run", run)
    monkeypatch.setattr(prepare_peers.venv, "create", create)
    monkeypatch.setattr(prepare_peers, "kind_of", lambda path: prepare_peers.LLAMA_TYPES["Q4_K_M"])
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"original")
    tables = prepare_peers.prepare(name, peer, tmp_path, {"hf": str(tmp_path / "hf"), "gguf": str(gguf)})
    assert ran[0][1:5] == ["-m", "pip", "install", "--quiet"]
    listing = tmp_path / "peers.toml"
    listing.write_text("\n".join(tables))
    listed = curve.peers(listing)
    assert [peer["name"] for peer in listed] == [model.name for model in peer.models]
    for field, module in (("quality", peer_quality), ("speed", peer_speed)):
        for row in listed:
            script, kind, model = shlex.split(row[field])[1:4]
            assert Path(script) == Path(str(module.__file__))
            assert kind in module.PEERS
            assert (tmp_path / model).exists()
    if name == "llama.cpp":
        assert (tmp_path / "llama.cpp-Q4_K_M.gguf").read_bytes() == b"original"  # it has that type already
        assert not any("llama.cpp-Q4_K_M.gguf" in command for command in ran)
        assert any(f"{gguf}" in command for command in ran)
