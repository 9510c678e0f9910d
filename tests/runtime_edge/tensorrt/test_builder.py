"""The builder through TensorRT-RTX itself, which builds real engines without a GPU."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime_edge.errors import ArtifactError, EngineError
from runtime_edge.tensorrt import builder, callbacks, flavours
from runtime_edge.tensorrt.builder import build_plan
from runtime_edge.tensorrt.callbacks import PROGRESS_STEPS
from runtime_edge.tensorrt.device import Device, gpu
from runtime_edge.tensorrt.plans import finish
from tests.runtime_edge.tensorrt.graphs import WIDTH, engine_spec, model, profile, saved, write_artifact

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (the extra rtx) is not installed")
VERSION = flavours.module_version(trt)


def has_gpu() -> bool:
    try:
        return bool(gpu())
    except Exception:  # whatever the driver lacks
        return False


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return saved(tmp_path / "tiny.onnx")


@pytest.mark.parametrize("capabilities", [("8.6",), ("7.5",), ("8.0", "8.6", "8.9", "12.0"), ("7.5", "12.1")])
def test_builds_for_one_and_for_several_capabilities(graph: Path, capabilities: tuple[str, ...]) -> None:
    plan = build_plan(graph, engine_spec(*capabilities))
    assert bytes(plan.data[1:4]) == b"trt"  # of `vtrt` and `ptrt`, the magic numbers of plans
    assert plan.data.nbytes > WIDTH * WIDTH * 2  # the weights are in it
    assert plan.version == VERSION
    assert plan.compute_capabilities == capabilities
    assert plan.layers == 3  # the constant, the product, the activation
    assert 0 < plan.seconds < 60
    assert plan.peak_memory is None or plan.peak_memory > 2**20


def test_finds_external_data_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "graph" / "outside.onnx"
    path.parent.mkdir()
    onnx.save(model(), path, save_as_external_data=True, location="blob", size_threshold=0)
    assert (path.parent / "blob").stat().st_size == WIDTH * WIDTH * 2
    monkeypatch.chdir(tmp_path)
    assert build_plan(path, engine_spec()).data.nbytes > WIDTH * WIDTH * 2


REFUSED_ON = {
    ("fp32", "7.5"), ("bf16", "7.5"), ("int4", "7.5"), ("fp8", "7.5"), ("fp8", "8.0"), ("fp8", "8.6"),
}  # fmt: skip


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "bf16", "int8", "int4", "fp8"])
@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
def test_the_table_of_capabilities_is_what_the_builder_does(tmp_path: Path, scheme: str, capability: str) -> None:
    path = saved(tmp_path / "g.onnx", scheme=scheme)
    least = flavours.flavour("tensorrt-rtx").least_capability[scheme]
    assert (not flavours.in_range(capability, f">={least}")) is ((scheme, capability) in REFUSED_ON)
    if (scheme, capability) in REFUSED_ON:
        with pytest.raises(EngineError, match=rf"(?i)(turing|target).*sm{capability.replace('.', '')}"):
            build_plan(path, engine_spec(capability))
    else:
        assert build_plan(path, engine_spec(capability)).data.nbytes > 0


@pytest.mark.parametrize("scheme", flavours.flavour("tensorrt-rtx").sparse_formats)
def test_the_flag_for_sparse_weights_is_taken_and_changes_nothing_yet(tmp_path: Path, scheme: str) -> None:
    """Where a later version gives another plan, the table and docs/guides/targets.md are wrong."""
    path = saved(tmp_path / "g.onnx", scheme=scheme)  # of zeros: they have the pattern
    plans = [
        bytes(build_plan(path, engine_spec("7.5", "8.6", "12.0", sparse_weights=each)).data) for each in (False, True)
    ]
    assert (plans[0] != plans[1]) is flavours.flavour("tensorrt-rtx").heeds_sparsity


@pytest.mark.parametrize("block", flavours.flavour("tensorrt-rtx").int4_blocks)
def test_int4_blocks_of_the_table_build(tmp_path: Path, block: int) -> None:
    assert build_plan(saved(tmp_path / "g.onnx", scheme="int4", block=block), engine_spec()).data.nbytes > 0


def test_the_operators_of_the_table_are_parsed_by_this_version() -> None:
    log = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(log).create_network(0)
    parser = trt.OnnxParser(network, log)
    flavour = flavours.flavour("tensorrt-rtx")
    for operator in flavour.first_operators:
        assert parser.supports_operator(operator) is flavours.parses(flavour, operator, VERSION), operator
    assert not parser.supports_operator("MatMulInteger")


def test_a_build_that_fails_names_the_node_and_its_module(tmp_path: Path) -> None:
    path = saved(tmp_path / "g.onnx", scheme="fp32")
    with pytest.raises(EngineError, match=r"\(at product of model\.layers\.0\.mlp\.up_proj\)"):
        build_plan(path, engine_spec("7.5"))


@pytest.mark.parametrize(
    ("op", "domain", "reason"),
    [
        ("MatMulInteger", "", "an operator that it does not have"),
        ("Frobnicate", "example.com", "an operator that it does not have"),
        ("TopK", "", ""),  # it has TopK, but not with one input
    ],
)
def test_a_node_that_is_not_parsed_is_named_with_its_module(tmp_path: Path, op: str, domain: str, reason: str) -> None:
    path = saved(tmp_path / "g.onnx", op=op, domain=domain)
    expected = rf"g\.onnx: .* node 'last' \({op}\) of model\.layers\.0\.mlp\.act_fn: .*{reason}"
    with pytest.raises(EngineError, match=expected):
        build_plan(path, engine_spec())
    with pytest.raises(EngineError, match=rf"'last' \({op}\) of the\.compiler\.says: "):
        build_plan(path, engine_spec(), modules={"last": "the.compiler.says"})


def test_a_node_without_a_name_is_found_by_its_place(tmp_path: Path) -> None:
    made = model(op="MatMulInteger")
    made.graph.node[-1].name = ""
    onnx.save(made, tmp_path / "g.onnx")
    with pytest.raises(EngineError, match=r"\(MatMulInteger\) of model\.layers\.0\.mlp\.act_fn"):
        build_plan(tmp_path / "g.onnx", engine_spec())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (profile(name="y"), "expected shapes for the dynamic input 'x'"),
        (profile(low=(1,), high=(8,)), r"to fit \(-1, 128\), with -1 for what may vary, found \(1,\)"),
        (profile(low=(1, 64), high=(8, 64)), r"to fit \(-1, 128\), with -1 for what may vary, found \(1, 64\)"),
        (profile(low=(9, WIDTH), high=(8, WIDTH)), "expected min <= opt <= max for 'x'"),
    ],
)
def test_profiles_that_do_not_fit_the_graph(graph: Path, made: Any, message: str) -> None:
    with pytest.raises(EngineError, match=rf"tiny\.onnx: profile 'batch': .*{message}"):
        build_plan(graph, engine_spec(profiles=(made,)))


def test_a_profile_names_no_input_that_is_not_dynamic(tmp_path: Path) -> None:
    made = model()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(made, tmp_path / "g.onnx")
    with pytest.raises(EngineError, match="expected only dynamic inputs of the graph, found x"):
        build_plan(tmp_path / "g.onnx", engine_spec())


def test_an_input_whose_values_are_a_shape_is_bounded_by_value(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Expand", ["x", "shape"], ["z"], name="expand")],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, WIDTH]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT16, [None, WIDTH])],
        [numpy_helper.from_array(np.zeros(1, np.float16), "unused")],
    )
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    with pytest.raises(EngineError, match="expected shapes for the dynamic input 'shape'"):
        build_plan(path, engine_spec(profiles=(profile(name="x"),)))
    assert build_plan(path, engine_spec(profiles=(profile(name="shape"),))).data.nbytes > 0


def test_two_profiles_make_another_plan_than_one(graph: Path) -> None:
    decode = type(profile())(name="decode", inputs=profile(high=(1, WIDTH)).inputs)
    both = build_plan(graph, engine_spec(profiles=(profile(), decode)))
    assert both.data.nbytes > build_plan(graph, engine_spec()).data.nbytes


def test_too_little_workspace(graph: Path) -> None:
    with pytest.raises(EngineError, match="workspace") as caught:
        build_plan(graph, engine_spec(workspace_mb=1))
    assert caught.value.hint == "the engine spec allows 1 MB of workspace: allow more"
    assert build_plan(graph, engine_spec(workspace_mb=64)).data.nbytes > 0


def test_weight_streaming(graph: Path) -> None:
    assert build_plan(graph, engine_spec(weight_streaming=True)).data.nbytes > 0


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU: refitted plans are built here")
@pytest.mark.parametrize("changes", [{"refit": True}, {"strip": True}])
def test_refit_without_a_gpu_says_what_it_needs(graph: Path, changes: dict[str, bool]) -> None:
    with pytest.raises(EngineError) as caught:
        build_plan(graph, engine_spec(**changes))
    assert "machine with a GPU" in str(caught.value.hint)


def test_a_capability_that_it_cannot_name(graph: Path) -> None:
    with pytest.raises(EngineError, match=r"compute capability that it builds for, found 8\.7"):
        build_plan(graph, engine_spec("8.7"))


def test_a_version_outside_the_spec(graph: Path) -> None:
    with pytest.raises(EngineError, match=rf"expected TensorRT-RTX >=99\.0, found {VERSION}"):
        build_plan(graph, engine_spec(versions=">=99.0"))


def test_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises((ArtifactError, EngineError), match=r"g\.onnx: expected"):
        build_plan(tmp_path / "g.onnx", engine_spec())
    with pytest.raises((ArtifactError, EngineError), match=r"none\.onnx: expected"):
        build_plan(tmp_path / "none.onnx", engine_spec())


def test_progress_rises_to_the_end(graph: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build_plan(graph, engine_spec(), progress=lambda *step: seen.append(step))
    done = [step[1] for step in seen]
    assert {step[2] for step in seen} == {PROGRESS_STEPS}
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, PROGRESS_STEPS)
    assert len(set(done)) > 10
    assert len({step[0] for step in seen}) > 3


def test_what_progress_raises_ends_the_build(graph: Path, capfd: pytest.CaptureFixture[str]) -> None:
    calls = 0

    def enough(phase: str, done: int, steps: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        build_plan(graph, engine_spec(), progress=enough)
    assert calls == 3
    assert "Exception caught" not in capfd.readouterr().err  # what the bindings print of an exception that leaves


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_build(graph: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    phases: list[str] = []

    class Spied(callbacks.Overall):
        def start(self, phase: str, parent: str | None, steps: int) -> None:
            phases.append(phase)
            super().start(phase, parent, steps)

    def interrupt(phase: str, done: int, steps: int) -> None:
        if phase == "Optimizing graph":
            os.kill(os.getpid(), number)

    def by_default(number: int, frame: object) -> None:
        raise AssertionError("the signal came through")

    monkeypatch.setattr(callbacks, "Overall", Spied)
    before = signal.signal(number, by_default)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_plan(graph, engine_spec(), progress=interrupt)
        assert signal.getsignal(number) is by_default  # put back
        assert phases[-1] == "Optimizing graph"  # TensorRT went no further
        phases.clear()
        build_plan(graph, engine_spec())
        assert phases.index("Optimizing graph") < len(phases) - 1  # as it does otherwise
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(("scheme", "error"), [("fp16", KeyboardInterrupt), ("fp32", EngineError)])
def test_a_build_that_ends_early_leaves_no_object_of_tensorrt(
    tmp_path: Path, scheme: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Freed by the garbage collector, in the log of another build, they would wait for a lock that TensorRT holds."""
    sinks: list[weakref.ref[Any]] = []  # the builder, the network and the parser hold the log

    def spied(*arguments: Any) -> Any:
        sinks.append(weakref.ref(sink := callbacks.logger(*arguments)))
        return sink

    def interrupt(phase: str, done: int, steps: int) -> None:
        raise error

    progress = interrupt if error is KeyboardInterrupt else None  # the other cannot be built
    monkeypatch.setattr(builder, "logger", spied)
    gc.disable()
    try:
        with pytest.raises(error) as caught:
            build_plan(saved(tmp_path / "g.onnx", scheme=scheme), engine_spec("7.5"), progress=progress)
        assert [sink() for sink in sinks] == [None]  # while the error is there, with its traceback
        assert caught.traceback
    finally:
        gc.enable()


