"""The way of a model, from source to artifact: the one function behind `leptonc build`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leptonc.backends import backend_of
from leptonc.backends.traits import traits_of
from leptonc.errors import InputError
from leptonc.memory import return_freed_memory
from leptonc.options import BuildOptions
from leptonc.build.plan import check_text, plans_of
from leptonc.build.context import Preparation, begin
from leptonc.progress import Progress, Silent, Timed
from leptonc.build.recipe import check_values
from leptonc.variant import VariantBuild
from runtime_edge.manifest import Manifest, Variant


@dataclass(frozen=True)
class BuildResult:
    """A built artifact: where it is, its manifest and report, and the seconds of each stage and each `pass …` in it."""

    path: Path
    manifest: Manifest
    report: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)


def build(
    options: BuildOptions, progress: Progress | None = None, texts: dict[Any, Any] | None = None
) -> BuildResult:
    """Builds an artifact.

    Args:
        options: What to build.
        progress: What shows how far it is; None for nothing.
        texts: What earlier builds of the same source had the model write, and this one's too afterwards; or None.

    Returns:
        The artifact that is at `options.out` now.

    Raises:
        LeptonError: whatever was wrong; nothing is left at `options.out` then.
    """
    from leptonc.build.steps.heal import check as check_healing
    from leptonc.build.steps.prune import check as check_pruning
    from leptonc.build.resume import check as check_resume
    from leptonc.build.steps.prune_pattern import check_plan

    return_freed_memory()
    clock = Timed(progress or Silent())
    if options.activations not in ("none", "int8"):
        raise InputError(
            f"expected activations none or int8, found {options.activations}",
            hint="with none, kernels for int8 and int4 weights round activations as they run, in blocks",
        )
    check_values(options)
    check_text(options)
    pruning = check_pruning(
        options.prune, options.prune_method, options.prune_compensation, options.prune_allocation
    )
    plans = plans_of(options)
    check_healing(options.heal, plans, pruned=pruning is not None, rank=options.heal_rank)
    check_resume(options, plans)
    for plan in plans:
        check_plan(plan)
        backend_of(plan.target).check_request(plan)
    with begin(options, plans, clock, pruning) as begun:
        # A model that is pruned first writes another text.
        kept = texts if texts is not None and pruning is None else {}
        return _Build(begun, kept).run()


class _Build:
    """One run of `build`, from an open source on."""

    def __init__(self, begun: Preparation, texts: dict[Any, Any]) -> None:
        self.begun, self.texts = begun, texts
        self.options, self.source, self.clock = begun.options, begun.source, begun.clock
        self.out = self.options.out or Path(f"{self.source.name}.lepton")

    def run(self) -> BuildResult:
        from leptonc.artifact.page import report_page
        from leptonc.artifact.report import shapes_of
        from leptonc.artifact.writer import ArtifactWriter, check_out
        from leptonc.build.steps.spend_budget import refuse_too_small
        from leptonc.build.choices import looks

        options, clock, begun = self.options, self.clock, self.begun
        check_out(self.out, replace=options.force)
        begun.capture()
        self.captured = captured = begun.captured
        for index, variant in enumerate(begun.variants):
            if begun.request is None:
                refuse_too_small(variant.plan.budget, captured.model)
            layers = backend_of(variant.plan.target).preflight(variant)
            begun.variants[index] = variant.choosing(layers=layers)
        variants = begun.variants
        self.variants: list[Variant] = []
        report, self.records = begun.report, begun.records
        with ArtifactWriter(self.out, replace=options.force) as writer:
            self._tokenizer_files(writer)
            pruned = begun.request is not None and not begun.request.sparse  # which makes nothing smaller
            whole = captured.model.clone() if pruned else None
            begun.shrink(writer, self.texts, max(looks(plan) for plan in begun.plans))
            self.calibration, self.healing = begun.calibration, begun.healing
            if whole is not None:
                self._speed(whole)
            self.shapes = shapes_of(captured.model)
            for variant in variants:
                # The last one may change the captured graph itself.
                model = captured.model if variant is variants[-1] else captured.model.clone()
                report["operations"][variant.plan.name] = self._variant(variant, model, writer)
            fidelity = {v.plan.name: v.report.pop("fidelity") for v in variants if "fidelity" in v.report}
            if fidelity:
                report["fidelity"] = fidelity[variants[0].plan.name]
            report["variants"] = {
                v.plan.name: {**v.report, **({"fidelity": fidelity[v.plan.name]} if v.plan.name in fidelity else {})}
                for v in variants
            }
            report["bytes"] = sizes_of(writer)
            data = as_json(report)
            writer.add("report.html", report_page(self._manifest(writer, tuple(self.variants)), json.loads(data)))
            writer.add("report.json", data)
            manifest = self._manifest(writer, tuple(self.variants))
            writer.write_manifest(manifest)
            path = writer.commit()
            self.calibration.kept.finish()
        return BuildResult(path, manifest, report, dict(clock.seconds))

    def _speed(self, whole: Any) -> None:
        """Times what pruning left beside the whole model, where there is a variant for this machine."""
        from leptonc.build.latency import speed

        runnable = (v for v in self.begun.variants if traits_of(v.plan.target).runs_here and v.plan.check)
        variant = next(runnable, None)
        if variant is not None:
            found = speed(whole, self.captured.model.clone(), variant, self.calibration)
            self.begun.report["pruning"]["speed"] = found

    def _variant(self, variant: VariantBuild, model: Any, writer: Any) -> dict[str, int]:
        """Lowers, writes, measures and compiles one variant; returns how often each op occurs in it."""
        from leptonc.build.advice import add_rows, advice, prompts_advice
        from leptonc.artifact.report import rounded_of
        from leptonc.backends.onnxruntime import SHARED, lowering_of
        from leptonc.build.choices import choose
        from leptonc.ir.dialect import count_ops
        from leptonc.passes.base import Manager

        plan, clock, several = variant.plan, self.clock, len(self.begun.plans) > 1
        backend = backend_of(plan.target)
        prefix = f"{plan.name}: " if several else ""
        dump = self.options.dump_ir
        manager = Manager(dump / plan.name if dump and several else dump, start=0 if several else 1)
        variant = replace(variant, choices=choose(self.calibration, variant, model))
        variant = variant.choosing(recovery=self.healing.recovery(variant))
        passes = backend.passes(variant, writer.scratch)
        # A graph for prefill begins with the captured weights, or with those that it shares.
        first = lowering_of(passes) if plan.prefill == SHARED else 0
        with clock.stage(f"{prefix}passes", len(passes)) as advance:
            manager.run(model, passes[:first], advance)
            prefill = model.clone() if plan.prefill is not None else None
            manager.run(model, passes[first:], advance)
        backend.finish(model)
        clock.seconds.update({f"pass {prefix}{name}": seconds for name, seconds in manager.seconds.items()})
        self.records += [done for done in manager.records if done not in self.records]
        counted = count_ops(model)
        size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        with clock.stage(f"{prefix}weights", size) as advance:
            blobs = writer.add_graph(plan.graph, model, advance)
        record = backend.record(variant, blobs)
        rounded = rounded_of(passes)
        if plan.check:
            variant.sample.rounded = rounded
            self._measure(variant, record, writer, f"{prefix}check", variant.report)
        add_rows(variant, self.shapes, rounded)
        if plan.check:
            self._judge(variant, variant.report["fidelity"], advice(variant))
        if prefill is not None:
            from leptonc.backends.onnxruntime.prompts import add_prefill

            before = sum(file.size for file in writer.listing())
            record, records = add_prefill(variant, prefill, model, record, writer, prefix)
            variant.report["prefill"]["bytes"] = sum(file.size for file in writer.listing()) - before
            self.records += [done for done in records if done not in self.records]
            if plan.check:
                variant.sample.rounded = {}
                self._measure(variant, record, writer, f"{prefix}prefill check", variant.report["prefill"])
                self._judge(variant, variant.report["prefill"]["fidelity"], prompts_advice(variant), " in prompts")
        self.variants.append(backend.compile(variant, writer, model, record))
        return counted

    def _measure(
        self, variant: VariantBuild, record: Variant, writer: Any, stage: str, report: dict[str, Any]
    ) -> None:  # fmt: skip
        """Measures what is written; the report gets `fidelity`."""
        manifest = self._manifest(writer, (record,))
        writer.write_manifest(manifest)
        with self.clock.stage(stage):
            report["fidelity"] = backend_of(variant.plan.target).measure(variant, writer, manifest)

    def _tokenizer_files(self, writer: Any) -> None:
        from leptonc.artifact.describe import named_templates, tokenizer_of
        from leptonc.artifact.templates import check_templates
        from leptonc.artifact.tokenizer import stored as stored_tokenizer

        check_templates(self.source, tokenizer_of(self.source, self.captured).special_tokens)
        writer.add("tokenizer.json", stored_tokenizer(self.source.tokenizer_json))
        if self.source.chat_template:
            writer.add("chat_template.jinja", self.source.chat_template.encode())
        for name, path in named_templates(self.source).items():
            writer.add(path, self.source.chat_templates[name].encode())

    def _manifest(self, writer: Any, variants: tuple[Variant, ...]) -> Manifest:
        from leptonc.artifact.describe import decoder_of, encoder_of, tokenizer_of, toolchain
        from runtime_edge.manifest import FORMAT, FORMAT_VERSION

        captured = self.captured
        return Manifest(
            format=FORMAT, format_version=FORMAT_VERSION, name=self.source.name, task=captured.task.name,
            architecture=str(captured.config.model_type), parameters=captured.parameters,
            source=dict(self.source.origin), tokenizer=tokenizer_of(self.source, captured),
            variants=variants, files=writer.listing(),
            encoder=encoder_of(captured, self.source),
            decoder=decoder_of(captured, self.options.kv_cache or "float32"),
            passes=tuple(self.records), toolchain=toolchain(),
            report="report.json" if "report.json" in writer.files else None,
        )  # fmt: skip

    def _judge(self, variant: VariantBuild, fidelity: dict[str, Any], hint: str | None, where: str = "") -> None:
        from leptonc.evaluate.measure import judge, require_same

        fewer = "more bits (--weights int8), smaller blocks (--block-size 16), --asymmetric or no --prune lose less"
        judge(fidelity, self.options.max_loss, f"{variant.plan.target.spec}{where}", hint or fewer)
        if self._exact(variant):
            require_same(fidelity, f"{variant.plan.target.spec}{where}")

    def _exact(self, variant: VariantBuild) -> bool:
        """Returns whether a variant is the model itself: float32 throughout, nothing cut and nothing learnt."""
        options, plan = self.options, variant.plan
        changed = (options.prune, options.heal, options.prefill, options.kv_cache, plan.embeddings, plan.budget)
        return plan.scheme == "fp32" and options.activations == "none" and not options.layers and not any(changed)


def sizes_of(writer: Any) -> dict[str, int]:
    """Returns the bytes of the parts that are written so far."""

    def total(holds: Callable[[str], bool]) -> int:
        return sum(file.size for file in writer.listing() if holds(file.path))

    sizes = {
        "weights": total(lambda path: path.startswith("blobs/")),
        "graph": total(lambda path: path.endswith(".onnx")),
        "tokenizer": total(lambda path: path == "tokenizer.json"),
    }
    plans = total(lambda path: path.endswith(".plan"))
    return {**sizes, "plans": plans} if plans else sizes


def as_json(value: Any) -> bytes:
    """Returns a report's bytes: equal ones give equal bytes."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"
