"""What a build asks of calibration: the text, what is chosen by it, and the solver of method gptq."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.artifact.writer import ArtifactWriter
from leptonc.backends import MODULES, Job, backend_of
from leptonc.budget import TRIAL, TRIALS, spend
from leptonc.calibrate.activations import (
    ROUNDED,
    SOLVED,
    choices,
    describe,
    divergences,
    kept_higher,
    static_of,
    widened,
    with_layers,
    without_layers,
)
from leptonc.calibrate.caches import cache_scales
from leptonc.calibrate.choice import Choice
from leptonc.calibrate.generate import generate, rounds
from leptonc.calibrate.kept import Kept
from leptonc.calibrate.scaling import Scaling, scalings
from leptonc.calibrate.solve import Solver
from leptonc.calibrate.texts import built_in_texts, read_texts, rendered, text_windows, token_windows
from leptonc.calibrate.walk import linear_stages, stages
from leptonc.passes.base import Manager
from leptonc.passes.quantize.smooth import SmoothLinears, SmoothLinearsConfig
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig

if TYPE_CHECKING:
    from leptonc.backends import Clock
    from leptonc.evaluate.measure import Sample
    from leptonc.frontend.capture import Captured
    from leptonc.passes.quantize.static import StaticActivations

WINDOWS, WINDOW = 32, 512  # texts, and tokens of each
LESSONS = 384  # texts of a file that there are to learn from: more than a short healing comes to
LOOKS = 12  # texts that ranges of activations, and codes of 8 bits, come from: some thousand tokens tell enough
T = TypeVar("T")


def looks(job: Job) -> int:
    """Returns how many texts a job's codes come from: eight bits leave so little error that fewer tell as much."""
    return LOOKS if job.scheme == "int8" and job.budget is None else WINDOWS


