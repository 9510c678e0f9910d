"""A session of ONNX Runtime, as the backends open it: its options, and errors of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge import kernels, ort
from runtime_edge.backends import windows
from runtime_edge.ending import Terminated
from runtime_edge.errors import ArtifactError, EngineError

if TYPE_CHECKING:
    from runtime_edge.backends import Floats
    from runtime_edge.ending import Stop

CPU = ("CPUExecutionProvider",)
# Threads of a session that has done its run spin, some 50 ms, on cores that another one wants: a prompt behind
# a step of the other graph took 1.2 times as long. Between two steps less passes than this. 1.23 spins on.
SPIN_US = "1000"
# On the CPU the kernel that this makes takes 3 to 6 times as long as the sum and the norm that it replaces.
SLOWER = ("SkipLayerNormFusion",)
FOLDER = "session.model_external_initializers_file_folder_path"  # of a graph that is no file


class OrtSession:
    """An `onnxruntime.InferenceSession` whose errors are ours."""

    def __init__(
        self, graph: Path, threads: int, providers: Sequence[str], derived: Path | None = None,
        ours: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._ort = ort.load()
        self._errors = ort.errors()
        self._name = graph.name
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
        options.log_severity_level = 4  # what it would print is in the error that it raises
        # SmolLM2-135M, int4: after one prompt of 512 tokens the arena costs 25 MB (273 for 247), but it stays there,
        # where the C library's allocator fragments: after five prompts the peak is 285 MB for 338, after one of 3000
        # tokens 397 for 412 to 454. A memory pattern would be kept for every length of prompt: 20 MB more.
        options.enable_cpu_mem_arena = True
        options.enable_mem_pattern = False
        try:
            kernels.register(options, ours)
            if derived is not None:
                self._derive(options, derived, threads, kernels.PRODUCT in ours)
            left_out = SLOWER if tuple(providers) == CPU else ()
            model: str | bytes = str(graph)
            # Kernels of ours count windows as artifacts do, whatever version loads them.
            changed = None if kernels.attends(ours) else windows.rewritten(graph, self._ort.__version__)
            if changed is not None:
                model = changed
                options.add_session_config_entry(FOLDER, str(graph.parent))
            self._session = self._ort.InferenceSession(
                model, options, providers=list(providers), disabled_optimizers=left_out
            )
        except self._errors as error:
            raise self._fault(f"a graph that ONNX Runtime {self._ort.__version__} opens", error) from error
        # A provider whose libraries are missing is left out without an error. (A float32 cache stays in the host's
        # memory on a GPU too: GroupQueryAttention of that type runs on the CPU.)
        if providers[0] not in self._session.get_providers():
            raise EngineError(
                f"{graph.name}: expected ONNX Runtime's {providers[0]}, found that it does not load",
                hint="are CUDA and cuDNN of the versions that this onnxruntime-gpu wants installed?",
            )

    def _derive(self, options: Any, derived: Path, threads: int, packed: bool) -> None:
        """Gives a session the weights that its graph has not, in the order that our product wants where it runs."""
        from runtime_edge.derived import make

        weights: dict[str, Any] = {}

        def use(name: str, weight: NDArray[np.int8]) -> None:
            weights[name] = self._ort.OrtValue.ortvalue_from_numpy(kernels.packed(weight) if packed else weight)

        make(derived, threads, use)
        options.add_external_initializers(list(weights), list(weights.values()))
        # Most kernels copy a weight, in an order of their own; one that does not, as ours, reads it here as it runs.
        self._weights = weights

    def expect(self, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Raises `ArtifactError` unless the graph's inputs and outputs are these."""
        for what, expected, nodes in (
            ("inputs", inputs, self._session.get_inputs()),
            ("outputs", outputs, self._session.get_outputs()),
        ):
            names = {node.name for node in nodes}
            if names != set(expected):
                missing, extra = sorted(set(expected) - names), sorted(names - set(expected))
                raise ArtifactError(
                    f"{self._name}: expected the {what} that its task has, found {len(missing)} missing {missing[:3]} "
                    f"and {len(extra)} unknown {extra[:3]}"
                )

    def binding(self) -> Any:
        return self._session.io_binding()

    def new_stop(self) -> Stop:
        options: Stop = self._ort.RunOptions()
        return options

    def run(self, binding: Any, stop: Stop | None = None) -> None:
        try:
            self._session.run_with_iobinding(binding, stop)
        except self._errors as error:
            if stop is not None and stop.terminate:
                raise Terminated from error
            raise self._fault("a graph that runs", error) from error

    def run_once(self, output: str, inputs: Mapping[str, NDArray[Any]], stop: Stop | None = None) -> Floats:
        try:
            result: Floats = self._session.run([output], dict(inputs), stop)[0]
        except self._errors as error:
            if stop is not None and stop.terminate:
                raise Terminated from error
            raise self._fault("a graph that runs", error) from error
        return result

    def _fault(self, expected: str, error: Exception) -> ArtifactError:
        hint = "is it of this machine's kind? `lepton-edge inspect` says what it was built for"
        return ArtifactError(
            f"{self._name}: expected {expected}, found: {str(error)[:500]}",
            hint=ort.lacks(self._ort.__version__) or hint,
        )
