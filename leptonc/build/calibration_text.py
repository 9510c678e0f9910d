"""The text that a build calibrates on: a file's, or one that a decoder writes beside one that Lepton carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.artifact.writer import ArtifactWriter
from leptonc.calibrate.default_text import fault_of, in_turn, openings
from leptonc.calibrate.generate import Written, generate, rounds
from leptonc.calibrate.stages import stages
from leptonc.calibrate.step_cache import StepCache
from leptonc.calibrate.texts import (
    BUILT_IN,
    built_in_texts,
    read_texts,
    rendered,
    text_windows,
    token_windows,
)
from leptonc.errors import InputError
from leptonc.options import BuildOptions
from leptonc.passes.base import Manager
from leptonc.passes.quantize.weights import QuantizeWeights, QuantizeWeightsConfig
from leptonc.progress import Progress
from leptonc.report.section import CalibrationText
from leptonc.variant import VariantPlan

if TYPE_CHECKING:
    from leptonc.evaluate.measure import Sample
    from leptonc.frontend.capture import Captured

WINDOWS, WINDOW = 32, 512  # texts, and tokens of each
WRITTEN = 0.5  # part of a decoder's texts that it writes itself, where it may
LESSONS = 384  # texts of a file that there are to learn from: more than a short healing comes to
TRIALS, TRIAL = 2, 128  # texts that sensitivities are measured on, and tokens of each
LOOKS = 12  # texts that ranges of activations, and codes of 8 bits, come from: some thousand tokens tell enough
WEIGHING = 40 * 10**7  # bytes: logits of a few texts, and what compares them
T = TypeVar("T")


def texts_for_codes(plan: VariantPlan) -> int:
    """Returns how many texts a variant's codes come from: eight bits leave so little error that fewer tell as much."""
    return LOOKS if plan.scheme == "int8" and plan.budget is None else WINDOWS


def written(count: int) -> int:
    """Returns how many of so many texts a decoder writes itself: none where few are enough, and the rest is carried."""
    return int(WRITTEN * count) if count > LOOKS else 0


def check_text(options: BuildOptions, readers: Mapping[str, bool]) -> None:
    """Refuses a calibration text without a use or that cannot be read, and a chat template without a text.

    Args:
        options: What is asked for.
        readers: The options that make a step read a text, each with whether it is asked for.

    Raises:
        InputError: It is refused.
    """
    if options.calibration is None:
        if options.chat:
            raise InputError("expected a calibration text with --chat, found none", hint="--calibration FILE --chat")
        return
    if not any(readers.values()):
        raise InputError(
            f"expected something that reads a calibration text, one of {', '.join(readers)}, found "
            f"{options.calibration} and none of them",
            hint="--method gptq --calibration FILE",
        )
    read_texts(options.calibration)


