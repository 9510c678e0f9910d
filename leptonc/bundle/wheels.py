"""The wheels that a device needs, downloaded on this machine.

pip chooses wheels for another platform and Python, and reads markers (`; python_version < "3.11"`) as of this machine.
So the markers are evaluated here for the device, and pip is asked again for what the wheels that it brought still lack.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import TYPE_CHECKING

from leptonc.bundle.device import Device
from leptonc.bundle.pip import NoWheelError, run_pip
from leptonc.errors import InputError, require

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_ROUNDS = 10  # each asks for what the last one's wheels lack


def download(wheel: Path, device: Device, folder: Path) -> list[Path]:
    """Downloads what a wheel needs with the device's extras, and pip itself; returns all wheels, that one first.

    Args:
        wheel: Lepton's own wheel, which is in the folder.
        device: What the wheels are for.
        folder: Where they go; it is made, and holds nothing else then.

    Raises:
        InputError: A wheel is not there for the device.
        MissingExtraError: pip or the package `packaging` is not installed, or no index answers.
    """
    require("packaging", extra="compiler", needed_by="leptonc pack --with-runtime")
    wanted = sorted({*needed([wheel], device, device.extras), "pip"})
    for _ in range(_ROUNDS):
        found = _downloaded(wanted, device, folder, wheel)
        lacking = sorted(set(needed(found[1:], device)) - set(wanted))
        lacking = [text for text in lacking if not _is_met(text, found)]
        if not lacking:
            return found
        wanted += lacking
    raise InputError(f"wheels for {device.platform}: expected an end of requirements, found none: {', '.join(lacking)}")


def needed(wheels: Iterable[Path], device: Device, extras: Iterable[str] = ()) -> list[str]:
    """Returns the requirements of wheels on a device, without markers; those of extras are followed."""
    texts = []
    for path in wheels:
        for requirement in _requirements(path):
            environments = [{**device.environment(), "extra": extra} for extra in ("", *extras)]
            if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
                requirement.marker = None
                texts.append(str(requirement))
    return texts


def _downloaded(wanted: list[str], device: Device, folder: Path, wheel: Path) -> list[Path]:
    shutil.rmtree(folder, ignore_errors=True)  # another round may choose other versions
    folder.mkdir()
    made = wheel.parent / "made"
    made.mkdir(exist_ok=True)
    python = device.python_version.replace(".", "")
    platforms = [f"--platform={name}" for name in device.platforms()]
    tried: set[str] = set()
    while True:
        try:
            run_pip(
                "download", "--only-binary=:all:", "--dest", str(folder), f"--find-links={made}", *platforms,
                "--implementation=cp", f"--python-version={device.python_version}", f"--abi=cp{python}", "--abi=abi3",
                "--abi=none", *wanted, what=f"wheels for Python {device.python_version} on {device.platform}",
            )  # fmt: skip
            break
        except NoWheelError as error:
            if error.requirement in tried or not _make(error.requirement, made):
                raise
            tried.add(error.requirement)
    own = folder / wheel.name
    shutil.copyfile(wheel, own)
    return [own, *sorted(path for path in folder.glob("*.whl") if path != own)]


def _make(requirement: str, folder: Path) -> bool:
    """Makes the wheel of a package that an index has as source alone; returns whether it is one for any machine.

    Such is `tensorrt-rtx`, which has nothing but requirements.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work, contextlib.suppress(InputError):
        run_pip("wheel", "--no-deps", "--wheel-dir", work, requirement, what=f"the wheel of {requirement}")
        for path in Path(work).glob("*-none-any.whl"):
            path.rename(folder / path.name)
            return True
    return False


def _requirements(path: Path) -> list[Requirement]:
    from packaging.requirements import Requirement

    with zipfile.ZipFile(path) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1)
        about = BytesHeaderParser().parsebytes(wheel.read(name))
    return [Requirement(text) for text in about.get_all("Requires-Dist") or ()]


def _is_met(text: str, wheels: list[Path]) -> bool:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename

    requirement = Requirement(text)
    present = {name: version for name, version, *_ in (parse_wheel_filename(path.name) for path in wheels)}
    version = present.get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(version, prereleases=True)