@dataclass
class Calibration:
    """The calibration of one build, shared by its variants.

    Attributes:
        captured: The model.
        sample: Its source and tokenizer.
        file: The user's text, or None: the model writes it itself, or, if it is an encoder, a built-in one is taken.
        seed: Of what the model writes.
        memory: Bytes of activations kept in memory.
        scratch: Directory for temporary files.
        clock: Times stages.
        chat: Whether texts of the file become a user's messages.
        count: Texts that a decoder writes, or that are cut from a file for it.
        texts: What models wrote, by length and seed, for builds of the same source.
        kept: What an interrupted build left, and this one leaves.
    """

    captured: Captured
    sample: Sample
    file: Path | None
    seed: int
    memory: int
    scratch: Path
    clock: Clock
    chat: bool = False
    count: int = WINDOWS
    texts: dict[Any, list[NDArray[np.int64]]] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)
    name: str = field(init=False, default="")

    @cached_property
    def windows(self) -> list[NDArray[np.int64]]:
        """Token ids int64 [length] of each text."""
        length, tokenizer = min(WINDOW, self.captured.max_seq_len), self.sample.tokenizer
        if not self.captured.task.cached:
            self.name = self.file.name if self.file else "built-in"
            texts = self._read(self.file) if self.file else built_in_texts()
            return text_windows(texts, lambda text: list(tokenizer.encode(text).ids), WINDOWS * 8)
        if self.file is None:
            self.name = f"written by the model, seed {self.seed}"
            key = (length, self.seed)
            if len(self.texts.get(key, [])) < self.count:
                made = self.kept.arrays("text", lambda: {str(i): x for i, x in enumerate(self._written(length))})
                self.texts[key] = [made[name] for name in sorted(made, key=int)]
            return self.texts[key][: self.count]
        return self._cut(self.file, self.count)

    @cached_property
    def lessons(self) -> list[NDArray[np.int64]]:
        """Token ids int64 [length] of each text that healing learns from: of a file, more than statistics need."""
        if self.file is None or not self.captured.task.cached:
            return self.windows
        return self._cut(self.file, LESSONS)

    def _cut(self, file: Path, count: int) -> list[NDArray[np.int64]]:
        """So many windows of a file, evenly spread over it."""
        self.name, tokenizer = file.name, self.sample.tokenizer
        return token_windows(
            self._read(file), lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids), count,
            min(WINDOW, self.captured.max_seq_len), self.lead,
        )  # fmt: skip

    @property
    def lead(self) -> list[int]:
        """What the tokenizer puts before every text of a decoder: models that know it go astray without."""
        return list(self.sample.tokenizer.encode("").ids) if self.captured.task.cached else []

    def _read(self, file: Path) -> list[str]:
        """The texts of a file; conversations, and all where that is wanted, go through the model's chat template."""
        from leptonc.artifact.describe import tokenizer_of
        from runtime_edge.chat import ChatTemplate

        texts, source = read_texts(file), self.sample.source
        if source.chat_template is None:
            return rendered(texts, None, chat=self.chat)
        template = ChatTemplate(source.chat_template, tokenizer_of(source, self.captured).special_tokens)
        return rendered(texts, lambda messages, answer: template.render(messages, answer=answer), chat=self.chat)

    def _written(self, length: int) -> list[NDArray[np.int64]]:
        """Lets the model write, its weights in int8: what it writes is nearly the same, in a third of the time."""
        from leptonc.artifact.describe import tokenizer_of
        from leptonc.backends import onnxruntime as backend

        about = tokenizer_of(self.sample.source, self.captured)
        begins = [] if about.bos_token_id is None else [about.bos_token_id]
        first = [*self.lead[:1], *begins, *about.eos_token_ids, 0]
        model = self.captured.model.clone()
        Manager().run(model, [QuantizeWeights(QuantizeWeightsConfig(bits=8)), *backend.lowerings()])
        backend.finish(model)
        steps = rounds(self.count) * (length - 1)
        with (
            self.clock.stage("calibration text", steps) as advance,
            ArtifactWriter(self.scratch / "writes", replace=False) as writer,
        ):
            writer.add_graph("model.onnx", model)
            return generate(
                writer.path / "model.onnx", first[0], about.eos_token_ids, self.count, length,
                seed=self.seed, memory=self.memory, advance=advance,
            )  # fmt: skip

    def prepare(self, job: Job, model: ir.Model) -> None:
        """Gives a job what it needs: what is kept in more bits, and what chooses codes; its report says both."""
        if not job.calibrated:
            return
        windows = self.windows
        about: dict[str, Any] = {
            "method": job.method,
            "calibration": {"text": self.name, "samples": len(windows), "tokens": sum(map(len, windows))},
        }
        job.report["quantization"] = about
        if job.kv_cache is not None:
            caches = [name for each in model.graph.inputs if (name := str(each.name)).startswith("past_key_values.")]
            job.cache_scales = self.walked(
                f"cache-{job.name}", "cache ranges", model, dict[str, NDArray[np.float32]],
                partial(cache_scales, model, self._texts(LOOKS)), lambda found: {name: found[name] for name in caches},
            )  # fmt: skip
        if job.prefill is not None:
            job.report["prefill"] = prefill = {"weights": job.prefill, "calibration": about["calibration"]}
            job.prefill_static = self._activations(job, model, prefill, "prefill", solved=False)
            job.prefill_layers = job.layers  # without those that the budget raises
        if job.budget is not None:
            spend(self, job, model, job.budget, about)
        if job.activations == "int8":
            job.static = self._activations(job, model, about, "activations", solved=job.method == "gptq")
        if job.method == "awq":
            job.scaling = self._scaling(job, model, about)
        if job.method != "rtn":
            texts = self._texts(looks(job))
            job.solve = Solver(
                texts, self.scratch, self.memory, self.clock.stage, about, job.method, self.kept, f"codes-{job.name}"
            )

    def part(self, count: int) -> list[NDArray[np.int64]]:
        """So many of the texts, evenly spread over them."""
        return self.windows[:: max(1, len(self.windows) // count)][:count]

    def _texts(self, count: int) -> list[NDArray[np.int64]]:
        """So many texts of a decoder, and all of an encoder, which are sentences."""
        return self.part(count) if self.captured.task.cached else self.windows

    def _trials(self) -> list[NDArray[np.int64]]:
        """Short texts: the start of one, the middle of others, because what comes first draws massive activations."""
        length, lead = TRIAL // 2, np.asarray(self.lead, np.int64)
        first, *others = self.part(TRIALS)
        middle = [each[len(lead) :][len(lead) - length :] for each in others]
        return [first[:length], *(np.concatenate([lead, each]) for each in middle)]

    def walked(
        self, name: str, stage: str, model: ir.Model, kind: type[T], walk: Callable[..., T],
        read: Callable[[T], T] = lambda found: found, cut: Callable[[ir.Model], Sized] = stages,
    ) -> T:  # fmt: skip
        """What a walk over a text finds, as a stage of progress, or did before an interruption: see `Kept.record`.

        `cut` gives the parts of the graph that the walk takes one after the other.
        """

        def make() -> T:
            with self.clock.stage(stage, len(cut(model))) as advance:
                return walk(self.scratch, memory=self.memory, advance=advance)

        return self.kept.record(name, kind, make, read)

    def _scaling(self, job: Job, model: ir.Model, about: dict[str, Any]) -> SmoothLinears:
        """Chooses which channels of weights get finer codes; `about` is told."""
        form_of = backend_of(job.target).config_of(job).form_of
        found = self.walked(
            f"scaling-{job.name}", "scaling", model, list[Scaling],
            partial(scalings, model, self._texts(LOOKS), form_of), cut=linear_stages,
        )  # fmt: skip
        about["scaling"] = [
            {"path": each.path, "strength": each.strength, "error": round(each.error, 6),
             "unscaled": round(each.unscaled, 6)}
            for each in found
        ]  # fmt: skip
        strengths = tuple((each.path, each.strength) for each in found)
        return SmoothLinears(SmoothLinearsConfig(strengths), {each.path: each.scales for each in found})

    def _activations(
        self, job: Job, model: ir.Model, about: dict[str, Any], name: str, *, solved: bool
    ) -> StaticActivations:  # fmt: skip
        """Chooses how the inputs of linear layers become integers, and which stay as they are; `about` is told.

        `name` tells the graph's steps from another's; `solved` says that GPTQ will choose the codes of the weights.
        """
        symmetric = MODULES[job.target.backend] == MODULES["tensorrt"]
        weights = SOLVED if solved else ROUNDED

        def look(folder: Path, **more: Any) -> list[Choice]:
            return without_layers(
                choices(
                    model, self._texts(LOOKS), job.calibrator, folder, symmetric=symmetric, weights=weights, **more
                )
            )  # fmt: skip

        found = self.walked(
            f"{name}-{job.name}", "activations", model, list[Choice], look, lambda bare: with_layers(bare, model),
            cut=linear_stages,
        )  # fmt: skip
        errors = self.walked(
            f"{name}-divergences-{job.name}", "sensitivity", model, dict[str, float],
            partial(divergences, model, self._trials(), found, paired=None if solved else not symmetric),
            lambda errors: {each.path: errors[each.path] for each in found},
        )  # fmt: skip
        fixed = {path for each in job.layers for path in each.paths}
        kept = {each.path for each in found if any(linear.path in fixed for linear in each.linears)}
        wide: set[str] = set()
        if symmetric:  # TensorRT has integers of 8 bits alone
            kept |= kept_higher(found, errors)
        else:
            wide = widened(found, errors) - kept
        about["activations"] = describe(found, errors, kept, job.calibrator, wide)
        return static_of(found, kept, symmetric=symmetric, wide=wide)
