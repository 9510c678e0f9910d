"""`--attach`: files of the user's in the artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import runtime_edge
from leptonc.build.steps import attach_files
from leptonc.build.to_artifact import build
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from runtime_edge.errors import ArtifactError

LLAMA = "sample:tiny-llama"


def options(out: Path, attach: Path) -> BuildOptions:
    return BuildOptions(LLAMA, out=out, weights="int8", check=False, attach=attach)


def test_a_file_and_the_files_of_a_folder_go_in_as_they_are(tmp_path: Path) -> None:
    (folder := tmp_path / "papers").mkdir()
    (folder / "LICENSE").write_bytes(b"Do as you like.\n\0")
    (folder / "model card.md").write_text("# A card")
    (folder / "below").mkdir()
    one = build(options(tmp_path / "one", folder / "LICENSE"))
    assert (one.path / "attached" / "LICENSE").read_bytes() == b"Do as you like.\n\0"
    both = build(options(tmp_path / "both", folder))
    manifest = runtime_edge.verify(both.path)
    assert [file.path for file in manifest.files if file.path.startswith("attached/")] == [
        "attached/LICENSE", "attached/model card.md",
    ]  # fmt: skip
    with runtime_edge.load(both.path) as model:
        assert len(model.generate("a", max_new_tokens=2).token_ids) == 2
    (both.path / "attached" / "LICENSE").write_bytes(b"Do as I say.\n\0\0\0\0")
    with pytest.raises(ArtifactError, match="attached/LICENSE"):
        runtime_edge.verify(both.path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: None, "expected a file or a folder to attach, found none at "),
        (lambda place: place.mkdir(), "expected files to attach in .*, found none"),
        (lambda place: place.write_bytes(bytes(101)), "of at most 100 bytes together to attach, found 101"),
        (lambda place: (place.mkdir(), (place / "a:b").write_text("")), "expected names of letters, .* found 'a:b'"),
        (lambda place: (place.mkdir(), (place / "a.").write_text("")), "expected names of letters, .* found 'a.'"),
    ],
)
def test_what_cannot_be_attached_is_refused_before_anything_is_opened(
    make: Callable[[Path], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach_files, "LARGEST", 100)
    monkeypatch.setattr("leptonc.build.begin.open_source", None)
    make(place := tmp_path / "place")
    with pytest.raises(InputError, match=message):
        build(options(tmp_path / "out", place))
    assert not (tmp_path / "out").exists()
