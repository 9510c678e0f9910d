"""Profiles: every one loads, every fact has its source, and whatever is wrong is refused with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

import targets
from targets import TargetError

FACTS = (
    "compute_capabilities", "sparse_capabilities", "memory_gb", "bandwidth_gb_s", "precisions", "tensorrt",
    "max_seq_len", "python", "glibc",
)  # fmt: skip


@pytest.mark.parametrize("name", targets.names())
def test_every_target_loads_and_every_fact_has_a_source(name: str) -> None:
    target = targets.load(name)
    assert target.name == target.spec == name
    assert target.description
    for field in FACTS:
        if getattr(target, field) not in (None, ()):
            assert target.sources[field].strip(), field
    assert target.weights in target.precisions


def test_the_families_of_the_issue_are_there() -> None:
    expected = {"cpu", "cpu-arm64", "rtx", "rtx-20", "rtx-30", "rtx-40", "rtx-50", "jetson-orin", "jetson-thor"}
    assert expected <= set(targets.names())


# From the makers' documents, written here a second time: compute capabilities, GB, GB/s, TensorRT.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jetson-agx-orin-64gb", (("8.7",), 64, 204.8, ">=10.3;<10.8")),
        ("jetson-agx-orin-32gb", (("8.7",), 32, 204.8, ">=10.3;<10.8")),
        ("jetson-orin-nx-16gb", (("8.7",), 16, 102, ">=10.3;<10.8")),
        ("jetson-orin-nx-8gb", (("8.7",), 8, 102, ">=10.3;<10.8")),
        ("jetson-orin-nano-8gb", (("8.7",), 8, 68, ">=10.3;<10.8")),
        ("jetson-orin-nano-4gb", (("8.7",), 4, 34, ">=10.3;<10.8")),
        ("jetson-t5000", (("11.0",), 128, 273, ">=10.16;<11.0")),
        ("jetson-t4000", (("11.0",), 64, 273, ">=10.16;<11.0")),
        ("rtx-20", (("7.5",), None, None, None)),
        ("rtx-30", (("8.6",), None, None, None)),
        ("rtx-40", (("8.9",), None, None, None)),
        ("rtx-50", (("12.0",), None, None, None)),
        ("cpu", ((), None, None, None)),
    ],
)
def test_figures(name: str, expected: tuple[object, ...]) -> None:
    target = targets.load(name)
    found = (target.compute_capabilities, target.memory_gb, target.bandwidth_gb_s, target.tensorrt)
    assert found == expected


def test_what_a_gpu_cannot_do_is_not_offered() -> None:
    assert {"int4", "int8", "bf16"}.isdisjoint(targets.load("rtx-20").precisions)
    assert "fp8" not in targets.load("rtx-30").precisions
    assert "fp8" in targets.load("rtx-40").precisions
    assert "fp4" in targets.load("rtx-50").precisions
    assert "fp8" not in targets.load("jetson-orin").precisions


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("jetson-orin", ("8.7",)),
        ("jetson-agx-orin-64gb", ("8.7",)),
        ("jetson-t5000", ("11.0",)),
        ("rtx", ("8.0", "8.6", "8.9", "12.0")),
        ("rtx-20", ()),
        ("rtx-30", ("8.6",)),
        ("rtx-40", ("8.9",)),
        ("rtx-50", ("12.0",)),
        ("rtx,compute_capabilities=7.5+12.1", ("12.1",)),
        ("cpu", ()),
    ],
)
def test_sparse_tensor_cores_are_those_of_the_target_s_own_capabilities(spec: str, expected: tuple[str, ...]) -> None:
    target = targets.load(spec)
    assert target.sparse_capabilities == expected
    assert ("sparse_capabilities" in target.sources) == bool(expected)


def test_extends_goes_through_and_is_remembered() -> None:
    target = targets.load("jetson-agx-orin-64gb")
    assert target.lineage == ("jetson-agx-orin-64gb", "jetson-agx-orin", "jetson-orin")
    assert target.backend == "tensorrt"
    assert target.arch == "aarch64"


def test_overrides_are_typed_and_say_where_they_come_from() -> None:
    target = targets.load("jetson-orin, memory_gb=7.5,max_seq_len=2048,precisions=fp16+int8,weights=int8")
    assert target.memory_gb == 7.5
    assert target.max_seq_len == 2048
    assert target.precisions == ("fp16", "int8")
    assert target.weights == "int8"
    assert target.sources["memory_gb"] == "given behind the target's name"
    assert targets.load(target.spec) == target


def test_the_jetpack_release_decides_which_tensorrt_is_there() -> None:
    assert targets.load("jetson-orin,jetpack=7.2").tensorrt == ">=10.16;<11.0"
    assert targets.load("jetson-agx-orin-32gb,jetpack=7.2.2").tensorrt == ">=11.4"
    assert targets.load("jetson-orin,jetpack=6.2,tensorrt=>=10.7;<10.8").tensorrt == ">=10.7;<10.8"
    assert "11.4.1" in targets.load("jetson-thor,jetpack=7.2.2").sources["tensorrt"]


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("jetson-orn", "unknown target 'jetson-orn'", "did you mean jetson-orin"),
        ("", "unknown target ''", "known are: cpu, cpu-arm64"),
        ("../targets/cpu", "unknown target '../targets/cpu'", "known are: cpu"),
        ("jetson-orin,jetpak=6.2", "unknown field 'jetpak'", "did you mean jetpack?"),
        ("jetson-orin,name=x", "unknown field 'name'", None),
        ("jetson-orin,description=x", "unknown field 'description'", None),
        ("jetson-orin,memory_gb", "expected FIELD=VALUE after a comma, found 'memory_gb'", None),
        ("cpu,", "expected FIELD=VALUE after a comma, found ''", None),
        ("jetson-orin,memory_gb=8,memory_gb=16", "expected each field once, found 'memory_gb' twice", None),
        ("jetson-orin,memory_gb=x", "expected memory_gb to be a number of GB above 0, found 'x'", None),
        ("jetson-orin,memory_gb=-1", "expected memory_gb to be a number of GB above 0, found -1", None),
        ("jetson-orin,memory_gb=0", "expected memory_gb to be a number of GB above 0, found 0", None),
        ("jetson-orin,memory_gb=nan", "expected memory_gb to be a number of GB above 0, found nan", None),
        ("jetson-orin,memory_gb=inf", "expected memory_gb to be a number of GB above 0, found inf", None),
        ("cpu,max_seq_len=8.5", "expected max_seq_len to be a whole number of tokens above 0, found 8.5", None),
        ("cpu,backend=cuda", "expected backend to be one of onnxruntime, tensorrt, tensorrt-rtx, found 'cuda'", None),
        (
            "cpu,precisions=int4+int5,weights=int4",
            r"expected precisions to be some of .*, found \['int4', 'int5'\]",
            None,
        ),
        ("rtx,weights=int8,precisions=fp16", "expected weights to be one of its precisions, fp16, found int8", None),
        ("jetson-orin,jetpack=7.2.2", "expected jetpack to be one of 6.1, 6.2, 7.2, found 7.2.2", "jetpack=7.2`"),
        ("rtx,compute_capabilities=sm_86", "expected compute_capabilities to be versions such as 8.7", None),
    ],
)
def test_what_is_refused(spec: str, message: str, hint: str | None) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        targets.load(spec)
    assert hint is None or hint in str(caught.value.hint)


BASE = """
description = "a device"
backend = "onnxruntime"
arch = "any"
precisions = ["fp32"]
weights = "fp32"
max_seq_len = 128
[sources]
precisions = "a book"
max_seq_len = "a book"
"""


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": 'extends = "a"'}, "`extends` goes in a circle: a -> a"),
        ({"a": 'extends = "b"', "b": 'extends = "c"', "c": 'extends = "a"'}, "in a circle: a -> b -> c -> a"),
        ({"a": 'extends = "gone"'}, "unknown target 'gone', which 'a' extends"),
        ({"a": 'extends = ["b"]'}, "expected `extends` to be one target's name"),
        ({"a": "flops = 3\n" + BASE}, "unknown field 'flops'"),
        ({"a": BASE + 'flops = "a book"'}, "unknown field 'flops'"),
        ({"a": "memory_gb = 8\n" + BASE}, "expected a source for memory_gb"),
        ({"a": 'memory_gb = "8"\n' + BASE + 'memory_gb = "a book"'}, "expected memory_gb to be a number of GB above 0"),
        ({"a": "memory_gb = true\n" + BASE + 'memory_gb = "a book"'}, "expected memory_gb to be a number of GB"),
        ({"a": BASE.replace('"a book"', '" "')}, r"expected \[sources\] to give a text"),
        ({"a": BASE.replace('arch = "any"', "")}, "found no arch"),
        ({"a": "description ="}, "expected a TOML file"),
        ({"a": "sources = 3\n"}, r"expected \[sources\] to give a text"),
        ({"a": BASE + '[axis.jetpak."6"]\ntensorrt = ">=10"'}, r"unknown field 'jetpak' in \[axis\]"),
        ({"a": BASE + '[axis.jetpack."6.2"]\ntensorrt = ">=10"'}, "expected a source for tensorrt"),
        ({"a": BASE + "[axis]\njetpack = 3"}, r"expected \[axis.jetpack\] to hold a table for each value"),
        ({"a": BASE + "[axis.jetpack]\n6 = 3"}, r"expected \[axis.jetpack\] to hold a table for each value"),
    ],
)  # fmt: skip
def test_profiles_that_break_the_rules(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.toml").write_text(text)
    with pytest.raises(TargetError, match=message):
        targets.load("a", directory=tmp_path)


def test_a_profile_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "device.toml").write_text(
        'extends = "base"\nmemory_gb = 4\n[sources]\nmemory_gb = "its box"\n[axis.jetpack."6.2"]\n'
    )
    with pytest.raises(TargetError, match=r"expected jetpack to be one of 6\.2, found None"):
        targets.load("device", directory=tmp_path)
    target = targets.load("device,jetpack=6.2", directory=tmp_path)
    assert (target.memory_gb, target.max_seq_len) == (4, 128)
    assert target.sources["precisions"] == "a book"
    assert targets.names(directory=tmp_path) == ["base", "device"]


def test_a_target_cannot_be_changed() -> None:
    target = targets.load("cpu")
    with pytest.raises(AttributeError):
        target.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        target.sources["precisions"] = "other"  # type: ignore[index]
