"""What TensorRT calls while it builds: a log that keeps what matters, and progress that can stop a build.

An exception must not leave a callback: the bindings print it and go on. It is kept, the build is stopped, and the
exception raised when the build has returned.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Called with the phase that is running, and how far the whole build is: steps done of PROGRESS_STEPS.
Progress = Callable[[str, int, int], None]
PROGRESS_STEPS = 1000

_MAX_MESSAGES = 200
_MAX_CHARACTERS = 2000
# What is logged on a machine without a GPU beside every other error.
_NOISE = ("catchCudaError",)


class Advance:
    """A `Progress` that moves a bar of PROGRESS_STEPS steps; `advance` is given the steps done since the last call."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance, self._reached = advance, 0

    def __call__(self, phase: str, done: int, steps: int) -> None:
        self._advance(done - self._reached)
        self._reached = done


class Stop:
    """Whether a build shall end early, and why. Set and read by any thread."""

    def __init__(self) -> None:
        self._reason: BaseException | None = None

    def __bool__(self) -> bool:
        return self._reason is not None

    def request(self, reason: BaseException) -> None:
        """Ends the build; the first reason stands."""
        if self._reason is None:
            self._reason = reason

    def raise_if_requested(self) -> None:
        """Raises the reason."""
        if self._reason is not None:
            raise self._reason


@contextmanager
def stopped_by_signals(stop: Stop) -> Iterator[None]:
    """While the context lasts, Ctrl-C and SIGTERM request a stop, and the end of the context raises it.

    Python raises KeyboardInterrupt in whatever callback runs when the signal arrives, where it would be lost.
    """
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.request(KeyboardInterrupt())

    if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            # A signal that is ignored stays ignored, and one that ends the process may go on doing so.
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    stop.raise_if_requested()


class Log:
    """The errors and warnings of a build, in their order; repeated ones once, and no more than a few hundred."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def add(self, messages: list[str], message: str) -> None:
        """Keeps a message in one of the two lists."""
        text = message.strip()[:_MAX_CHARACTERS]
        if text not in messages and len(messages) < _MAX_MESSAGES:
            messages.append(text)

    def reasons(self) -> str:
        """The errors as one text; what every machine without a GPU logs is left out where there is more."""
        telling = [text for text in self.errors if not any(noise in text for noise in _NOISE)]
        return "; ".join(telling or self.errors) or "no message"


def logger(trt: Any, log: Log) -> Any:
    """Returns an `ILogger` of a flavour's module that writes to `log`, and nothing to stderr."""
    lists = {
        trt.ILogger.INTERNAL_ERROR: log.errors,
        trt.ILogger.ERROR: log.errors,
        trt.ILogger.WARNING: log.warnings,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in lists:
                log.add(lists[severity], msg)

    return Logger()


class Overall:
    """How far a build is, in steps of `PROGRESS_STEPS`, from the phases within phases that TensorRT reports."""

    def __init__(self) -> None:
        self._open: list[tuple[str, int, int]] = []  # the phases that are running, outermost first: name, done, steps
        self._reached = 0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase began within another."""
        self._close_above(parent)
        self._open.append((phase, 0, max(1, steps)))

    def step(self, phase: str, done: int) -> None:
        """So many steps of a phase are done."""
        self._close_above(phase)
        if self._open:
            name, _, steps = self._open[-1]
            self._open[-1] = (name, min(done, steps), steps)

    def finish(self, phase: str) -> None:
        """A phase ended, maybe before all of its steps."""
        self._close_above(phase)
        if self._open:
            self._open.pop()
        if not self._open:
            self._reached = PROGRESS_STEPS

    def _close_above(self, phase: str | None) -> None:
        names = [name for name, _, _ in self._open]
        del self._open[len(names) - names[::-1].index(phase) if phase in names else 0 :]

    def done(self) -> int:
        """Steps done of `PROGRESS_STEPS`; it never falls."""
        share, width = 0.0, 1.0
        for _, done, steps in self._open:
            share += width * done / steps
            width /= steps
        self._reached = max(self._reached, int(share * PROGRESS_STEPS))
        return self._reached


def progress_monitor(trt: Any, progress: Progress | None, stop: Stop) -> Any:
    """Returns an `IProgressMonitor` that reports to `progress`, and ends the build when `stop` says so."""
    overall = Overall()
    lock = threading.Lock()  # several threads of a build may report at once

    def report(phase: str, change: Callable[[], None]) -> None:
        with lock:
            change()
            if progress is None or stop:
                return
            try:
                progress(phase, overall.done(), PROGRESS_STEPS)
            except BaseException as error:  # the application's own, whatever it is; raised after the build
                stop.request(error)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            report(phase_name, lambda: overall.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            report(phase_name, lambda: overall.step(phase_name, step + 1))
            return not stop

        def phase_finish(self, phase_name: str) -> None:
            report(phase_name, lambda: overall.finish(phase_name))

    return Monitor()
