"""What a device is taken for: by its target's profile, by options, and by this machine."""

from __future__ import annotations

import platform
import sys

import pytest
from packaging.requirements import Requirement
from packaging.tags import cpython_tags

from leptonc.bundle.device import Device, device_for
from leptonc.errors import InputError


def here(monkeypatch: pytest.MonkeyPatch, machine: str = "x86_64", libc: tuple[str, str] = ("glibc", "2.31")) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["jetson-orin"], Device("aarch64", (2, 35), (3, 10), ("jetson",), True)),
        (["jetson-orin,jetpack=7.2"], Device("aarch64", (2, 39), (3, 12), ("jetson",), True)),
        (["jetson-agx-orin-64gb", "cpu"], Device("aarch64", (2, 35), (3, 10), ("cpu", "jetson"), True)),
        (["jetson-t5000,python=3.13"], Device("aarch64", (2, 39), (3, 13), ("jetson",), True)),
        (["cpu"], Device("x86_64", (2, 31), sys.version_info[:2], ("cpu",))),
        (["rtx-40", "cpu"], Device("x86_64", (2, 31), sys.version_info[:2], ("cpu", "rtx"))),
        (["cpu-arm64"], Device("aarch64", (2, 28), sys.version_info[:2], ("cpu",))),
    ],
)
def test_targets_say_what_the_device_is(specs: list[str], expected: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    assert device_for(specs) == expected


def test_options_stand_above_targets() -> None:
    device = device_for(["jetson-orin", "cpu"], "manylinux_2_40_aarch64", "3.13")
    assert device == Device("aarch64", (2, 40), (3, 13), ("cpu", "jetson"), True)
    assert device_for(["rtx", "cpu-arm64"], "manylinux_2_28_x86_64").platform == "manylinux_2_28_x86_64"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["rtx", "cpu-arm64"],), "expected variants for one device, found a processor of aarch64 and of x86_64"),
        ((["jetson-orin", "jetson-thor"],), "expected variants for one device, found a Python of 3.10 and of 3.12"),
        ((["cpu"], "win_amd64"), "--platform: expected one such as manylinux_2_35_aarch64, found 'win_amd64'"),
        ((["cpu"], None, "2.7"), "--python-version: expected one such as 3.10, found '2.7'"),
        ((["cpu"], None, "3.10.4"), "--python-version: expected one such as 3.10, found '3.10.4'"),
    ],
)
def test_what_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        device_for(*arguments)  # type: ignore[arg-type]
    assert caught.value.message == message
    assert caught.value.hint


@pytest.mark.parametrize(("machine", "libc"), [("riscv64", ("glibc", "2.39")), ("x86_64", ("", ""))])
def test_a_machine_of_another_kind_has_to_be_told(
    machine: str, libc: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, machine, libc)
    with pytest.raises(InputError) as caught:
        device_for(["cpu"])
    assert "--platform" in str(caught.value.hint)
    assert device_for(["cpu"], "manylinux_2_28_aarch64").glibc == (2, 28)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_platforms_are_those_that_pip_takes_there(machine: str) -> None:
    """As `packaging` gives them on such a machine, which pip goes by."""
    found = Device(machine, (2, 28), (3, 11)).platforms()
    assert found[0] == f"manylinux_2_28_{machine}"
    assert f"manylinux2014_{machine}" in found
    assert (f"manylinux1_{machine}" in found) == (machine == "x86_64")
    assert found[-1] == f"linux_{machine}"
    assert len(found) == len(set(found))
    name, version = platform.libc_ver()
    if machine == platform.machine() and name == "glibc":
        major, minor = version.split(".")[:2]
        here = Device(machine, (int(major), int(minor)), (3, 11))
        assert set(here.platforms()) == {tag.platform for tag in cpython_tags()}


def test_markers_are_those_of_the_device() -> None:
    device = Device("aarch64", (2, 35), (3, 10))
    for marker, holds in {
        'python_version < "3.11"': True,
        'python_full_version >= "3.10.1"': False,
        'platform_machine == "x86_64"': False,
        'sys_platform == "linux" and platform_machine == "aarch64"': True,
        'os_name == "nt" or platform_system == "Darwin"': False,
    }.items():
        assert Requirement(f"a; {marker}").marker.evaluate(device.environment()) is holds  # type: ignore[union-attr]
