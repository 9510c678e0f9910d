"""Short distillation: a compressed graph learns the original's outputs, within a budget of time or steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from leptonc.calibrate.store import Store
from leptonc.errors import OVERFLOWS, InputError
from leptonc.heal.budget import Budget
from leptonc.heal.directions import TEXTS, principal
from leptonc.heal.objective import Measured, Objective, Teacher, Window
from leptonc.heal.state import Evaluation, State, fingerprint
from leptonc.heal.trainable import Kind, Parameter, put

HELD_OUT = 8  # one of so many windows is held out for validation; so many at most
AHEAD = 4  # steps whose windows the original runs on together
SAVE_SECONDS = 60.0  # between two checkpoints
PARTS = 1000  # parts in which progress is shown
FIT = 0.25  # largest part of a budget of seconds that goes into a fit before the first step
FIT_COST = 5.0  # time of a window of the fit, in passes of the original over a window


@dataclass(frozen=True)
class Settings:
    """How a student learns.

    Attributes:
        rate: Largest learning rate, in units of a weight's own size.
        warmup: Part of the budget over which the rate rises to it. Afterwards it falls to zero, as half a cosine.
        batch: Windows a step.
        decay: Decay rates of the means of gradients and of their squares (Adam; Kingma and Ba, 2015).
        evaluations: How often, in the budget, the student is measured on the windows that are held out.
        seed: Seed of the order of the windows, and of random starts.
    """

    rate: float = 7e-4
    warmup: float = 0.05
    batch: int = 1
    decay: tuple[float, float] = (0.9, 0.98)
    evaluations: int = 5
    seed: int = 0

    def rate_at(self, progress: float) -> float:
        """Returns the learning rate when a part of the budget, from 0 to 1, is used up."""
        if progress < self.warmup:
            return self.rate * max(progress, 0.1 * self.warmup) / self.warmup
        return self.rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - self.warmup) / (1 - self.warmup))))


@dataclass(frozen=True)
class Healed:
    """Result of healing.

    Attributes:
        arrays: New values of initializers, by name. Empty where nothing was better than the start.
        before: The student on the held-out windows at the start.
        after: The student on the held-out windows with the new values.
        steps: Steps taken, with those before an interruption.
        seconds: Time taken, with the time before an interruption.
        windows: Number of windows that were learned from.
        held_out: Number of windows that were held out.
        fitted: Whether learning began with a fit. A fit that makes the student worse is dropped.
        losses: (step, loss on the held-out windows) of each measurement.
    """

    arrays: dict[str, NDArray[np.float32]]
    before: Measured
    after: Measured
    steps: int
    seconds: float
    windows: int
    held_out: int
    fitted: bool = False
    losses: list[tuple[int, float]] = field(default_factory=list)


class Fit(Protocol):
    """Values of some initializers in closed form, with which learning begins."""

    def count(self, most: int) -> int:
        """Returns the number of windows to fit on, `most` at most. A run that goes on gets the same number."""

    def __call__(self, windows: Sequence[Window]) -> Mapping[str, NDArray[np.float32]]:
        """Returns the values, by initializer."""


class Learner:
    """All learned numbers as one vector, and Adam's means over it."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = parameters
        starts = [part for parameter in parameters for part in parameter.start]
        self._sizes = [part.numel() for part in starts]
        self.state = State.start(torch.cat([part.flatten() for part in starts]))

    def variables(self, learned: Tensor) -> dict[str, Tensor]:
        """Returns the tensors that graphs run with, by name."""
        return {k: v for parameter, parts in self._parts(learned) for k, v in parameter.variables(parts).items()}

    def stored(self, learned: Tensor) -> dict[str, NDArray[np.float32]]:
        """Returns the new values of initializers, as they will be stored."""
        with torch.no_grad():
            return {parameter.name: parameter.stored(parts) for parameter, parts in self._parts(learned)}

    def _parts(self, learned: Tensor) -> list[tuple[Parameter, tuple[Tensor, ...]]]:
        pieces = iter(torch.split(learned, self._sizes))
        return [
            (parameter, tuple(next(pieces).view(part.shape) for part in parameter.start))
            for parameter in self.parameters
        ]

    def step(self, loss: Callable[[Mapping[str, Tensor]], float], rate: float, decay: tuple[float, float]) -> float:
        """Takes one step of Adam. `loss` gets the variables, returns the loss, and adds gradients to the variables.

        Returns the loss before the step. Where it or a gradient is not finite, it returns NaN and changes nothing.
        """
        state = self.state
        learned = state.learned.detach().requires_grad_()
        made = self.variables(learned)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in made.items()}
        before = loss(leaves)
        pairs = [(made[name], leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None]
        torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])
        grad = learned.grad
        if grad is None or not math.isfinite(before) or not bool(torch.isfinite(grad).all()):
            return math.nan
        fast, slow = decay
        state.whole = False
        state.steps += 1
        state.mean.lerp_(grad, 1 - fast)
        state.square.lerp_(grad.square_(), 1 - slow)
        scale = (state.square / (1 - slow**state.steps)).sqrt_().add_(_TINY)
        state.learned.addcdiv_(state.mean, scale, value=-rate / (1 - fast**state.steps))
        state.whole = True
        return before


