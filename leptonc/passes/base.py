"""What a pass is, and the manager that runs passes in order.

A pass is an `onnx_ir` pass that works in place. Its config is a frozen dataclass. The manifest has name, version and
config. The dialect's verifier runs after every pass whose result is in the dialect.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from leptonc.errors import InputError, LeptonError
from leptonc.ir import dialect
from leptonc.ir.edit import cleanup
from runtime_edge.manifest import PassRecord


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of all configs: plain values only, so that a manifest can hold them."""


class Pass(ir.passes.InPlacePass):
    """Base of our passes.

    Attributes:
        name: Name in manifests, and in file names of `--dump-ir`.
        version: Goes up with every change that gives another result for the same config.
        in_dialect: Whether the result is in the IR dialect.
        config: The pass's configuration.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    in_dialect: ClassVar[bool] = True

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or Config()

    def run(self, model: ir.Model) -> int:
        """Changes `model`, and returns the number of places that it changed."""
        raise NotImplementedError  # abstract

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = self.run(model) > 0
        if changed:
            cleanup(model)  # a replaced node still counts as a reader, until it is gone
        return ir.passes.PassResult(model, changed)

    def ensures(self, model: ir.Model) -> None:
        if self.in_dialect:
            dialect.verify(model, after=self.name)

    def report(self) -> Mapping[str, Any]:
        """Returns what the pass found when it ran, by the field of a variant's report. Default: nothing to report."""
        return {}

    def record(self) -> PassRecord:
        return PassRecord(name=self.name, version=self.version, config=dataclasses.asdict(self.config))


@dataclasses.dataclass
class Manager:
    """Runs passes in order, times each, and writes the graph after each where asked.

    Attributes:
        dump: Directory for the graph after each pass, `NN-name.onnx.txt`, without weights. Default: none.
        start: Number of the next file.
        label: Begins the pass's name in names of files. Default: nothing.
        seconds: Time that each pass took, by name.
        records: The manifest's records of the passes that ran.
    """

    dump: Path | None = None
    start: int = 0
    label: str = ""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    records: list[PassRecord] = dataclasses.field(default_factory=list)

    def run(self, model: ir.Model, passes: Sequence[Pass], advance: Callable[[int], Any] = lambda _: None) -> None:
        for step in passes:
            started = time.perf_counter()
            try:
                step(model)
            except (ir.passes.PassError, ir.passes.InvariantError) as error:
                # onnx_ir wraps errors of passes; our own are clearer without.
                raise error.__cause__ if isinstance(error.__cause__, LeptonError) else error  # noqa: B904
            self.seconds[step.name] = self.seconds.get(step.name, 0.0) + time.perf_counter() - started
            self.records.append(step.record())
            self.write(model, step.name)
            advance(1)

    def write(self, model: ir.Model, name: str) -> None:
        """Writes `model` to the dump directory, its weights as shapes only, so that the file is small."""
        if self.dump is None:
            return
        path = self.dump / f"{self.start:02d}-{self.label}{name}.onnx.txt"
        self.start += 1
        try:
            self.dump.mkdir(parents=True, exist_ok=True)
            path.write_text(_text(model), encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}", hint="name another directory") from error


def _text(model: ir.Model) -> str:
    """Returns the graph as one line a node, with shapes, dtypes and module paths."""
    lines = [f"inputs: {', '.join(str(v) for v in model.graph.inputs)}"]
    lines += [f"weight {name}: {v.dtype} {v.shape}" for name, v in model.graph.initializers.items()]
    for node in model.graph:
        domain = f"{node.domain}." if node.domain else ""
        attributes = ", ".join(f"{a.name}={a.value}" for a in node.attributes.values())
        inputs = ", ".join(v.name or "" if v is not None else "_" for v in node.inputs)
        outputs = ", ".join(f"{v.name}: {v.shape}" for v in node.outputs)
        lines.append(f"{outputs} = {domain}{node.op_type}<{attributes}>({inputs})  # {dialect.module_of(node)}")
    lines.append(f"outputs: {', '.join(str(v) for v in model.graph.outputs)}")
    return "\n".join(lines) + "\n"
