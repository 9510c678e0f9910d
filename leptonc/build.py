"""The way of a model, from source to artifact: the one function behind `leptonc build`."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import targets
from leptonc import __version__
from leptonc.errors import BoundError, InputError
from leptonc.memory import return_freed_memory
from runtime_edge.manifest import Manifest

TOOLCHAIN = ("torch", "transformers", "onnx", "onnx-ir", "onnxruntime", "tokenizers", "numpy")
REPORT_TOKENS = 512  # of text that a causal model's fidelity is measured on
REPORT_SENTENCES = 32  # that an encoder's is


class Progress(Protocol):
    """What shows how far a build is."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """Opens a stage of `total` steps (None: unknown); what it yields is called with steps done."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        yield lambda _: None


@dataclass(frozen=True)
class BuildOptions:
    """What to build; names and meanings are those of `leptonc build --help`.

    Attributes:
        source: Directory, hub id, .gguf file or sample:NAME.
        target: Target name with overrides.
        out: Artifact to write; None for NAME.lepton in the working directory.
        weights: fp32, int8 or int4; None for the target's default.
        activations: none.
        block_size: Weights that share a scale, for int8 and int4.
        symmetric: Whether weights are quantized without zero points.
        max_seq_len: Longest sequence; None for the target's default, at most the model's.
        max_loss: Largest loss of quality in percent, or None: of perplexity for causal models, of cosine similarity
            for embeddings, of agreement for classifiers.
        seed: Of whatever is random in a build; nothing is in these passes.
        dump_ir: Directory for the graph after each pass, or None.
        eval_text: Text to measure fidelity on, or None for the built-in one.
        check: Whether fidelity is measured.
        force: Whether an artifact at `out` is replaced.
    """

    source: str
    target: str = "cpu"
    out: Path | None = None
    weights: str | None = None
    activations: str = "none"
    block_size: int = 32
    symmetric: bool = True
    max_seq_len: int | None = None
    max_loss: float | None = None
    seed: int = 0
    dump_ir: Path | None = None
    eval_text: Path | None = None
    check: bool = True
    force: bool = False