@dataclass
class Calibration:
    """The calibration of one build, shared by its variants.

    Attributes:
        captured: The model.
        sample: Its source and tokenizer.
        file: The user's text. None: half of it a decoder writes itself, and half Lepton carries; an encoder gets
            sentences that Lepton carries.
        seed: Of what the model writes.
        memory: Bytes of activations kept in memory.
        scratch: Directory for temporary files.
        clock: Times stages.
        chat: Whether texts of the file become a user's messages.
        count: Texts that there are for a decoder.
        texts: What models wrote, by length and seed, for builds of the same source.
        step_cache: What an interrupted build left, and this one leaves.
    """

    captured: Captured
    sample: Sample
    file: Path | None
    seed: int
    memory: int
    scratch: Path
    clock: Progress
    chat: bool = False
    count: int = WINDOWS
    texts: dict[Any, Written] = field(default_factory=dict)
    step_cache: StepCache = field(default_factory=StepCache)
    name: str = field(init=False, default="")

    @cached_property
    def windows(self) -> list[NDArray[np.int64]]:
        """Token ids int64 [length] of each text."""
        length, tokenizer = min(WINDOW, self.captured.max_seq_len), self.sample.tokenizer
        if not self.captured.interface.writes_text:
            self.name = self.file.name if self.file else "built-in"
            texts = self._read(self.file) if self.file else built_in_texts()
            return text_windows(texts, lambda text: list(tokenizer.encode(text).ids), WINDOWS * 8)
        if self.file is None:
            return self._default(length)
        return self._cut(self.file, self.count)

    @cached_property
    def lessons(self) -> list[NDArray[np.int64]]:
        """Token ids int64 [length] of each text that healing learns from: of a file, more than statistics need."""
        if self.file is None or not self.captured.interface.writes_text:
            return self.windows
        return self._cut(self.file, LESSONS)

    def _cut(self, file: Path, count: int) -> list[NDArray[np.int64]]:
        """So many windows of a file, evenly spread over it."""
        self.name, length = file.name, min(WINDOW, self.captured.max_seq_len)
        return token_windows(self._read(file), self._tokens, count, length, self.lead)

    @property
    def lead(self) -> list[int]:
        """What the tokenizer puts before every text of a decoder: models that know it go astray without."""
        return list(self.sample.tokenizer.encode("").ids) if self.captured.interface.writes_text else []

    @cached_property
    def _template(self) -> Any:
        """The model's chat template; None where it has none."""
        from leptonc.artifact.describe import tokenizer_of
        from runtime_edge.chat import ChatTemplate

        source = self.sample.source
        if source.chat_template is None:
            return None
        return ChatTemplate(source.chat_template, tokenizer_of(source, self.captured).special_tokens)

    def _read(self, file: Path) -> list[str]:
        """The texts of a file; conversations, and all where that is wanted, go through the model's chat template."""
        texts, template = read_texts(file), self._template
        if template is None:
            return rendered(texts, None, chat=self.chat)
        return rendered(texts, lambda messages, answer: template.render(messages, answer=answer), chat=self.chat)

    def _default(self, length: int) -> list[NDArray[np.int64]]:
        """What the model writes and text that Lepton carries, as much of both; the latter alone where it cannot."""
        key, count = (length, self.seed), written(self.count)
        if not count:
            return self._cut(Path(BUILT_IN), self.count)
        if len(self.texts[key].texts if key in self.texts else ()) < count:
            self.texts[key] = Written.of(self.step_cache.arrays("text", lambda: self._written(length, count).arrays()))
        made = self.texts[key]
        fault = fault_of(made, int(self.captured.model.graph.outputs[0].shape[-1]))  # type: ignore[index, arg-type]
        if fault is not None:
            carried = self._cut(Path(BUILT_IN), self.count)
            self.name = f"built-in, because {fault}"
            return carried
        carried = self._cut(Path(BUILT_IN), self.count - count)
        self.name = f"written by the model, seed {self.seed}" + (", and built-in" if carried else "")
        return in_turn(made.texts[:count], carried)

    def _written(self, length: int, count: int) -> Written:
        """Lets the model write, its weights in int8: what it writes is nearly the same, in a third of the time."""
        from leptonc.artifact.describe import tokenizer_of
        from leptonc.backends import host_backend

        backend, (part,) = host_backend(), self.captured.parts.values()
        about = tokenizer_of(self.sample.source, self.captured)
        begins = [] if about.bos_token_id is None else [about.bos_token_id]
        first = [*self.lead[:1], *begins, *about.eos_token_ids, 0]
        begun = openings(self._tokens, first[:1], self.lead, self._question)
        model = self.captured.model.clone()
        Manager().run(model, [QuantizeWeights(QuantizeWeightsConfig(bits=8)), *backend.lowerings()])
        backend.finish(model)
        with (
            self.clock.stage("calibration text", rounds(count) * (length - 1)) as advance,
            ArtifactWriter(self.scratch / "writes", replace=False) as writer,
        ):
            writer.add_graph("model.onnx", model)
            return generate(
                writer.path / "model.onnx", part, begun, about.eos_token_ids, count, length,
                seed=self.seed, memory=self.memory, advance=advance,
            )  # fmt: skip

    def _tokens(self, text: str) -> list[int]:
        return list(self.sample.tokenizer.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _question(self) -> Callable[[str], str] | None:
        """Renders a user's question, up to where the answer begins; None without a template that renders one."""
        from runtime_edge.errors import ChatTemplateError

        def render(question: str) -> str:
            return str(self._template.render([{"role": "user", "content": question}]))

        if self._template is None:
            return None
        try:
            render("?")
        except ChatTemplateError:  # one that needs more than a question: the model is asked nothing
            return None
        return render

    def describe(self) -> CalibrationText:
        """Returns what reports say of the text: its name, and how many texts and tokens there are."""
        windows = self.windows
        return CalibrationText(text=self.name, samples=len(windows), tokens=sum(map(len, windows)))

    def part(self, count: int) -> list[NDArray[np.int64]]:
        """So many of the texts, evenly spread over them."""
        return self.windows[:: max(1, len(self.windows) // count)][:count]

    def texts_for(self, count: int) -> list[NDArray[np.int64]]:
        """So many texts of a decoder, and all of an encoder, which are sentences."""
        return self.part(count) if self.captured.interface.writes_text else self.windows

    def trials(self) -> list[NDArray[np.int64]]:
        """Short texts: the start of one, the middle of others, because what comes first draws massive activations."""
        length, lead = TRIAL // 2, np.asarray(self.lead, np.int64)
        first, *others = self.part(TRIALS)
        middle = [each[len(lead) :][len(lead) - length :] for each in others]
        return [first[:length], *(np.concatenate([lead, each]) for each in middle)]

    def cached_walk(
        self, name: str, stage: str, model: ir.Model, kind: type[T], walk: Callable[..., T],
        read: Callable[[T], T] = lambda found: found, cut: Callable[[ir.Model], Sized] = stages,
    ) -> T:  # fmt: skip
        """Returns what a walk over a text gives, as a stage of progress, or gave before an interruption.

        Args:
            name: Of the step in the cache; see `StepCache.record`, as for `kind` and `read`.
            stage: Of progress.
            model: The graph that the walk runs.
            kind: The type of what the walk returns.
            walk: Called with a directory for temporary files, a bound on memory, and what counts the graph's parts.
            read: Completes what was read from the cache.
            cut: Returns the parts of the graph that the walk takes one after the other. Default: its layers.
        """

        def make() -> T:
            with self.clock.stage(stage, len(cut(model))) as advance:
                return walk(self.scratch, memory=self.memory, advance=advance)

        return self.step_cache.record(name, kind, make, read)