_TINY = 1e-12  # added to the root of a mean squared gradient, which is small: the loss is a mean over tokens


def require_enough(windows: Sequence[Window]) -> None:
    """Refuses a text that is too short to be split in windows for learning and windows that are held out.

    Raises:
        InputError: There are fewer than two windows.
    """
    if len(windows) < 2:
        raise InputError(
            f"expected at least 2 windows of text to learn from and be judged on, found {len(windows)}",
            hint="a longer --calibration text, or none: the model then writes it",
        )


def heal(
    student: ir.Model, teacher: ir.Model, windows: Sequence[Window], trainable: Mapping[str, Kind], budget: Budget, *,
    folder: Path, memory: int = 2**30, settings: Settings | None = None, resume: Path | None = None,
    fit: Fit | None = None, stage: Callable[[str, int], Any], say: Callable[[str], Any] = lambda _: None,
) -> Healed:  # fmt: skip
    """Teaches a compressed graph the original's outputs.

    The loss is the Kullback-Leibler divergence of the logits. For an encoder it is the squared error of the outputs, as
    a part of their size. One of `HELD_OUT` windows is held out. These windows come from one place of the text, because
    learning from an article helps with the rest of it. The student is measured on them, with its weights as they will
    be stored, and the best of all measured states is returned; the start is one of them. With a budget of steps the
    result is the same each time, on one machine and number of threads.

    Args:
        student: The compressed graph, in the dialect. It is not changed; `leptonc.heal.trainable.put` does that.
        teacher: The original graph.
        windows: Token ids int64 [length] of each text.
        trainable: Kind of each initializer of the student that may change, by name.
        budget: Seconds or steps.
        folder: For temporary files.
        memory: Bytes of the teacher's outputs that are kept in memory. Others wait on disk. Default: 1 GiB.
        settings: How the student learns. Default: `Settings()`.
        resume: A file for checkpoints. An interrupted run leaves it, and the same run goes on from it. Default: none.
        fit: Computes values of some of `trainable` before the first step. It gets at most half of the windows, no more
            than there are steps, and no more than `FIT` of the seconds are enough for. The student does not learn from
            these windows, which the fit knows by heart. Default: learning begins with the student's own values.
        stage: Opens a stage of progress with so many steps.
        say: Called with a line on the progress, from time to time. Default: nothing is called.

    Raises:
        InputError: Nothing can be learned, an operator has no gradients here, there are fewer than two windows, the
            file belongs to another run, or the loss is not finite.
    """
    settings = settings or Settings()
    lost = [name for name in trainable if name not in student.graph.initializers]
    if lost or not trainable:
        raise InputError(
            f"expected weights that healing can change, found {'no ' + lost[0] if lost else 'none'}",
            hint="healing recovers what int4 weights or pruning lost: --weights int4",
        )
    require_enough(windows)
    count = max(1, min(HELD_OUT, len(windows) // HELD_OUT))
    held = list(range(start := (len(windows) - count) // 2, start + count))
    learned_from = [at for at in range(len(windows)) if at not in set(held)]
    started = time.perf_counter()
    original = Teacher(teacher, windows, Store(memory, folder))
    objective = Objective(student, original, windows)
    first: list[Evaluation] = []
    fits: Mapping[str, NDArray[np.float32]] = {}
    if fit is not None and len(learned_from) > 1:
        original.prepare(held)
        seconds = (time.perf_counter() - started) / len(held)
        most = min(len(learned_from) // 2, budget.steps or int(FIT * budget.seconds / (FIT_COST * seconds)))
        if most and (most := fit.count(most)):
            fitted_on = {learned_from[int(at)] for at in np.linspace(0, len(learned_from) - 1, most)}
            first.append(Evaluation(0, _finite(objective.measure(held, {}))))
            values = fit([windows[at] for at in sorted(fitted_on)])
            put(fitted := student.clone(), values)
            again = Objective(fitted, original, windows)
            evaluation = Evaluation(0, again.measure(held, {}))
            if evaluation.measured.loss < first[0].measured.loss:
                first.append(evaluation)
                student, objective, fits = fitted, again, values
                learned_from = [at for at in learned_from if at not in fitted_on]
            else:  # there was too little text, and the fit knows it by heart
                say(f"heal: the fit on {len(fitted_on)} windows is not kept, loss {evaluation.measured.loss:.4g}")
    random = np.random.default_rng(settings.seed)
    few = np.unique(np.linspace(0, len(learned_from) - 1, TEXTS).astype(np.int64))
    kinds = principal(student, [windows[learned_from[at]] for at in few], trainable)
    learner = Learner([kind.of(student.graph.initializers[name], random) for name, kind in kinds.items()])
    if resume is not None:
        learner.state.bind(resume, fingerprint(student, windows, trainable, settings, budget, fits))
    if not learner.state.evaluations:
        learner.state.evaluations += first
        learner.state.seconds = learner.state.fitted = time.perf_counter() - started
    run = _Run(learner, objective, budget, settings, learned_from, held, say)
    with stage("heal", PARTS) as advance:
        return run(advance, fits)


def _finite(measured: Measured) -> Measured:
    if not math.isfinite(measured.loss):
        raise InputError(
            f"expected a finite loss before healing, found {measured.loss}",
            hint=OVERFLOWS,
        )
    return measured


class _Run:
    """The loop of one run; arguments are `heal`'s."""

    def __init__(
        self, learner: Learner, objective: Objective, budget: Budget, settings: Settings, learned_from: list[int],
        held: list[int], say: Callable[[str], Any],
    ) -> None:  # fmt: skip
        self.learner, self.objective, self.budget, self.settings = learner, objective, budget, settings
        self.learned_from, self.held, self.say = learned_from, held, say
        self._shown = 0
        self._longest = [0.0, 0.0]  # seconds of a step, and of a measurement

    def __call__(self, advance: Callable[[int], Any], fits: Mapping[str, NDArray[np.float32]]) -> Healed:
        """Learns, and returns the result; `fits` has the values that were fitted before."""
        state = self.learner.state
        self._since = time.perf_counter() - state.seconds
        try:
            if not state.evaluations:
                self._evaluate()
            self._learn(advance)
        except KeyboardInterrupt:
            if state.whole:
                state.save()
            raise
        first, best = state.evaluations[0], min(state.evaluations, key=lambda evaluation: evaluation.measured.loss)
        arrays = {**fits, **self.learner.stored(state.best)} if best is not first else {}
        state.remove()
        return Healed(
            arrays, first.measured, best.measured, state.steps, round(state.seconds, 1),
            min(len(self.learned_from), state.steps * self.settings.batch), len(self.held),
            bool(fits), [(evaluation.step, evaluation.measured.loss) for evaluation in state.evaluations],
        )  # fmt: skip

    def _learn(self, advance: Callable[[int], Any]) -> None:
        state, settings = self.learner.state, self.settings
        saved = time.perf_counter()
        while (progress := self._progress()) < 1:
            begun = time.perf_counter()
            batch = self._batch(state.steps)
            if not state.steps % AHEAD:
                self.objective.prepare([at for step in range(AHEAD) for at in self._batch(state.steps + step)])

            def loss(variables: Mapping[str, Tensor], batch: list[int] = batch) -> float:
                return sum(self.objective.learn(at, variables, 1 / len(batch)) for at in batch) / len(batch)

            loss_before = self.learner.step(loss, settings.rate_at(progress), settings.decay)
            if not math.isfinite(loss_before):
                raise InputError(
                    f"expected a finite loss while healing, found {loss_before} in step {state.steps + 1}",
                    hint="the weights, or the weights on this text, make float32 overflow: build without --heal",
                )
            now = time.perf_counter()
            self._longest[0] = max(self._longest[0], now - begun)
            state.seconds = now - self._since
            progress = self._progress()
            taken = sum(evaluation.step > 0 for evaluation in state.evaluations)
            if progress >= 1 or progress >= (1 + taken) / settings.evaluations:
                self._evaluate()
                self.say(self._told())
            if now - saved > SAVE_SECONDS:
                state.save()
                saved = now
            done = min(PARTS, int(PARTS * progress))
            advance(done - self._shown)
            self._shown = done
        if state.evaluations[-1].step != state.steps:
            self._evaluate()

    def _progress(self) -> float:
        """Returns the part of the budget that is used up, with the time that the last measurement will take."""
        state, spare = self.learner.state, self._longest[0] / 2 + self._longest[1]
        return self.budget.progress(state.seconds + spare, state.steps, state.fitted)

    def _batch(self, step: int) -> list[int]:
        """Returns the windows of a step. All windows come once, in random order, before they come again in another."""
        count, places = len(self.learned_from), []
        for at in range(step * self.settings.batch, (step + 1) * self.settings.batch):
            order = np.random.default_rng([self.settings.seed, at // count]).permutation(count)
            places.append(self.learned_from[int(order[at % count])])
        return places

    def _evaluate(self) -> None:
        """Measures the student as it would be stored, and keeps its state if it is the best so far."""
        state, begun = self.learner.state, time.perf_counter()
        arrays = self.learner.stored(state.learned) if state.steps else {}
        with torch.no_grad():
            variables = self.learner.variables(state.learned)
            # Parts of a low-rank term are no initializers, and are not rounded.
            variables.update({name: torch.from_numpy(x) for name, x in arrays.items() if name in variables})
        self.objective.prepare(self.held)
        measured = self.objective.measure(self.held, variables)
        if not state.evaluations:
            _finite(measured)
        if not state.evaluations or measured.loss < min(evaluation.measured.loss for evaluation in state.evaluations):
            state.best = state.learned.clone()
        state.evaluations.append(Evaluation(state.steps, measured))
        now = time.perf_counter()
        self._longest[1] = max(self._longest[1], now - begun)
        state.seconds = now - self._since

    def _told(self) -> str:
        state = self.learner.state
        first, last = state.evaluations[0].measured, state.evaluations[-1].measured
        return (
            f"heal: step {state.steps}, {state.seconds:.0f} s, loss {last.loss:.4g} (at the start {first.loss:.4g}) "
            f"on held-out windows"
        )
