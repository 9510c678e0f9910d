"""The command line's frame: help, unknown verbs, and how each kind of error ends."""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from leptonc.cli import _VERBS
from leptonc.errors import BoundError, CaptureError, InputError, MissingExtraError
from runtime_edge.cli.app import LazyGroup, fail, invoke
from runtime_edge.cli.verbs import VERBS, Verb
from runtime_edge.errors import ArtifactError, MissingDependencyError
from targets import TargetError


def test_help_lists_every_verb_with_what_it_does(leptonc: Callable[..., Any]) -> None:
    done = leptonc("--help")
    assert (done.code, done.err) == (0, "")
    listed = re.findall(r"^  (\w+) {2,}(\w.*)$", done.out.partition("Verbs:")[2], re.M)
    assert listed == [(name, verb.summary) for name, verb in _VERBS.items()]


@pytest.mark.parametrize("name", _VERBS)
def test_help_of_a_verb_begins_with_its_summary(leptonc: Callable[..., Any], name: str) -> None:
    done = leptonc(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert " ".join(done.out.split()).startswith(f"Usage: leptonc {name} [OPTIONS]")
    assert _VERBS[name].summary in " ".join(done.out.split())
    assert "--json" in done.out


@pytest.mark.parametrize("verb", _VERBS.values())
def test_a_command_is_called_what_the_list_calls_it(verb: Verb) -> None:
    module, _, attribute = verb.location.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert _VERBS[command.name] is verb


def test_both_command_lines_share_their_verbs(lepton_edge: Callable[..., Any]) -> None:
    assert set(VERBS) < set(_VERBS)
    assert all(f"  {name} " in lepton_edge("--help").out for name in VERBS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["biuld"], "error: no such verb: biuld (did you mean build?)\nhint: try `leptonc --help`\n"),
        (["zzz"], "error: no such verb: zzz (the verbs are build, sweep, targets, run"),
        (["build"], "error: Missing argument 'SOURCE'.\nhint: try `leptonc build --help`\n"),
        (["build", "x", "--wieghts", "int4"], "Did you mean '--weights'?\nhint: try `leptonc build --help`\n"),
        (["build", "x", "--weights", "int5"], "fp16, fp8, int8, int4, int2 or auto:SIZE, found 'int5'"),
        (
            ["build", "x", "--max-loss", "1", "--no-check"],
            "--max-loss needs the measurement that --no-check leaves out",
        ),
        (["run"], "error: Missing argument 'ART'."),
        (["bench", "x", "--json", "--markdown"], "--markdown and --json: expected one of them"),
    ],
)
def test_a_wrong_command_line_exits_2(leptonc: Callable[..., Any], arguments: list[str], message: str) -> None:
    done = leptonc(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_version(leptonc: Callable[..., Any]) -> None:
    from leptonc import __version__

    assert leptonc("--version").out == f"leptonc {__version__}\n"


def _ends(error: BaseException) -> int:
    """Exit code of a command line whose only verb raises `error`."""

    def verb() -> None:
        raise error

    group = LazyGroup("prog", {})
    group.verbs = {"verb": Verb("unused:unused", "Raise.")}
    group.get_command = lambda ctx, name: click.Command("verb", callback=verb)  # type: ignore[method-assign]
    return invoke(group, ["verb"], user_errors=lambda: (InputError.__mro__[1], TargetError))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("a", hint="b"), 1),
        (CaptureError("a", hint="b"), 1),
        (ArtifactError("a", hint="b"), 1),
        (TargetError("a", hint="b"), 1),
        (BoundError("a", hint="b"), 3),
        (MissingExtraError("a", hint="b"), 4),
        (MissingDependencyError("a", hint="b"), 4),
    ],
)
def test_errors_for_the_user_have_a_message_a_hint_and_a_code(
    capfd: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    assert _ends(error) == code
    assert capfd.readouterr() == ("", "error: a\nhint: b\n")


def test_an_error_without_a_hint(capfd: pytest.CaptureFixture[str]) -> None:
    assert _ends(InputError("a")) == 1
    assert capfd.readouterr() == ("", "error: a\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_what_the_system_refuses(capfd: pytest.CaptureFixture[str], number: int) -> None:
    assert _ends(OSError(number, "refused", "out/file")) == 1
    said = capfd.readouterr().err
    assert said.startswith("error: out/file: refused\nhint: ")


def test_too_little_memory(capfd: pytest.CaptureFixture[str]) -> None:
    assert _ends(MemoryError()) == 4
    assert capfd.readouterr().err.startswith("error: not enough memory\nhint: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_is_short(capfd: pytest.CaptureFixture[str], error: BaseException) -> None:
    assert _ends(error) == 130
    out, err = capfd.readouterr()
    assert out == ""
    assert err.strip() == "interrupted"


def test_a_bug_is_called_one_and_its_traceback_is_kept(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert _ends(ZeroDivisionError("by nothing")) == 70
    said = capfd.readouterr().err
    assert said.startswith("error: this is a bug in Lepton: ZeroDivisionError: by nothing\nhint: ")
    assert "Traceback" not in said
    (report,) = tmp_path.glob("lepton-crash-*.txt")
    assert str(report) in said
    assert "Traceback" in report.read_text()
    assert "test_app.py" in report.read_text()


def test_debugging_shows_tracebacks(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_DEBUG", "1")
    assert _ends(InputError("a")) == 1
    assert "Traceback" in capfd.readouterr().err


def test_fail_is_a_usage_error_with_a_hint(capfd: pytest.CaptureFixture[str]) -> None:
    def verb() -> None:
        fail("no", hint="yes")

    group = click.Group("prog", commands={"verb": click.Command("verb", callback=verb)})
    assert invoke(group, ["verb"]) == 2
    assert capfd.readouterr().err == "error: no\nhint: yes\n"
