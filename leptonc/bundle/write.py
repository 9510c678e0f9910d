"""Writes the folder: it is there whole, or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from leptonc.artifact.pack import chosen, pack
from leptonc.artifact.place import BUNDLE_NAME, Place, check_out
from leptonc.bundle.device import Device, device_for
from leptonc.bundle.wheel import own_wheel
from leptonc.bundle.wheels import download
from leptonc.progress import Progress, Silent
from runtime_edge import __version__
from runtime_edge.installation import DISTRIBUTION
from runtime_edge.manifest import Manifest
from runtime_edge.verify import read_manifest

ARTIFACT, WHEELS, SUMS = "model.lepton", "wheels", "SHA256SUMS"
_TEXTS = {"install.sh": 0o755, "run.sh": 0o755, "README.txt": 0o644}  # templates beside this file, and permissions
_COPY_BYTES = 2**22


@dataclass(frozen=True)
class Bundle:
    """A folder for a device.

    Attributes:
        path: Where it is.
        device: What it is for.
        manifest: Of its artifact.
        files: Paths of all files in it but its own record, relative and sorted.
        size: Bytes of these.
    """

    path: Path
    device: Device
    manifest: Manifest
    files: tuple[str, ...]
    size: int


def write_bundle(
    artifact: Path,
    only: Sequence[str],
    out: Path,
    *,
    platform: str | None = None,
    python: str | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Writes a folder with an artifact, the wheels of the runtime, and scripts that install and run it.

    Args:
        artifact: The artifact; it is not changed.
        only: Names or targets of the variants to take. Default, if empty: all.
        out: Path of the folder.
        platform: The device's platform, as wheels name it. Default: what the variants' targets say, else this machine.
        python: The device's version of Python. Default: what the targets say, else this one.
        replace: Whether a folder that this wrote may be replaced at `out`. Default: it may not.
        progress: What shows how far it is. Default: nothing does.

    Raises:
        InputError: `out` may not be written, the variants are for different devices, or a wheel is not there.
        ArtifactError: The artifact is damaged.
        MissingExtraError: pip is missing, or no package index answers.
    """
    shown = progress or Silent()
    check_out(out, replace=replace)
    place = Place(out, replace=replace)
    try:
        variants = chosen(read_manifest(artifact), only)
        device = device_for([variant.target for variant in variants], platform, python)
        with shown.stage("artifact"):
            manifest = pack(artifact, only, place.path / ARTIFACT)
        with shown.stage("own wheel"):
            wheel = own_wheel(place.scratch, device)
        with shown.stage("wheels"):
            download(wheel, device, place.path / WHEELS)
        with shown.stage("checksums"):
            for name, mode in _TEXTS.items():
                file = place.path / name
                file.write_text(_filled(name, device, manifest), encoding="utf-8")
                file.chmod(mode)
            bundle = _finish(place.path, out, device, manifest)
        place.put()
    finally:
        place.close()
    return bundle


def _filled(name: str, device: Device, manifest: Manifest) -> str:
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    values = {
        "PYTHON": device.python_version,
        "MACHINE": device.machine,
        "PLATFORM": device.platform,
        "SYSTEM": " --system-site-packages" if device.from_system else "",
        "REQUIREMENT": f"{DISTRIBUTION}[{','.join(device.extras)}]=={__version__}",
        "VERSION": __version__,
        "NAME": manifest.name,
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _finish(folder: Path, out: Path, device: Device, manifest: Manifest) -> Bundle:
    """Writes the digests of all files, and the record by which a folder is known as one that may be replaced."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    size = sum((folder / name).stat().st_size for name in files)
    sums = "".join(f"{_digest(folder / name)}  {name}\n" for name in files)
    (folder / SUMS).write_text(sums, encoding="utf-8")
    listed = (*files, SUMS)
    record = {
        "files": listed,
        "lepton": __version__,
        "platform": device.platform,
        "python": device.python_version,
        "extras": device.extras,
    }
    (folder / BUNDLE_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return Bundle(out, device, manifest, listed, size)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_COPY_BYTES):
            digest.update(part)
    return digest.hexdigest()
