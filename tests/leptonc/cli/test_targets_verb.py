"""`leptonc targets`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

import targets


def test_the_list(leptonc: Callable[..., Any]) -> None:
    done = leptonc("targets")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split() == ["name", "backend", "weights", "memory", "description"]
    assert [line.split()[0] for line in lines[1:]] == targets.names()
    assert "onnxruntime   int8" in lines[1]


def test_the_list_as_json(leptonc: Callable[..., Any]) -> None:
    records = json.loads(leptonc("targets", "--json").out)
    assert [record["name"] for record in records] == targets.names()
    assert {record["backend"] for record in records} == {"onnxruntime", "tensorrt", "tensorrt-rtx"}


def test_one_with_its_sources(leptonc: Callable[..., Any]) -> None:
    out = leptonc("targets", "jetson-orin-nx-16gb,jetpack=7.2").out
    assert "bandwidth_gb_s        102.0\n                      (NVIDIA Jetson Orin NX Series Modules Data Sheet" in out
    assert "tensorrt              >=10.16;<11.0" in out
    assert "jetpack               7.2\n                      (given behind the target's name)" in out


def test_one_as_json(leptonc: Callable[..., Any]) -> None:
    record = json.loads(leptonc("targets", "rtx-40", "--json").out)
    assert record["compute_capabilities"] == ["8.9"]
    assert "precisions" in record["sources"]


def test_an_unknown_one(leptonc: Callable[..., Any]) -> None:
    assert leptonc("targets", "cpu-arm") == (
        1,
        "",
        "error: unknown target 'cpu-arm'\nhint: did you mean cpu-arm64 or cpu?\n",
    )


def test_building_for_rtx_without_its_package(leptonc: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model is opened."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    done = leptonc("build", "sample:none-such", "--target", "rtx")
    assert (done.code, done.out) == (4, "")
    assert done.err.startswith("error: TensorRT-RTX needs the module `tensorrt_rtx`, which is not installed\nhint: pip")


def test_building_for_an_unknown_target(leptonc: Callable[..., Any]) -> None:
    done = leptonc("build", "sample:tiny-llama", "--target", "cpuu")
    assert done == (1, "", "error: unknown target 'cpuu'\nhint: did you mean cpu?\n")
