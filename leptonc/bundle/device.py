"""The device that a folder is for: which wheels it takes, and what of the environment decides what they need."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import targets
from leptonc.backends.traits import traits_of
from leptonc.errors import InputError

_PLATFORM = re.compile(r"manylinux_(\d+)_(\d+)_(x86_64|aarch64)")
_PYTHON = re.compile(r"3\.(\d{1,2})")
_FOREIGN_GLIBC = (2, 28)  # of a device whose C library is unknown: what wheels of ONNX Runtime and numpy need
_OLDEST = {"x86_64": 5, "aarch64": 17}  # minor versions of glibc: of the first manylinux platform
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_WHICH = "say it with --platform and --python-version, or take one variant with --only"


@dataclass(frozen=True)
class Device:
    """What runs the wheels.

    Attributes:
        machine: The processor's architecture, as `platform.machine()` names it.
        glibc: The version of the C library, major and minor.
        python: The version of Python, major and minor.
        extras: The extras of this package that it needs, sorted.
        from_system: Whether it also needs packages that only the device's own system has.
    """

    machine: str
    glibc: tuple[int, int]
    python: tuple[int, int]
    extras: tuple[str, ...] = ("cpu",)
    from_system: bool = False

    @property
    def platform(self) -> str:
        """The platform as wheels name it: `manylinux_2_35_aarch64`."""
        return f"manylinux_{self.glibc[0]}_{self.glibc[1]}_{self.machine}"

    @property
    def python_version(self) -> str:
        """The version of Python as text: `3.10`."""
        return f"{self.python[0]}.{self.python[1]}"

    def platforms(self) -> list[str]:
        """Returns all platforms of wheels that it takes, the newest first (PEP 600)."""
        found = []
        for minor in range(self.glibc[1], _OLDEST[self.machine] - 1, -1):
            found.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _LEGACY:
                found.append(f"{_LEGACY[minor]}_{self.machine}")
        return [*found, f"linux_{self.machine}"]

    def environment(self) -> dict[str, str]:
        """Returns what markers of requirements are evaluated with (PEP 508)."""
        full = f"{self.python_version}.0"
        return {
            "implementation_name": "cpython",
            "implementation_version": full,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": full,
            "python_version": self.python_version,
            "sys_platform": "linux",
        }


def device_for(specs: Sequence[str], platform_name: str | None = None, python_version: str | None = None) -> Device:
    """Returns the device that variants are for.

    Args:
        specs: The variants' targets, with changes behind their names. What their profiles say decides; where they say
            nothing, this machine does.
        platform_name: A platform, as wheels name it: `manylinux_2_35_aarch64`. Default: the targets'.
        python_version: A version of Python, `3.10`. Default: the targets'.

    Raises:
        InputError: A value does not have its form, the variants are for different devices, or this machine is no
            Linux with glibc and nothing else was named.
    """
    profiles = [targets.load(spec) for spec in specs]
    traits = [traits_of(profile) for profile in profiles]
    python = _python(python_version or _one("Python", [profile.python for profile in profiles]))
    if platform_name is not None:
        match = _PLATFORM.fullmatch(platform_name)
        if match is None:
            raise InputError(
                f"--platform: expected one such as manylinux_2_35_aarch64, found {platform_name!r}",
                hint="the numbers are the version of the device's C library: `ldd --version`",
            )
        machine, glibc = match[3], (int(match[1]), int(match[2]))
    else:
        arch = _one("processor", [None if profile.arch == "any" else profile.arch for profile in profiles])
        machine = arch or platform.machine()
        known = _one("C library", [profile.glibc for profile in profiles])
        glibc = _numbers(known) if known is not None else _glibc(machine)
    return Device(
        machine,
        glibc,
        python,
        tuple(sorted({trait.extra for trait in traits})),
        any(trait.from_system for trait in traits),
    )


def _one(what: str, values: Sequence[str | None]) -> str | None:
    """Returns the one value that profiles have; None where none has one (raises `InputError`)."""
    found = sorted({value for value in values if value is not None})
    if len(found) > 1:
        raise InputError(f"expected variants for one device, found a {what} of {' and of '.join(found)}", hint=_WHICH)
    return found[0] if found else None


def _python(text: str | None) -> tuple[int, int]:
    if text is None:
        return sys.version_info[:2]
    match = _PYTHON.fullmatch(text)
    if match is None:
        raise InputError(f"--python-version: expected one such as 3.10, found {text!r}", hint="`python3 --version`")
    return 3, int(match[1])


def _glibc(machine: str) -> tuple[int, int]:
    """Returns this machine's C library where the device is of its kind, else one that the libraries' wheels need."""
    if machine not in _OLDEST:
        raise InputError(f"expected a device of {' or '.join(_OLDEST)}, found {machine}", hint=_WHICH)
    if machine != platform.machine():
        return _FOREIGN_GLIBC
    name, version = platform.libc_ver()
    if name != "glibc":
        raise InputError(f"expected Linux with glibc, found {platform.platform()}", hint=_WHICH)
    return _numbers(version)


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
