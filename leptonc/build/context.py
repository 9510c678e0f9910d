"""The way of a model up to where its variants part: captured, and cut smaller where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from leptonc.errors import InputError
from leptonc.build.recipe import as_record

if TYPE_CHECKING:
    from leptonc.artifact.writer import ArtifactWriter
    from leptonc.build.calibration_text import Calibration
    from leptonc.evaluate.measure import Sample
    from leptonc.frontend.capture import Captured
    from leptonc.build.steps.heal import Healing
    from leptonc.options import BuildOptions
    from leptonc.progress import Timed
    from leptonc.passes.prune.request import Request
    from leptonc.sources import Source
    from leptonc.variant import VariantBuild, VariantPlan
    from runtime_edge.manifest import PassRecord


@contextmanager
def begin(
    options: BuildOptions, plans: Sequence[VariantPlan], clock: Timed, request: Request | None
) -> Iterator[Preparation]:  # fmt: skip
    """Opens the source and reads the text that quality is measured on, where there is room for the result.

    Raises:
        LeptonError: One of them is not to be had.
    """
    from leptonc.artifact.writer import check_out
    from leptonc.evaluate.text import load_text
    from leptonc.sources import open_source

    if options.out is not None:
        check_out(options.out, replace=options.force)
    text = load_text(options.eval_text)
    with clock.stage("open"):
        source = open_source(options.source)
    with source:
        yield Preparation(options, plans, source, text, clock, request)


@dataclass
class Preparation:
    """What a build and an emission do first, and what comes of it.

    Attributes:
        options: What is asked for.
        plans: What is asked for each variant; one without a lowering for an emission.
        source: The model.
        text: What quality is measured on.
        clock: Times stages.
        request: What is to be cut out, or None.
        lowered: Whether variants are lowered for their targets.
        captured: The model, once it is captured.
        sample: What measures it, likewise.
        variants: The variants, likewise.
        memory: Bytes of activations that may be in memory, likewise.
        report: What there is to report so far.
        records: What has changed the graph so far, for the manifest.
    """

    options: BuildOptions
    plans: Sequence[VariantPlan]
    source: Source
    text: str
    clock: Timed
    request: Request | None
    lowered: bool = True
    captured: Captured = field(init=False)
    sample: Sample = field(init=False)
    variants: list[VariantBuild] = field(init=False)
    memory: int = field(init=False)
    calibration: Calibration = field(init=False)
    healing: Healing = field(init=False)
    report: dict[str, Any] = field(init=False, default_factory=dict)
    records: list[PassRecord] = field(init=False, default_factory=list)

    def capture(self) -> None:
        """Captures the model.

        Raises:
            CaptureError: as `leptonc.frontend.capture.capture` says.
            InputError: likewise, or an emitted graph has fewer positions than are asked for.
        """
        from leptonc.evaluate.measure import Sample
        from leptonc.frontend.capture import capture
        from leptonc.ir.dialect import count_ops
        from leptonc.build.memory_bound import activations
        from leptonc.passes.base import Manager
        from leptonc.variant import VariantBuild

        options, emitted = self.options, self.source.emitted
        longest = options.max_seq_len or max(plan.target.max_seq_len for plan in self.plans)
        if emitted is not None and (options.max_seq_len or 0) > emitted.max_seq_len:
            raise InputError(
                f"expected at most the {emitted.max_seq_len} tokens that the graph was emitted with, found "
                f"--max-seq-len {options.max_seq_len}",
                hint=f"emit it with --max-seq-len {options.max_seq_len}, if the model itself has as many",
            )
        with self.clock.stage("capture"):
            self.captured = capture(self.source, max_seq_len=longest)
        self.memory = activations(
            options.memory_gb, self.captured, self.plans, healed=options.heal is not None,
            pruned=options.prune is not None, writes=options.calibration is None and self.captured.task.cached,
            emitted=emitted is not None, lowered=self.lowered,
        )  # fmt: skip
        name = str(options.eval_text.name) if options.eval_text else "built-in"
        self.sample = Sample(self.source, self.captured, self.text, name)
        self.variants = [VariantBuild(plan, self.captured, self.sample, self.clock) for plan in self.plans]
        Manager(options.dump_ir).write(self.captured.model, "capture")
        self.report = {"operations": {"captured": count_ops(self.captured.model)}, "recipe": as_record(options)}
        self._warn()
        if emitted is not None:  # what was done to it before is part of what it is
            self.records += emitted.passes
            self.report["emitted"] = {"pruning": list(emitted.pruning), "fidelity": emitted.fidelity or {}}
            if emitted.pruning:
                self.report["pruning"] = emitted.pruning[-1]

    def _warn(self) -> None:
        """Shows the user, and keeps in the report, what is otherwise than the checkpoint's own files say."""
        from leptonc.sources.generation import warnings_of

        source = self.source
        found = [*source.warnings, *self.captured.warnings]
        if self.captured.task.cached:
            found += warnings_of(source.generation_config, source.config)
        elif self.options.max_seq_len is None:
            found += self._shortened()
        for warning in found:
            self.clock.note(f"warning: {warning}")
        if found:
            self.report["warnings"] = found
        if self.captured.unused:
            self.report["unused"] = list(self.captured.unused)

    def _shortened(self) -> list[str]:
        """Says that the target's length cuts texts that an encoder could read."""
        from leptonc.frontend.capture import position_limit
        from leptonc.sources.base import text_limit

        embeds, found = self.captured.task.output == "embeddings", self.captured.max_seq_len
        bounds = [position_limit(self.captured.config), text_limit(self.source) if embeds else None]
        own = min((bound for bound in bounds if bound), default=found)
        if own <= found:
            return []
        return [
            f"texts are cut at {found} tokens, the target's length, where the model reads {own}: --max-seq-len {own} "
            "reads as many"
        ]

    def shrink(self, writer: ArtifactWriter, texts: dict[Any, Any], count: int) -> None:
        """Cuts out of the captured model what is asked for; `calibration` and `healing` are there afterwards.

        Args:
            writer: What is being written; its directory has room for temporary files.
            texts: What earlier builds of the same source had the model write, and this one's too afterwards.
            count: Texts that later steps look at.

        Raises:
            InputError: It cannot be cut so.
        """
        from leptonc.build.calibration_text import WINDOWS, Calibration
        from leptonc.build.steps.heal import Healing
        from leptonc.ir.structure import structure
        from leptonc.passes.base import Manager
        from leptonc.build.steps.prune import prune
        from leptonc.build.resume import kept_of

        options, captured = self.options, self.captured
        self.sample.scratch = writer.scratch
        self.calibration = Calibration(
            captured, self.sample, options.calibration, options.seed, self.memory, writer.scratch,
            self.clock, options.chat, WINDOWS if options.heal or self.request else count, texts,
            kept_of(options, captured),
        )  # fmt: skip
        asked = self.request
        one_stream = asked is not None and not (asked.width or asked.sparse or options.rotate)
        self.healing = Healing(
            options.heal, options.resume, options.seed, self.calibration, fits=one_stream, rank=options.heal_rank
        )
        if self.request is not None:
            manager = Manager()
            self.report["pruning"] = prune(self.request, options, self.variants, self.calibration, manager)
            self.records += manager.records
            Manager(options.dump_ir).write(captured.model, "prune")
        if options.rotate:
            self._rotate()
        self.report["structure"] = structure(captured.model).summary()

    def _rotate(self) -> None:
        """Gives the residual stream a random basis: in it no feature is far larger than others."""
        from leptonc.ir.residual import residual
        from leptonc.ir.weights import count_weights
        from leptonc.passes.base import Manager
        from leptonc.passes.rotate import FoldNorms, Rotate, RotateConfig, random_basis

        manager, model, seed = Manager(), self.captured.model, self.options.seed
        before = count_weights(model)
        manager.run(model, [FoldNorms()])
        size = residual(model).size
        manager.run(model, [Rotate(RotateConfig(f"random, seed {seed}"), random_basis(size, seed))])
        self.captured.parameters += count_weights(model) - before  # where gains could not be folded
        self.records += manager.records
