"""Cuts variants out of an artifact."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from leptonc.artifact.sizes import sizes_of
from leptonc.artifact.writer import ATTACHED, ArtifactWriter
from leptonc.errors import InputError
from leptonc.pages.artifact import report_page
from leptonc.report import read_report, to_json
from runtime_edge.errors import ArtifactError
from runtime_edge.files import listing
from runtime_edge.manifest import FORMAT_VERSION, PAGE_NAME, REPORT_NAME, Manifest, Variant
from runtime_edge.verify import check_listing

CAPTURED = "captured"  # operators of the captured graph, among those of variants


def pack(artifact: Path, only: Sequence[str], out: Path, *, replace: bool = False) -> Manifest:
    """Writes an artifact with some variants of another one, and the files that they need.

    Args:
        artifact: The artifact to cut from; it is not changed.
        only: Names or targets of variants. Default, if empty: all variants, and all files.
        out: Path of the new artifact.
        replace: Whether an artifact at `out` may be replaced. Default: it may not.

    Returns:
        The new artifact's manifest.

    Raises:
        InputError: A name is no variant's, or `out` may not be written.
        ArtifactError: The artifact is damaged; nothing is left at `out`.
    """
    manifest = check_listing(artifact, listing(artifact))
    variants = chosen(manifest, only)
    paths = {manifest.tokenizer.file, manifest.tokenizer.chat_template, manifest.report}
    paths |= set(manifest.tokenizer.chat_templates.values())
    paths |= {file.path for file in manifest.files if file.path.startswith(f"{ATTACHED}/")}
    if not only:
        paths |= {file.path for file in manifest.files}
    for variant in variants:
        paths |= {path for _, path in variant.references}
    files = tuple(file for file in manifest.files if file.path in paths)
    if out.exists() and out.samefile(artifact):
        raise InputError(f"expected another place than the artifact's own, found {out}", hint="choose another with -o")
    with ArtifactWriter(out, replace=replace) as writer:
        for file in files:
            writer.copy(file, artifact / file.path)
        packed = msgspec.structs.replace(
            manifest, format_version=FORMAT_VERSION, variants=variants, files=writer.listing()
        )  # fmt: skip
        if only and manifest.report is not None:
            _write_report(writer, writer.path / manifest.report, packed)
            packed = msgspec.structs.replace(packed, files=writer.listing())
        writer.write_manifest(packed)
        writer.commit()
    return packed


def _write_report(writer: ArtifactWriter, path: Path, packed: Manifest) -> None:
    """Writes the report of the variants that are kept, and its page.

    Raises:
        ArtifactError: The report does not fit the schema.
    """
    names = [variant.name for variant in packed.variants]
    try:
        report = read_report(path)
    except msgspec.DecodeError as error:
        raise ArtifactError(
            f"{REPORT_NAME}: expected a report of this version, found: {error}", hint="build the artifact again"
        ) from error
    report.variants = {name: report.variants[name] for name in names if name in report.variants}
    report.operations = {
        name: counts for name, counts in report.operations.items() if name == CAPTURED or name in names
    }  # fmt: skip
    first = report.variants.get(names[0])
    report.fidelity = None if first is None else first.fidelity
    report.bytes = sizes_of(writer)
    writer.add(PAGE_NAME, report_page(packed, report))
    writer.add(REPORT_NAME, to_json(report))


def chosen(manifest: Manifest, only: Sequence[str]) -> tuple[Variant, ...]:
    """Returns the variants of these names or targets, all of them for none (raises `InputError`: there is none)."""
    names = [variant.name for variant in manifest.variants]
    for name in only:
        if not any(name in (variant.name, variant.target) for variant in manifest.variants):
            close = difflib.get_close_matches(name, names, n=3)
            raise InputError(
                f"expected variants among {', '.join(names)}, found {name!r}",
                hint=f"did you mean {' or '.join(close)}?" if close else "`leptonc inspect` shows them",
            )
    return tuple(v for v in manifest.variants if not only or v.name in only or v.target in only)
