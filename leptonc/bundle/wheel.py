"""Lepton's own wheel: built from the checkout, or packed again from the files of an installed wheel, for a device.

Kernels are compiled for one kind of processor. A wheel for another one has none, and says so to `doctor`; ONNX
Runtime's own kernels run there. They are no Python modules, so the stable suffix `.abi3.so` serves every Python.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import platform
import re
import shutil
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from leptonc.bundle.device import Device
from leptonc.bundle.pip import run_pip
from leptonc.errors import InputError
from runtime_edge.installation import DISTRIBUTION, checkout, install_command
from runtime_edge.kernels import NOTE

_PACKAGES = ("leptonc", "runtime_edge", "sample_models", "targets")
_BESIDE = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
_FOLDER = "runtime_edge/kernels"
_KERNELS = re.compile(rf"({_FOLDER}/_kernels\w*)\.[^/]*so")
_GLIBC = re.compile(rb"GLIBC_(\d+)\.(\d+)")
_OF_PIP = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")  # written where a wheel is installed
_TIME = (1980, 1, 1, 0, 0, 0)  # of each file: equal contents make an equal wheel


def own_wheel(folder: Path, device: Device) -> Path:
    """Writes the wheel of the running Lepton for a device into a folder; returns its path.

    Raises:
        InputError: It can be made neither from a checkout nor from what is installed.
        MissingExtraError: pip is not there.
    """
    source = checkout()
    files = _built(source, folder) if source is not None else _installed()
    files, has_kernels = _for_device(files, device)
    info = next(name.partition("/")[0] for name in files if name.endswith(".dist-info/METADATA"))
    tag = f"py3-none-linux_{device.machine}" if has_kernels else "py3-none-any"
    purelib = "false" if has_kernels else "true"
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: leptonc\nRoot-Is-Purelib: {purelib}\nTag: {tag}\n".encode()
    )
    record = f"{info}/RECORD"
    files[record] = _record(files, record)
    path = folder / f"{info.removesuffix('.dist-info')}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in sorted(files.items()):
            about = zipfile.ZipInfo(name, _TIME)
            about.external_attr = 0o644 << 16
            about.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(about, data)
    return path


def _built(source: Path, folder: Path) -> dict[str, bytes]:
    """Builds a checkout's wheel of a copy, which leaves nothing behind in it and takes up nothing of earlier builds."""
    work = folder / "source"
    work.mkdir()
    try:
        away = shutil.ignore_patterns("__pycache__", "*.so", "*.note")
        for name in _PACKAGES:
            shutil.copytree(source / name, work / name, ignore=away)
        for name in _BESIDE:
            shutil.copy(source / name, work / name)
        shared = ("--no-build-isolation",) if find_spec("setuptools") else ()
        run_pip("wheel", "--no-deps", *shared, "--wheel-dir", str(work), str(work), what="lepton-edge")
        (path,) = work.glob("*.whl")
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
    finally:
        shutil.rmtree(work)


def _installed() -> dict[str, bytes]:
    """Reads the files of the installed wheel, as its RECORD lists them."""
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"expected {DISTRIBUTION} as a checkout or an installed wheel, found neither", hint="install it with pip"
        ) from error
    files = {}
    for path in distribution.files or ():
        name = path.as_posix()
        info = ".dist-info/" in name
        if name.startswith("../") or "__pycache__" in path.parts or (info and path.name in _OF_PIP):
            continue
        try:
            files[name] = Path(str(path.locate())).read_bytes()
        except OSError as error:
            raise InputError(
                f"expected the file {name} of the installed {DISTRIBUTION}, found: {error.strerror}",
                hint=f"install it anew: {install_command()} --force-reinstall",
            ) from error
    if not any(name.startswith("runtime_edge/") for name in files):
        raise InputError(
            f"expected {DISTRIBUTION} as a checkout or an installed wheel, found one without a list of files",
            hint=f"install its wheel: {install_command()}",
        )
    return files


def _for_device(files: dict[str, bytes], device: Device) -> tuple[dict[str, bytes], bool]:
    """Returns the files that a device takes, and whether kernels are among them."""
    kernels = {name: match[1] for name in files if (match := _KERNELS.fullmatch(name))}
    note = f"{_FOLDER}/{NOTE}"
    reason = None
    if device.machine != platform.machine():
        reason = f"this copy was packed for {device.machine} on {platform.machine()}"
    elif any(_needs(files[name]) > device.glibc for name in kernels):
        reason = "this copy was packed for an older C library than the one that compiled them"
    kept = {name: data for name, data in files.items() if name not in kernels}
    if reason is not None:
        return {**kept, note: f"{reason}\n".encode()}, False
    return {**kept, **{f"{stem}.abi3.so": files[name] for name, stem in kernels.items()}}, bool(kernels)


def _needs(library: bytes) -> tuple[int, int]:
    """Returns the version of glibc that a library needs."""
    return max(((int(major), int(minor)) for major, minor in _GLIBC.findall(library)), default=(2, 0))


def _record(files: dict[str, bytes], record: str) -> bytes:
    """Returns the list of a wheel's files with their digests (PEP 376)."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, data in sorted(files.items()):
        if name != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.writerow((name, f"sha256={digest}", len(data)))
    rows.writerow((record, "", ""))
    return text.getvalue().encode()
