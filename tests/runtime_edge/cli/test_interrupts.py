"""Ctrl-C ends a verb, also where a library swallowed it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from runtime_edge.cli import interrupts
from runtime_edge.cli.app import BUG, INTERRUPTED, invoke
from runtime_edge.cli.console import StageProgress

ROOT = Path(__file__).parent.parent.parent.parent


def swallowed(number: int) -> None:
    """What a destructor or `except BaseException` does to it."""
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("no signal came")


def at_the_end(progress: StageProgress, number: int) -> None:
    with progress.stage("capture"):
        swallowed(number)
    raise AssertionError("the stage went on")


def as_it_advances(progress: StageProgress, number: int) -> None:
    with progress.stage("passes", 2) as advance:
        swallowed(number)
        advance(1)
        raise AssertionError("the stage went on")


def before_the_next(progress: StageProgress, number: int) -> None:
    swallowed(number)
    with progress.stage("passes"):
        raise AssertionError("the next stage began")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("work", [at_the_end, as_it_advances, before_the_next])
def test_what_was_swallowed_is_raised_again(work: Callable[[StageProgress, int], None], number: int) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        verb = click.Command("verb", callback=lambda: work(StageProgress(animate=False), number))
        assert invoke(click.Group("program", {"verb": verb}), ["verb"]) == INTERRUPTED
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        interrupts.check()  # it is over with the verb
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_file_that_ends_too_early_is_no_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    """Click makes an abort of an EOFError too, for it takes one for a Ctrl-D."""

    def read() -> None:
        raise EOFError("read past the end")

    group = click.Group("program", {"verb": click.Command("verb", callback=read)})
    assert invoke(group, ["verb"]) == BUG
    assert "EOFError: read past the end" in capsys.readouterr().err


def test_a_second_signal_ends_the_process() -> None:
    program = """
import os, signal, sys
from runtime_edge.cli.interrupts import remembered
signal.signal(signal.SIGINT, signal.default_int_handler)
with remembered():
    for _ in range(2):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException:
            print("swallowed", flush=True)
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "swallowed\n")


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.remembered():
            os.kill(os.getpid(), signal.SIGINT)
            interrupts.check()
    finally:
        signal.signal(signal.SIGINT, before)
