"""The table of flavours: ranges of versions, refusals before a build, modules that are missing."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

import targets
from runtime_edge.errors import EngineError, MissingDependencyError
from runtime_edge.installation import install_command
from runtime_edge.tensorrt import flavours
from runtime_edge.tensorrt.engine_spec import check_spec
from tests.runtime_edge.tensorrt.graphs import engine_spec

RTX = flavours.flavour("tensorrt-rtx")
STANDARD = flavours.flavour("tensorrt")


@pytest.mark.parametrize(
    ("version", "versions", "is_in"),
    [
        ("10.3.0.30", ">=10.3;<10.8", True),
        ("10.3", ">=10.3.0.0", True),
        ("10.8.0", ">=10.3;<10.8", False),
        ("10.16.1.11", ">=10.16;<11.0", True),
        ("10.9", ">=10.16;<11.0", False),  # by number, not by text
        ("11.0.0", ">=10.16;<11.0", False),
        ("1.7.1.116+cuda13", ">1.7;<=1.7.1.116", True),
        ("10.3.0", "==10.3", True),
        ("1.0.0.0.0.0.1", "==1.0", False),
    ],
)
def test_ranges(version: str, versions: str, is_in: bool) -> None:
    assert flavours.in_range(version, versions) is is_in


@pytest.mark.parametrize(("version", "versions"), [("dev", ">=1"), ("", ">=1"), ("1.0", "1.0"), ("1.0", ">=1.0,<2")])
def test_what_is_no_version_or_range_is_refused(version: str, versions: str) -> None:
    with pytest.raises(EngineError, match="expected"):
        flavours.in_range(version, versions)


def test_first_version_of_a_range() -> None:
    assert flavours.first_version("<11.0;>=10.16") == "10.16"
    with pytest.raises(EngineError, match="lower bound"):
        flavours.first_version("<11.0")


def test_operators_by_version() -> None:
    names = ("Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter", "Swish", "MatMul")

    def parsed(version: str) -> set[str]:
        return {name for name in names if flavours.parses(STANDARD, name, version)}

    assert parsed("10.3.0.30") == {"MatMul"}
    assert parsed("10.14") == {"MatMul", "Attention"}
    assert parsed("10.16.1.11") == set(names) - {"Swish"}
    assert parsed("11.4") == set(names)
    assert all(flavours.parses(RTX, name, "1.7.1") for name in names)


def test_every_target_has_a_flavour_that_covers_its_versions_and_formats() -> None:
    for name in targets.names():
        target = targets.load(name)
        if target.backend == "onnxruntime":
            continue
        flavour = flavours.flavour(target.backend)
        if target.tensorrt is not None:
            assert flavours.in_range(flavours.first_version(target.tensorrt), flavour.versions), name
        # A family leaves out what cannot run its weights; at least one has to be left.
        least = flavour.least_capability[target.weights]
        able = [each for each in target.compute_capabilities if flavours.in_range(each, f">={least}")]
        assert able, name
        check_spec(engine_spec(*able, flavour=target.backend), target.weights, flavour)


def test_unknown_flavour() -> None:
    with pytest.raises(EngineError, match="expected one of tensorrt, tensorrt-rtx, found 'tflite'"):
        flavours.flavour("tflite")


def test_missing_module_names_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # import raises ModuleNotFoundError
    with pytest.raises(MissingDependencyError, match="`tensorrt_rtx`, which is not installed") as caught:
        flavours.import_module(RTX)
    assert caught.value.exit_code == 4
    assert caught.value.hint == install_command("rtx")


def test_a_folder_of_the_modules_name_is_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx").mkdir()
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingDependencyError, match="`tensorrt_rtx`, which is not installed"):
        flavours.import_module(RTX)


def test_module_whose_libraries_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingDependencyError, match=r"to load, found: libnvinfer\.so\.10"):
        flavours.import_module(STANDARD)


def test_version_that_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("tensorrt")
    old.__version__ = "8.6.2"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(EngineError, match=r"expected a version in >=10\.3;<12\.0, found 8\.6\.2"):
        flavours.import_module(STANDARD)


def test_weights_that_a_capability_cannot_do() -> None:
    with pytest.raises(EngineError, match=r"capability of 8\.0 or more for int4, found 7\.5") as caught:
        check_spec(engine_spec("7.5", "8.6"), "int4", RTX)
    assert caught.value.hint == "ask for fp16 or int8, or leave 7.5 out of the target"
    with pytest.raises(EngineError, match=r"8\.9 or more for fp8, found 8\.0 and 8\.6") as caught:
        check_spec(engine_spec("8.0", "8.6"), "fp8", RTX)
    assert caught.value.hint == "ask for fp16, int8, fp32, bf16 or int4"
    check_spec(engine_spec("8.9", "12.0"), "fp8", RTX)


def test_weights_that_nobody_knows() -> None:
    with pytest.raises(EngineError, match=r"weights to be one of .* found 'int3'"):
        check_spec(engine_spec(), "int3", RTX)


def test_capabilities_that_a_flavour_cannot_name() -> None:
    with pytest.raises(EngineError, match=r"found 8\.7") as caught:
        check_spec(engine_spec("8.6", "8.7"), "fp16", RTX)
    assert "jetson-orin" in str(caught.value.hint)
    with pytest.raises(EngineError, match="at least one compute capability"):
        check_spec(engine_spec(compute_capabilities=()), "fp16", RTX)
    check_spec(engine_spec("8.7", flavour="tensorrt"), "fp16", STANDARD)


def test_block_sizes() -> None:
    check_spec(engine_spec(), "int4", RTX, block_size=32)
    check_spec(engine_spec(), "int8", STANDARD, block_size=32)  # only int4 has blocks
    with pytest.raises(EngineError, match="blocks of 64 and 128, found 32") as caught:
        check_spec(engine_spec("8.7", flavour="tensorrt"), "int4", STANDARD, block_size=32)
    assert caught.value.hint == "quantize with `--block-size 64`"


def test_formats_of_sparse_weights() -> None:
    for scheme in ("fp16", "int8"):
        check_spec(engine_spec(sparse_weights=True), scheme, RTX)
        check_spec(engine_spec("8.7", flavour="tensorrt", sparse_weights=True), scheme, STANDARD)
    with pytest.raises(EngineError, match="expected 2:4 weights to be one of fp16 and int8, found int4") as caught:
        check_spec(engine_spec(sparse_weights=True), "int4", RTX)
    assert caught.value.hint == "ask for fp16 or int8"


def test_what_needs_a_gpu() -> None:
    check_spec(engine_spec(), "fp16", RTX, has_gpu=False)
    check_spec(engine_spec(refit=True), "fp16", RTX, has_gpu=True)
    for changes in ({"refit": True}, {"strip": True}):
        with pytest.raises(EngineError, match="can be refitted or has no weights, found none"):
            check_spec(engine_spec(**changes), "fp16", RTX, has_gpu=False)
    with pytest.raises(EngineError, match="expected a GPU") as caught:
        check_spec(engine_spec("8.7", flavour="tensorrt"), "fp16", STANDARD, has_gpu=False)
    assert "lepton-edge finish" in str(caught.value.hint)
