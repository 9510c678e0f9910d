"""The command lines as a user starts them, in processes of their own."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def start(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


def test_help_answers_at_once() -> None:
    times = []  # of computing: on a busy machine it waits, too
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "leptonc", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert 0 < min(times) < 0.3


def test_both_entry_points_exist() -> None:
    for module, name in (("leptonc", "leptonc"), ("runtime_edge", "lepton-edge")):
        out, err = start(module, "--help").communicate()
        assert out.startswith(f"Usage: {name} [OPTIONS] COMMAND".encode())
        assert err == b""


def test_a_reader_that_leaves_is_no_error() -> None:
    process = start("leptonc", "targets", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=20) == 1
    process.stderr.close()


@pytest.mark.parametrize(("variables", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_on_a_terminal_only_and_not_with_no_color(variables: dict[str, str], is_coloured: bool) -> None:
    reader, terminal = pty.openpty()
    environment = {**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "TERM": "xterm", **variables}
    subprocess.run([sys.executable, "-m", "leptonc", "targets", "nope"], stderr=terminal, env=environment, check=False)
    os.close(terminal)
    said = os.read(reader, 4096)
    os.close(reader)
    assert b"unknown target 'nope'" in said
    assert (b"\x1b[" in said) is is_coloured


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder with room for an answer that takes many seconds, and without a token that ends it."""
    from tests.runtime_edge import tiny

    root = tmp_path_factory.mktemp("endless") / "endless.lepton"
    root.mkdir()
    tiny.write_decoder(root, max_seq_len=2**17)
    manifest = root / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"eos_token_ids": [{tiny.EOS}]', '"eos_token_ids": []'))
    return root


def test_an_interrupted_stream_ends_after_the_token_in_work(endless: Path) -> None:
    process = start("runtime_edge", "run", endless, "hello", "--max-new-tokens", "1000000")
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (first + out).endswith(b"\n")
    assert b"cancelled]" in err
    assert b"Traceback" not in err


def test_an_interrupt_stops_a_chats_answer_and_not_the_chat(endless: Path) -> None:
    keyboard, terminal = pty.openpty()
    process = start("runtime_edge", "run", endless, "--max-new-tokens", "1000000", stdin=terminal)
    os.close(terminal)
    assert process.stdout is not None
    os.write(keyboard, b"hello\n")
    process.stdout.read(1)  # the answer has begun: prompts go to stderr
    process.send_signal(signal.SIGINT)
    os.write(keyboard, b"/exit\n")
    _, err = process.communicate(timeout=20)
    os.close(keyboard)
    assert process.returncode == 0
    assert err.endswith(b"> ")
    assert err.count(b"[stopped]") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_reading(endless: Path, tmp_path: Path, number: signal.Signals) -> None:
    fifo = tmp_path / "text"
    os.mkfifo(fifo)
    process = start("runtime_edge", "eval", endless, "--text", fifo)
    with fifo.open("wb"):  # the process waits for what is written
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip() == b"interrupted"
