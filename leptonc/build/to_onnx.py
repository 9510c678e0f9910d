"""`leptonc build --emit onnx`: the captured graph, pruned where that is asked for, as a directory that is a source."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leptonc.build.to_artifact import as_json, sizes_of
from leptonc.errors import InputError
from leptonc.memory import return_freed_memory
from leptonc.options import BuildOptions
from leptonc.passes.prune.sparse import PATTERN
from leptonc.build.plan import check_text, target_of
from leptonc.build.context import Preparation, begin
from leptonc.progress import Progress, Silent, Timed
from leptonc.build.recipe import check_values
from leptonc.sources.emitted import GRAPH_NAME, About, encode
from leptonc.variant import VariantBuild, VariantPlan
from runtime_edge.files import listing
from runtime_edge.manifest import EMITTED_NAME

if TYPE_CHECKING:
    from leptonc.artifact.writer import ArtifactWriter

# What says how a graph is lowered: an emitted one is float32, and no target's.
_LOWERED = (
    "weights", "activations", "calibrator", "kv_cache", "prefill", "block_size", "symmetric", "method", "embeddings",
    "layers",
)  # fmt: skip


@dataclass(frozen=True)
class EmitResult:
    """An emitted graph: where it is, what describes it, the report, and the seconds of each stage."""

    path: Path
    about: About
    report: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)


def emit(options: BuildOptions, progress: Progress | None = None) -> EmitResult:
    """Writes the captured model in float32, pruned and healed where that is asked for; see `leptonc.sources.emitted`.

    Args:
        options: As of a build; those that say how weights are stored or how the graph is lowered are refused.
        progress: What shows how far it is; None for nothing.

    Returns:
        The directory that is at `options.out` now.

    Raises:
        LeptonError: whatever was wrong; nothing is left at `options.out` then.
    """
    from leptonc.build.steps.heal import check as check_healing
    from leptonc.build.steps.prune import check as check_pruning
    from leptonc.build.resume import check as check_resume

    return_freed_memory()
    clock = Timed(progress or Silent())
    _check(options)
    check_values(options)
    check_text(options)
    request = check_pruning(options.prune, options.prune_method, options.prune_compensation, options.prune_allocation)
    target = target_of(str(options.target))
    plan = VariantPlan("emitted", target, "fp32", check=options.check)
    check_healing(options.heal, [plan], pruned=request is not None, rank=options.heal_rank)
    check_resume(options, [plan])
    with begin(options, [plan], clock, request) as begun:
        return _Emission(begun).run()


def _check(options: BuildOptions) -> None:
    fields = {each.name: each.default for each in dataclasses.fields(options)}
    given = [name for name in _LOWERED if getattr(options, name) != fields[name]]
    if given:
        raise InputError(
            f"expected nothing that says how a graph is lowered with --emit onnx, found {', '.join(given)}",
            hint="emit it first, then build the directory: leptonc build DIR --weights int8",
        )
    if options.prune == PATTERN:
        raise InputError(
            f"expected a share, latency:PCT, layers:N or a plan with --emit onnx, found --prune {PATTERN}",
            hint=f"zeros are a target's: leptonc build MODEL --target rtx --prune {PATTERN}",
        )
    if not isinstance(options.target, str):
        raise InputError(
            f"expected one target with --emit onnx, found {', '.join(options.target)}",
            hint="the graph is no target's: of one come the default of --max-seq-len and the steps that channels go in",
        )


class _Emission:
    """One run of `emit`, from an open source on."""

    def __init__(self, begun: Preparation) -> None:
        self.begun = begun
        self.out = begun.options.out or Path(f"{begun.source.name}-onnx")

    def run(self) -> EmitResult:
        from leptonc.artifact.writer import ArtifactWriter, check_out
        from leptonc.evaluate.measure import judge, require_same
        from sample_models.export import write_model_files

        begun, options, clock = self.begun, self.begun.options, self.begun.clock
        check_out(self.out, replace=options.force)
        begun.lowered = False
        begun.capture()
        (variant,) = begun.variants
        with ArtifactWriter(self.out, replace=options.force) as writer:
            begun.shrink(writer, {}, 1)
            self._heal(variant)
            model = begun.captured.model
            size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
            with clock.stage("weights", size) as advance:
                writer.add_graph(GRAPH_NAME, model, advance, sources=True)
            write_model_files(begun.source, writer.path)
            writer.add("tokenizer.json", begun.source.tokenizer_json)
            writer.add(EMITTED_NAME, encode(self._about(None)))
            if options.check:
                with clock.stage("check"):
                    begun.report["fidelity"] = self._measured(writer)
                judge(
                    begun.report["fidelity"], options.max_loss, "the emitted graph",
                    "cut less, or let what is left learn: --heal 10min",
                )  # fmt: skip
                if options.prune is None and options.heal is None:
                    require_same(begun.report["fidelity"], "the emitted graph")
            about = self._about(begun.report.get("fidelity"), tuple(sorted(listing(writer.path))))
            writer.add(EMITTED_NAME, encode(about))
            begun.report["bytes"] = sizes_of(writer)
            writer.add("report.json", as_json(begun.report))
            path = writer.commit()
            begun.calibration.kept.finish()
        return EmitResult(path, about, begun.report, dict(clock.seconds))

    def _heal(self, variant: VariantBuild) -> None:
        from leptonc.passes.base import Manager

        recovery = self.begun.healing.recovery(variant)
        if recovery is not None:
            manager = Manager()
            manager.run(self.begun.captured.model, [recovery])
            self.begun.records += manager.records
            self.begun.report["recovery"] = variant.report["recovery"]

    def _about(self, fidelity: dict[str, Any] | None, files: tuple[str, ...] = ()) -> About:
        captured, source, report = self.begun.captured, self.begun.source, self.begun.report
        before = source.emitted
        pruned = (report["pruning"],) if self.begun.request is not None else ()
        return About(
            task=captured.task.name, parameters=captured.parameters, max_seq_len=captured.max_seq_len,
            origin=dict(before.origin if before is not None else source.origin), passes=tuple(self.begun.records),
            pruning=(*(before.pruning if before is not None else ()), *pruned), fidelity=fidelity,
            files=files,
        )  # fmt: skip

    def _measured(self, writer: ArtifactWriter) -> dict[str, Any]:
        """Reads what is written as a build will, runs it, and compares it with the original."""
        from leptonc.evaluate.graph import emitted_graph
        from leptonc.sources import open_source

        with open_source(str(writer.path)) as written:
            return self.begun.sample.compare_graph(emitted_graph(written))
