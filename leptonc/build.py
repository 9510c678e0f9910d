"""The way of a model, from source to artifact: the one function behind `leptonc build`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import targets
from leptonc.backends import Job, backend_of
from leptonc.errors import InputError
from leptonc.memory import return_freed_memory
from leptonc.options import BuildOptions
from leptonc.passes.prune.sparse import PATTERN
from leptonc.preparation import Preparation, begin
from leptonc.progress import Progress, Silent, Timed
from leptonc.recipe import check_values
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
    from leptonc.healing import check as check_healing
    from leptonc.pruning import check as check_pruning
    from leptonc.resume import check as check_resume
    from leptonc.sparsity import check_job

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
    jobs = _jobs(options, clock)
    check_healing(options.heal, jobs, pruned=pruning is not None, rank=options.heal_rank)
    check_resume(options, jobs)
    for job in jobs:
        check_job(job)
        backend_of(job.target).check_request(job)
    with begin(options, jobs, clock, pruning) as begun:
        # A model that is pruned first writes another text.
        kept = texts if texts is not None and pruning is None else {}
        return _Build(begun, kept).run()


def check_text(options: BuildOptions) -> None:
    """Refuses a calibration text without a use or that cannot be read, and an unknown calibrator (`InputError`)."""
    from leptonc.calibrate.calibrators import calibrators

    calibrators(options.calibrator)
    if options.calibration is None:
        if options.chat:
            raise InputError("expected a calibration text with --chat, found none", hint="--calibration FILE --chat")
        return
    from leptonc.calibrate.texts import read_texts

    readers = text_readers(options)
    if not any(readers.values()):
        raise InputError(
            f"expected something that reads a calibration text, one of {', '.join(readers)}, found none beside "
            f"{options.calibration}",
            hint="--method gptq --calibration FILE",
        )
    read_texts(options.calibration)


def text_readers(options: BuildOptions) -> dict[str, bool]:
    """Returns what may read a calibration text, each with whether it is asked for."""
    return {
        "--method gptq": options.method not in (None, "rtn"), "--kv-cache": options.kv_cache is not None,
        "--weights auto:SIZE": (options.weights or "").startswith("auto"), "--prefill": options.prefill is not None,
        "--activations int8": options.activations != "none",
        "--prune": options.prune is not None and (options.prune, options.prune_method) != (PATTERN, "magnitude"),
        "--heal": options.heal is not None,
    }  # fmt: skip


def target_of(spec: str) -> targets.Target:
    """Returns the target of a specification (raises `InputError`)."""
    try:
        return targets.load(spec)
    except targets.TargetError as error:  # of a package that imports nothing of ours
        raise InputError(error.message, hint=error.hint) from error


def _jobs(options: BuildOptions, clock: Timed) -> list[Job]:
    """One job a target; variants of one profile are told apart by their overrides."""
    from leptonc.budget import parse_budget

    specs = (options.target,) if isinstance(options.target, str) else options.target
    found = [target_of(spec) for spec in specs]
    if not found:
        raise InputError("expected at least one target, found none", hint="see `leptonc targets`")
    names = [target.name for target in found]
    budget, integers = parse_budget(options.weights), options.activations == "int8"
    sparse = options.prune == PATTERN
    jobs: list[Job] = []
    for target in found:
        name = target.name if names.count(target.name) == 1 else re.sub(r"[^\w.]+", "-", target.spec)
        if any(job.name == name for job in jobs):
            raise InputError(f"expected each target once, found {target.spec} twice")
        usual = "int8" if integers else "fp16" if sparse else target.weights
        scheme = (options.weights if budget is None else "int4") or usual
        solved = budget is not None or (integers and target.backend == "onnxruntime")
        method = options.method or ("gptq" if solved else "rtn")
        jobs.append(
            Job(
                name, target, scheme, options.block_size, options.symmetric, budget, method, options.embeddings,
                options.check, clock, rules=options.layers, activations=options.activations,
                calibrator=options.calibrator, kv_cache=options.kv_cache, prefill=options.prefill, sparse=sparse,
            )
        )  # fmt: skip
    return jobs


class _Build:
    """One run of `build`, from an open source on."""

    def __init__(self, begun: Preparation, texts: dict[Any, Any]) -> None:
        self.begun, self.texts = begun, texts
        self.options, self.jobs, self.source, self.clock = begun.options, begun.jobs, begun.source, begun.clock
        self.out = self.options.out or Path(f"{self.source.name}.lepton")

    def run(self) -> BuildResult:
        from leptonc.artifact.page import report_page
        from leptonc.artifact.report import shapes_of
        from leptonc.artifact.writer import ArtifactWriter, check_out
        from leptonc.choices import looks

        options, clock, begun = self.options, self.clock, self.begun
        check_out(self.out, replace=options.force)
        begun.capture()
        self.captured = captured = begun.captured
        for job in self.jobs:
            job.captured, job.sample = captured, begun.sample
            backend_of(job.target).preflight(job)
        self.variants: list[Variant] = []
        report, self.records = begun.report, begun.records
        with ArtifactWriter(self.out, replace=options.force) as writer:
            self._tokenizer_files(writer)
            pruned = begun.request is not None and not begun.request.sparse  # which makes nothing smaller
            whole = captured.model.clone() if pruned else None
            begun.shrink(writer, self.texts, max(map(looks, self.jobs)))
            self.calibration, self.healing = begun.calibration, begun.healing
            if whole is not None:
                self._speed(whole)
            self.shapes = shapes_of(captured.model)
            for job in self.jobs:
                # The last one may change the captured graph itself.
                model = captured.model if job is self.jobs[-1] else captured.model.clone()
                report["operations"][job.name] = self._variant(job, model, writer)
            fidelity = {job.name: job.report.pop("fidelity") for job in self.jobs if "fidelity" in job.report}
            if fidelity:
                report["fidelity"] = fidelity[self.jobs[0].name]
            report["variants"] = {
                job.name: {**job.report, **({"fidelity": fidelity[job.name]} if job.name in fidelity else {})}
                for job in self.jobs
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
        from leptonc.latency import speed

        job = next((job for job in self.jobs if job.target.backend == "onnxruntime" and job.check), None)
        if job is not None:
            found = speed(whole, self.captured.model.clone(), job, self.calibration)
            self.begun.report["pruning"]["speed"] = found

    def _variant(self, job: Job, model: Any, writer: Any) -> dict[str, int]:
        """Lowers, writes, measures and compiles one variant; returns how often each op occurs in it."""
        from leptonc.advice import add_rows, advice, prompts_advice
        from leptonc.artifact.report import rounded_of
        from leptonc.backends.onnxruntime import SHARED, lowering_of
        from leptonc.choices import choose
        from leptonc.ir.dialect import count_ops
        from leptonc.passes.base import Manager

        backend, clock, several = backend_of(job.target), self.clock, len(self.jobs) > 1
        prefix = f"{job.name}: " if several else ""
        dump = self.options.dump_ir
        manager = Manager(dump / job.name if dump and several else dump, start=0 if several else 1)
        choose(self.calibration, job, model)
        self.healing.prepare(job)
        passes = backend.passes(job, writer.scratch)
        # A graph for prefill begins with the captured weights, or with those that it shares.
        first = lowering_of(passes) if job.prefill == SHARED else 0
        with clock.stage(f"{prefix}passes", len(passes)) as advance:
            manager.run(model, passes[:first], advance)
            prefill = model.clone() if job.prefill is not None else None
            manager.run(model, passes[first:], advance)
        backend.finish(model)
        clock.seconds.update({f"pass {prefix}{name}": seconds for name, seconds in manager.seconds.items()})
        self.records += [record for record in manager.records if record not in self.records]
        counted = count_ops(model)
        size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        with clock.stage(f"{prefix}weights", size) as advance:
            blobs = writer.add_graph(job.graph, model, advance)
        variant = backend.variant(job, blobs)
        rounded = rounded_of(passes)
        if job.check:
            job.sample.rounded = rounded
            self._measure(job, variant, writer, f"{prefix}check", job.report)
        add_rows(job, self.shapes, rounded)
        if job.check:
            self._judge(job, job.report["fidelity"], advice(job))
        if prefill is not None:
            from leptonc.prefill import add_prefill

            before = sum(file.size for file in writer.listing())
            variant, records = add_prefill(job, prefill, model, variant, writer, clock, prefix)
            job.report["prefill"]["bytes"] = sum(file.size for file in writer.listing()) - before
            self.records += [record for record in records if record not in self.records]
            if job.check:
                job.sample.rounded = {}
                self._measure(job, variant, writer, f"{prefix}prefill check", job.report["prefill"])
                self._judge(job, job.report["prefill"]["fidelity"], prompts_advice(job), " in prompts")
        self.variants.append(backend.compile(job, writer, model, variant))
        return counted

    def _measure(self, job: Job, variant: Variant, writer: Any, stage: str, report: dict[str, Any]) -> None:
        """Measures what is written; the report gets `fidelity`."""
        manifest = self._manifest(writer, (variant,))
        writer.write_manifest(manifest)
        with self.clock.stage(stage):
            report["fidelity"] = backend_of(job.target).measure(job, writer, manifest)

    def _tokenizer_files(self, writer: Any) -> None:
        from leptonc.artifact.describe import named_templates
        from leptonc.artifact.tokenizer import stored as stored_tokenizer

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

    def _judge(self, job: Job, fidelity: dict[str, Any], hint: str | None, where: str = "") -> None:
        from leptonc.evaluate.measure import judge

        fewer = "more bits (--weights int8), smaller blocks (--block-size 16), --asymmetric or no --prune lose less"
        judge(fidelity, self.options.max_loss, f"{job.target.spec}{where}", hint or fewer)


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
