"""Puts files of the user's into the artifact: a licence, a model card, a notice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from leptonc.artifact.writer import ATTACHED
from leptonc.build.context import BuildContext
from leptonc.build.plan import BuildPlan
from leptonc.build.step import ModelStep
from leptonc.errors import InputError

LARGEST = 2**24  # bytes of all files together: they are documents
_NAME = re.compile(r"\w[\w .+()-]{0,99}(?<![ .])")  # what every operating system takes


class AttachFiles(ModelStep):
    """Does what `--attach` asks for: the files lie under `attached/`, each with its sha256 in the manifest."""

    name: ClassVar[str] = "attach"
    several_parts: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("attach",)

    def wanted(self, plan: BuildPlan) -> bool:
        return plan.options.attach is not None

    def check(self, plan: BuildPlan) -> None:
        if plan.options.attach is not None:
            _read(plan.options.attach)

    def run(self, context: BuildContext) -> BuildContext:
        if context.plan.options.attach is not None:
            (context.writer.path / ATTACHED).mkdir()
            for name, data in _read(context.plan.options.attach).items():
                context.writer.add(f"{ATTACHED}/{name}", data)
        return context


def _read(place: Path) -> dict[str, bytes]:
    """Returns the files at `place`, by name: the file itself, or those that lie in the folder."""
    hint = "--attach LICENSE, or a folder with the files"
    if not place.exists():
        raise InputError(f"expected a file or a folder to attach, found none at {place}", hint=hint)
    files = [place] if place.is_file() else sorted(path for path in place.iterdir() if path.is_file())
    if not files:
        raise InputError(f"expected files to attach in {place}, found none", hint=hint)
    strange = [path.name for path in files if _NAME.fullmatch(path.name) is None]
    if strange:
        raise InputError(
            f"expected names of letters, digits, spaces and .+-_() to attach, found {strange[0]!r}",
            hint="rename the file: the artifact may go to another operating system",
        )
    size = sum(path.stat().st_size for path in files)
    if size > LARGEST:
        raise InputError(
            f"expected files of at most {LARGEST:,} bytes together to attach, found {size:,} in {place}",
            hint="attach documents; weights and tokenizers come from the model itself",
        )
    try:
        return {path.name: path.read_bytes() for path in files}
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}", hint=hint) from error
