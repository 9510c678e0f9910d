"""What the builder uses of TensorRT's API exists, and is called in the order that TensorRT documents."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest

import runtime_edge.tensorrt.builder
import runtime_edge.tensorrt.callbacks
from runtime_edge.errors import EngineError
from runtime_edge.tensorrt import flavours
from runtime_edge.tensorrt.builder import _FLAGS, build_plan
from tests.runtime_edge.tensorrt.graphs import engine_spec, profile, saved
from tests.runtime_edge.tensorrt.standin import Recorded

# The variables of the builder's modules that hold objects of the API, by the class that they hold.
VARIABLES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "cache": "ITimingCache",
    "layer": "IAttentionOutputLayer",
}
CALLBACKS = {"phase_start", "step_complete", "phase_finish", "log"}
MOST_BROKEN = 40  # lines of the stubs that are no Python
# Of attention's layer, which came after the version that the stubs are of.
LATER = {"IAttentionOutputLayer.type", "IAttentionOutputLayer.attention", "IAttentionOutputLayer.__class__"}
PARSER_ERROR = {"node", "node_name", "node_operator", "code", "desc"}


def tree(module: object) -> ast.Module:
    return ast.parse(Path(str(module.__file__)).read_text())  # type: ignore[attr-defined]


def used() -> set[str]:
    """`Class.attribute` of every object of the API, and the names of the module, as the code has them."""
    always = (flag for each in flavours.FLAVOURS.values() for flag in each.flags)
    found = {f"BuilderFlag.{flag}" for flag in (*_FLAGS.values(), *always)}
    for module in (runtime_edge.tensorrt.builder, runtime_edge.tensorrt.callbacks):
        for node in ast.walk(tree(module)):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in VARIABLES:
                found.add(f"{VARIABLES[owner.id]}.{node.attr}")
            elif isinstance(owner, ast.Name) and owner.id == "trt":
                found.add(node.attr)
            elif isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "trt":
                found.add(f"{owner.attr}.{node.attr}")
            elif isinstance(owner, ast.Name) and owner.id == "error" and node.attr in PARSER_ERROR:
                found.add(f"ParserError.{node.attr}")
    return found - {"ILogger.__init__", "IProgressMonitor.__init__"}


def test_the_search_finds_what_is_used() -> None:
    assert {
        "Builder.build_serialized_network", "Builder.create_network", "OnnxParser.parse_from_file",
        "OnnxParser.supports_operator", "IBuilderConfig.progress_monitor", "IBuilderConfig.set_compute_capability",
        "IOptimizationProfile.set_shape", "IOptimizationProfile.set_shape_input", "ITensor.is_shape_tensor",
        "ParserError.node_name", "BuilderFlag.STRIP_PLAN", "MemoryPoolType.WORKSPACE", "ComputeCapability",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "ILogger.INTERNAL_ERROR", "IProgressMonitor",
        "ITimingCache.serialize",
    } <= used()  # fmt: skip


def test_everything_used_exists_on_the_real_classes() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (the extra rtx) is not installed")
    missing = []
    for name in used():
        owner, _, attribute = name.rpartition(".")
        if not hasattr(getattr(trt, owner) if owner else trt, attribute):
            missing.append(name)
    assert missing == []
    callbacks = {*dir(trt.IProgressMonitor), *dir(trt.ILogger)}
    assert callbacks >= CALLBACKS


def test_the_capabilities_of_the_table_are_those_of_the_real_class() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (the extra rtx) is not installed")
    named = flavours.flavour("tensorrt-rtx").named_capabilities or ()
    members = set(trt.ComputeCapability.__members__) - {"NONE", "CURRENT"}
    assert {f"SM{text.replace('.', '')}" for text in named} == members


def test_the_stand_in_has_nothing_that_the_real_classes_lack() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (the extra rtx) is not installed")
    recorded = Recorded()
    own = [
        f"{kind}.{name}"
        for kind in recorded.kinds
        for name in vars(getattr(recorded, kind))
        if not name.startswith("_") and not hasattr(getattr(trt, kind), name)
    ]
    assert own == ["IBuilderConfig.cache"]  # where it keeps what was set


def test_only_what_the_table_names_is_of_one_flavour() -> None:
    """The stand-in of standard TensorRT lacks what only TensorRT-RTX has, and has everything else that is used."""
    recorded = Recorded()
    rtx_only = flavours.flavour("tensorrt-rtx").own_api
    lacking = set()
    for name in used():
        owner, _, attribute = name.rpartition(".")
        kind = getattr(recorded, owner, None) if owner else recorded
        if owner != "ParserError" and not hasattr(kind, attribute) and name != "IBuilderConfig.progress_monitor":
            lacking.add(name)
    assert lacking == rtx_only
    assert flavours.flavour("tensorrt").own_api <= used()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    module = Recorded()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def standard(**changes: object) -> object:
    return engine_spec("8.7", flavour="tensorrt", versions=">=10.16;<11.0", **changes)


def test_order_of_calls_of_the_standard_flavour(recorded: Recorded, tmp_path: Path) -> None:
    times = tmp_path / "times.cache"
    flags = dict.fromkeys(_FLAGS, True)
    made = standard(workspace_mb=64, profiles=(profile(), profile()), **flags)
    plan = build_plan(tmp_path / "g.onnx", made, timing_cache=times)  # type: ignore[arg-type]
    assert bytes(plan.data) == b"a plan"
    assert (plan.version, plan.compute_capabilities, plan.layers) == ("10.16.1.11", (), 3)
    flag, pool = recorded.BuilderFlag, recorded.MemoryPoolType
    of_profile = [
        ("Builder.create_optimization_profile", ()),
        ("IOptimizationProfile.set_shape", ("x", (1, 128), (1, 128), (8, 128))),
        ("IBuilderConfig.add_optimization_profile", ()),
    ]
    assert recorded.calls == [
        ("Builder", (True,)),
        ("Builder.create_network", (1 << 1,)),  # strongly typed
        ("OnnxParser", (True, True)),
        ("OnnxParser.parse_from_file", (str(tmp_path / "g.onnx"),)),
        ("IAttention.decomposable", (True,)),  # of the one layer of three that is attention
        ("Builder.create_builder_config", ()),
        ("IBuilderConfig.set_memory_pool_limit", (pool.WORKSPACE, 64 * 2**20)),
        ("IBuilderConfig.set_flag", (flag.REFIT,)),
        ("IBuilderConfig.set_flag", (flag.STRIP_PLAN,)),
        ("IBuilderConfig.set_flag", (flag.WEIGHT_STREAMING,)),
        ("IBuilderConfig.set_flag", (flag.SPARSE_WEIGHTS,)),
        *of_profile,
        *of_profile,
        ("IBuilderConfig.progress_monitor", (True,)),
        ("IBuilderConfig.create_timing_cache", (b"",)),
        ("IBuilderConfig.set_timing_cache", (b"", False)),
        ("Builder.build_serialized_network", ()),
    ]
    assert times.read_bytes() == b"+times"
    assert [path.name for path in tmp_path.iterdir()] == ["times.cache"]


def test_times_are_used_again_and_those_of_another_device_are_not(recorded: Recorded, tmp_path: Path) -> None:
    times = tmp_path / "times.cache"
    for stored, offered in ((b"old", [b"old"]), (b"of another device", [b"of another device", b""])):
        times.write_bytes(stored)
        recorded.calls.clear()
        build_plan(tmp_path / "g.onnx", standard(), timing_cache=times)  # type: ignore[arg-type]
        assert [call[1][0] for call in recorded.calls if call[0] == "IBuilderConfig.set_timing_cache"] == offered
        assert times.read_bytes() == offered[-1] + b"+times"


def test_a_build_without_a_plan_leaves_the_times_as_they_were(recorded: Recorded, tmp_path: Path) -> None:
    (tmp_path / "times.cache").write_bytes(b"old")
    saved(tmp_path / "g.onnx")
    recorded.plan = None
    with pytest.raises(EngineError, match="built no engine: no message"):
        build_plan(tmp_path / "g.onnx", standard(), timing_cache=tmp_path / "times.cache")  # type: ignore[arg-type]
    assert (tmp_path / "times.cache").read_bytes() == b"old"


def test_no_driver(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(recorded, "Builder", refuse)
    with pytest.raises(EngineError, match="expected a GPU and its driver, found: no message") as caught:
        build_plan(tmp_path / "g.onnx", standard())  # type: ignore[arg-type]
    assert "lepton-edge finish" in str(caught.value.hint)


def parsed(text: str) -> ast.Module:
    """Parses stubs without the lines that are no Python, for which mypy refuses the file: 10.13 has some."""
    lines = text.splitlines()
    for _ in range(MOST_BROKEN):
        try:
            return ast.parse("\n".join(lines))
        except SyntaxError as error:
            at = int(error.lineno or 1) - 1
            line = lines[at]
            lines[at] = line[: len(line) - len(line.lstrip())] + "def left_out(self):"
    raise AssertionError("more lines of the stubs are no Python than were known")


def stub_classes() -> dict[str, dict[str, list[ast.FunctionDef]]]:
    """Of `tensorrt-stubs`: what each class of standard TensorRT 10 has; of a method, each of its signatures."""
    try:
        files = importlib.metadata.files("tensorrt-stubs") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tensorrt-stubs (tests/no-deps.txt) is not installed")
    (path,) = [file.locate() for file in files if str(file) == "tensorrt_bindings/tensorrt.pyi"]
    bodies = {node.name: node for node in parsed(Path(path).read_text()).body if isinstance(node, ast.ClassDef)}

    def members(name: str) -> dict[str, list[ast.FunctionDef]]:
        node = bodies[name]
        inherited = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in bodies]
        found: dict[str, list[ast.FunctionDef]] = {}
        for base in inherited:
            found |= members(base)
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                found.setdefault(item.name, []).append(item)
            elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                found[item.target.id] = []
            elif isinstance(item, ast.Assign):
                found |= {target.id: [] for target in item.targets if isinstance(target, ast.Name)}
            elif isinstance(item, ast.ClassDef):
                found[item.name] = []
        return found

    return {name: members(name) for name in bodies}


def takes(signature: ast.FunctionDef, call: ast.Call) -> bool:
    """Whether a method has room for the arguments of a call."""
    arguments = signature.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)][1:]  # without self
    needed = len(names) - len(arguments.defaults)
    keywords = {each.arg for each in call.keywords}
    given = len(call.args)
    known = {*names[given:], *(each.arg for each in arguments.kwonlyargs)}
    return given <= len(names) and keywords <= known and given + len(keywords & set(names)) >= needed


def test_what_the_builder_calls_is_in_the_typed_stubs_of_standard_tensorrt() -> None:
    """Names and numbers of arguments; the stubs are of 10.13, which has no name for what came with 10.14 and 11."""
    classes = stub_classes()
    absent = {
        name
        for name in used() - flavours.flavour("tensorrt-rtx").own_api
        for owner, _, attribute in [name.rpartition(".")]
        if (attribute not in classes[owner] if owner in classes else owner or attribute not in classes)
    }
    assert absent == LATER
    wrong = []
    for module in (runtime_edge.tensorrt.builder, runtime_edge.tensorrt.callbacks):
        for node in ast.walk(tree(module)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value
            kind = VARIABLES.get(owner.id, "") if isinstance(owner, ast.Name) else ""
            signatures = classes.get(kind, {}).get(node.func.attr, [])
            if signatures and not any(takes(each, node) for each in signatures):
                wrong.append(f"{kind}.{node.func.attr}: {ast.unparse(node)}")
    assert wrong == []
