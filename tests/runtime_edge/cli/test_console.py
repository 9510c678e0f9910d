"""Progress on stderr: a line a stage, or one bar of all stages whose time is foreseen."""

from __future__ import annotations

import time

import pytest

from runtime_edge.cli.console import StageProgress

STAGES = [("text", 30.0), ("check", 8.0)]


def test_elsewhere_there_is_a_line_a_stage_and_the_announcement(capsys: pytest.CaptureFixture[str]) -> None:
    progress = StageProgress()
    with progress.forecast(STAGES):
        for name, _ in STAGES:
            with progress.stage(name, 2) as advance:
                advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "about 38 s: text 30 s, check 8 s"
    assert [line.partition(":")[0] for line in lines[1:]] == ["text", "check"]


def test_a_few_seconds_are_not_announced(capsys: pytest.CaptureFixture[str]) -> None:
    with StageProgress().forecast([("text", 3.0)]):
        pass
    assert capsys.readouterr().err == ""


def test_on_a_terminal_all_stages_share_one_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = StageProgress()
    with progress.forecast(STAGES):
        with progress.stage("a: text", 4) as advance:
            advance(2)
            with progress.stage("of no plan"):
                time.sleep(0.3)  # the bar moves five times a second
            progress.note("a note")
            time.sleep(0.3)
        with progress.stage("check"):
            pass
    shown = capsys.readouterr().err
    assert "about 38 s" in shown
    assert "a: text" in shown
    assert "of no plan" in shown
    assert "a note" in shown
    assert " s left" in shown
    assert "check: 0.0" in shown
    with progress.stage("alone"):  # a bar of its own again
        pass
    assert "alone" in capsys.readouterr().err


def test_what_goes_wrong_in_a_stage_ends_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = StageProgress()
    with pytest.raises(ValueError, match="wrong"), progress.forecast(STAGES), progress.stage("text"):
        raise ValueError("wrong")
    with progress.forecast(STAGES), progress.stage("text", 1) as advance:
        advance(1)


def test_a_line_has_a_stages_own_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("runtime_edge.cli.console.time.perf_counter", lambda: now[0])
    progress = StageProgress(animate=False)
    with progress.stage("passes"):
        now[0] += 1
        with progress.stage("codes"):
            now[0] += 5
        now[0] += 2
    assert capsys.readouterr().err.splitlines() == ["codes: 5.00 s", "passes: 3.00 s"]