def test_builds_in_another_thread(graph: Path) -> None:
    built: list[int] = []
    thread = threading.Thread(target=lambda: built.append(build_plan(graph, engine_spec()).data.nbytes))
    thread.start()
    thread.join(60)
    assert built[0] > 0


def test_nothing_is_printed(graph: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from runtime_edge.tensorrt.builder import build_plan; "
        "from tests.runtime_edge.tensorrt.graphs import engine_spec; build_plan(Path(sys.argv[1]), engine_spec())"
    )
    done = subprocess.run([sys.executable, "-c", program, graph], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_finish_builds_a_real_plan_of_an_artifact(tmp_path: Path) -> None:
    """All but the driver's answer is real: the artifact, the builder, the cache."""
    root = tmp_path / "model.lepton"
    own = {"flavour": "tensorrt-rtx", "versions": ">=1.4;<2.0", "compute_capabilities": ["8.6", "8.9"]}
    write_artifact(root, spec=own)
    device = Device("8.9", VERSION)
    first = finish(root, device=device, cache=tmp_path / "cache")
    assert first.built
    assert first.plan.record is not None
    assert first.plan.record.layers > 3
    assert first.plan.path.read_bytes()[1:4] == b"trt"
    again = finish(root, device=device, cache=tmp_path / "cache")
    assert (again.built, again.plan) == (False, first.plan)


def test_importing_the_builder_imports_no_tensorrt() -> None:
    program = "import sys, runtime_edge.tensorrt.plans; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"tensorrt", "tensorrt_rtx", "numpy", "onnx"} & {
        name.partition(".")[0] for name in done.stdout.split()
    } == set()
