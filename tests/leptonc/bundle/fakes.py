"""Small wheels that nothing compiles and no index has, in a folder that pip looks in."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

TAG = "py3-none-any"


def wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    needs: Sequence[str] = (),
    extras: Sequence[str] = (),
    tag: str = TAG,
    files: Mapping[str, str] | None = None,
    scripts: str | None = None,
) -> Path:
    """Writes a wheel with a module of its name, or with `files`, and the entry points `scripts`; returns its path."""
    info = f"{name}-{version}.dist-info"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    about += "".join(f"Provides-Extra: {extra}\n" for extra in extras)
    about += "".join(f"Requires-Dist: {text}\n" for text in needs)
    content = dict(files) if files is not None else {f"{name}/__init__.py": ""}
    content |= {
        f"{info}/METADATA": about,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    if scripts is not None:
        content[f"{info}/entry_points.txt"] = scripts
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*content, f"{info}/RECORD"))
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as file:
        for member, text in content.items():
            file.writestr(member, text)
    return path


def only(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Has pip look for wheels in a folder alone."""
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        patch.setenv(f"PIP_{name}", value)
    patch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