@dataclass(frozen=True)
class BuildResult:
    """A built artifact: where it is, its manifest and report, and the seconds of each stage and each `pass …` in it."""

    path: Path
    manifest: Manifest
    report: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Clock:
    """Times stages while the user sees them."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        started = time.perf_counter()
        with self.progress.stage(name, total) as advance:
            yield advance
        self.seconds[name] = time.perf_counter() - started


def build(options: BuildOptions, progress: Progress | None = None) -> BuildResult:
    """Builds an artifact.

    Args:
        options: What to build.
        progress: What shows how far it is; None for nothing.

    Returns:
        The artifact that is at `options.out` now.

    Raises:
        LeptonError: whatever was wrong; nothing is left at `options.out` then.
    """
    from leptonc.artifact.writer import check_out
    from leptonc.backends import onnxruntime as backend
    from leptonc.backends import require_backend
    from leptonc.evaluate.text import load_text
    from leptonc.sources import open_source

    return_freed_memory()
    try:
        target = targets.load(options.target)
    except targets.TargetError as error:  # of a package that imports nothing of ours
        raise InputError(error.message, hint=error.hint) from error
    require_backend(target)
    scheme = options.weights or target.weights
    if scheme not in backend.WEIGHTS:
        raise InputError(
            f"expected weights among {', '.join(backend.WEIGHTS)} for target {target.name}, found {scheme}",
            hint="fp32 keeps the weights as they are",
        )
    if options.activations != "none":
        raise InputError(
            f"expected activations none for target {target.name}, found {options.activations}",
            hint="activations are quantized by the kernels as they run, in blocks, where weights are int8 or int4",
        )
    if options.out is not None:
        check_out(options.out, replace=options.force)
    text = load_text(options.eval_text) if options.check else ""
    clock = _Clock(progress or Silent())
    with clock.stage("open"):
        source = open_source(options.source)
    with source:
        return _Build(options, target, scheme, source, text, clock).run()


class _Build:
    """One run of `build`, from an open source on."""

    def __init__(
        self, options: BuildOptions, target: targets.Target, scheme: str, source: Any, text: str, clock: _Clock
    ) -> None:
        self.options, self.target, self.scheme, self.source = options, target, scheme, source
        self.text, self.clock = text, clock
        self.out = options.out or Path(f"{source.name}.lepton")

    def run(self) -> BuildResult:
        from leptonc.artifact.writer import ArtifactWriter, check_out
        from leptonc.backends import onnxruntime as backend
        from leptonc.frontend.capture import capture
        from leptonc.ir.dialect import count_ops
        from leptonc.ir.structure import structure
        from leptonc.passes.base import Manager

        options, clock = self.options, self.clock
        check_out(self.out, replace=options.force)
        with clock.stage("capture"):
            captured = capture(self.source, max_seq_len=options.max_seq_len or self.target.max_seq_len)
        self.captured, model = captured, captured.model
        manager = Manager(options.dump_ir)
        manager.write(model, "capture")
        shape, captured_ops = structure(model), count_ops(model)
        passes = [*self._passes(), *backend.lowerings()]
        with clock.stage("passes", len(passes)) as advance:
            manager.run(model, passes, advance)
        backend.finish(model)
        clock.seconds.update({f"pass {name}": seconds for name, seconds in manager.seconds.items()})
        report: dict[str, Any] = {
            "operations": {"captured": captured_ops, self.target.name: count_ops(model)},
            "structure": {
                "layers": len(shape.layers), "residual": shape.residual,
                "heads": [layer.heads for layer in shape.layers],
                "kv_heads": [layer.kv_heads for layer in shape.layers],
                "mlp_channels": [layer.mlp_channels for layer in shape.layers],
            },
        }  # fmt: skip
        with ArtifactWriter(self.out, replace=options.force) as writer:
            self._tokenizer_files(writer)
            size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
            with clock.stage("weights", size) as advance:
                blobs = writer.add_graph(f"{self.target.name}.onnx", model, advance)
            manifest = self._manifest(writer, manager, blobs)
            writer.write_manifest(manifest)
            if options.check:
                with clock.stage("check"):
                    report["fidelity"] = self._fidelity(writer.path)
                self._judge(report["fidelity"])
            report["bytes"] = self._sizes(manifest)
            writer.add("report.json", _json(report))
            manifest = self._manifest(writer, manager, blobs)
            writer.write_manifest(manifest)
            path = writer.commit()
        return BuildResult(path, manifest, report, dict(clock.seconds))

    def _passes(self) -> list[Any]:
        from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig

        if self.scheme == "fp32":
            return []
        bits = int(self.scheme.removeprefix("int"))
        config = QuantizeWeightsConfig(bits=bits, block_size=self.options.block_size, symmetric=self.options.symmetric)
        return [QuantizeWeights(config)]

    def _tokenizer_files(self, writer: Any) -> None:
        writer.add("tokenizer.json", self.source.tokenizer_json)
        if self.source.chat_template:
            writer.add("chat_template.jinja", self.source.chat_template.encode())

    def _manifest(self, writer: Any, manager: Any, blobs: tuple[str, ...]) -> Manifest:
        from leptonc.artifact.describe import decoder_of, encoder_of, tokenizer_of
        from runtime_edge.manifest import FORMAT, FORMAT_VERSION, Variant

        variant = Variant(
            name=self.target.name, target=self.target.spec, backend="onnxruntime", graph=f"{self.target.name}.onnx",
            weights=self.scheme, activations="none", blobs=blobs,
        )  # fmt: skip
        captured = self.captured
        return Manifest(
            format=FORMAT, format_version=FORMAT_VERSION, name=self.source.name, task=captured.task.name,
            architecture=str(captured.config.model_type), parameters=captured.parameters,
            source=dict(self.source.origin), tokenizer=tokenizer_of(self.source, captured),
            variants=(variant,), files=writer.listing(), decoder=decoder_of(captured), encoder=encoder_of(captured),
            passes=tuple(manager.records), toolchain=_toolchain(),
            report="report.json" if "report.json" in writer.files else None,
        )  # fmt: skip

    def _fidelity(self, path: Path) -> dict[str, Any]:
        """Measures the artifact, run by the runtime as it will run, against transformers in float32."""
        import numpy as np
        from tokenizers import Tokenizer

        import runtime_edge
        from leptonc.evaluate import fidelity
        from leptonc.evaluate.reference import Reference
        from leptonc.evaluate.text import sentences

        reference = Reference(self.source, self.captured.task)
        tokenizer = Tokenizer.from_str(self.source.tokenizer_json.decode())
        # The reference runs first: its weights have left the memory when the artifact is loaded.
        if self.captured.task.cached:
            token_ids = tokenizer.encode(self.text).ids[: min(REPORT_TOKENS, self.captured.max_seq_len)]
            blocks = reference.logits(token_ids)
            with runtime_edge.load(path) as model:
                found = fidelity.compare_logits(blocks, model.logits_blocks(token_ids), token_ids)
        else:
            texts = sentences(self.text, REPORT_SENTENCES)
            tokenizer.enable_truncation(self.captured.max_seq_len)
            rows = reference.rows([tokenizer.encode(text).ids for text in texts])
            with runtime_edge.load(path) as model:
                encoder = model.manifest.encoder
                if encoder is not None and encoder.output == "logits":
                    rows = fidelity.probabilities(rows, encoder.multi_label)
                    got = np.array([list(c.scores.values()) for c in model.classify(texts)], np.float32)
                else:
                    got = model.encode(texts)
                found = fidelity.compare_rows(rows, got, labels=self.captured.task.output == "logits")
        found["text"] = str(self.options.eval_text.name) if self.options.eval_text else "built-in"
        return found

    def _judge(self, found: dict[str, Any]) -> None:
        bound = self.options.max_loss
        if bound is None:
            return
        if "perplexity" in found:
            what, loss = "perplexity rises", 100 * (found["perplexity"] / found["perplexity_reference"] - 1)
        elif "top1_agreement" in found:
            what, loss = "agreement of labels falls", 100 * (1 - found["top1_agreement"])
        else:
            what, loss = "cosine similarity falls", 100 * (1 - found["cosine_mean"])
        if loss > bound:
            raise BoundError(
                f"expected a loss of at most {bound:g} %, found that {what} by {loss:.2f} %; nothing was written",
                hint="more bits (--weights int8), smaller blocks (--block-size 16) or --asymmetric lose less",
            )

    def _sizes(self, manifest: Manifest) -> dict[str, int]:
        weights = sum(f.size for f in manifest.files if f.path.startswith("blobs/"))
        graphs = sum(f.size for f in manifest.files if f.path.endswith(".onnx"))
        return {"weights": weights, "graph": graphs, "tokenizer": len(self.source.tokenizer_json)}


def _json(value: Any) -> bytes:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"


def _toolchain() -> dict[str, str]:
    found = {"leptonc": __version__, "python": platform.python_version()}
    for name in TOOLCHAIN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # onnxruntime-gpu carries the module under another name
            continue
    return found
