r"""Records what a person sees in a terminal, as plain text.

    python -m docs.recordings.record docs/recordings/chat.keys --with smollm2.lepton
    python -m docs.recordings.record docs/recordings/build.keys docs/recordings/failure.keys

A file of keys says what is typed into a shell; what was shown is written to a `.txt` beside it. The shell runs in the
folder `models` of a home folder that is made for it; `--with` puts artifacts there. Lines of a file of keys:

    file NAME TEXT    puts a file into the folder, before anything is shown
    type TEXT         types a line and Enter, when there is a prompt
    paste TEXT        pastes text, in which `\\n` begins a new line
    key NAME          presses enter, alt-enter, up, tab, ctrl-c or ctrl-d
    wait TEXT         waits until the text is shown below what was typed
    pause SECONDS     waits
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from tests.runtime_edge.cli.chat.terminal import ALT_ENTER, CTRL_C, CTRL_D, TAB, UP, Terminal

KEYS = {"enter": "\r", "alt-enter": ALT_ENTER, "up": UP, "tab": TAB, "ctrl-c": CTRL_C, "ctrl-d": CTRL_D}
PROMPTS = ("$", "> a message, or /help")
COLUMNS, ROWS = 100, 30
PATIENCE = 900.0  # seconds


def main() -> None:
    """Records the files of keys that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="+", type=Path)
    parser.add_argument("--with", dest="artifacts", nargs="*", type=Path, default=[], metavar="ART")
    arguments = parser.parse_args()
    for path in arguments.keys:
        text = record(path.read_text(encoding="utf-8"), arguments.artifacts)
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def record(keys: str, artifacts: list[Path]) -> str:
    """Returns what is shown while `keys` are typed, with `artifacts` in the folder."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "models"
        folder.mkdir()
        for artifact in artifacts:
            (folder / artifact.name).symlink_to(artifact.resolve())
        steps = [line.partition(" ")[::2] for line in keys.splitlines() if line and not line.startswith("#")]
        for step, argument in steps:
            if step == "file":
                name, _, text = argument.partition(" ")
                (folder / name).write_text(text.replace("\\n", "\n") + "\n", encoding="utf-8")
        variables = {
            "HOME": home, "LEPTON_CACHE": str(Path(home) / "cache"), "PS1": "$ ", "NO_COLOR": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": None,
        }  # fmt: skip
        shell = ["bash", "--norc", "--noprofile", "-i"]
        with Terminal(shell, variables=variables, columns=COLUMNS, rows=ROWS, folder=folder) as terminal:
            typed = ""
            for step, argument in steps:
                play(terminal, step, argument, typed)
                typed = argument if step in ("type", "paste") else typed
            wait_for_prompt(terminal)
            lines = terminal.lines()[:-1]  # the last prompt
        return re.sub(re.escape(home), "~", "\n".join(lines)) + "\n"


def play(terminal: Terminal, step: str, argument: str, typed: str) -> None:
    """Does one step; `typed` is what was typed last."""
    if step == "type":
        wait_for_prompt(terminal)
        terminal.type(argument)
        terminal.wait(lambda shown: "".join(shown.split()).endswith("".join(argument.split())))
        terminal.type("\r")
        pause(terminal, 0.3)
    elif step == "paste":
        wait_for_prompt(terminal)
        terminal.paste(argument.replace("\\n", "\n"))
        pause(terminal, 0.3)
    elif step == "key":
        terminal.type(KEYS[argument])
        pause(terminal, 0.3)
    elif step == "wait":
        terminal.wait(lambda shown: argument in shown.rpartition(typed)[2], PATIENCE)
    elif step == "pause":
        pause(terminal, float(argument))
    elif step != "file":
        raise ValueError(f"no such step: {step}")


def pause(terminal: Terminal, seconds: float) -> None:
    """Reads what is written for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        terminal.read()


def wait_for_prompt(terminal: Terminal) -> None:
    """Waits until the last line is an empty prompt."""
    terminal.wait(lambda shown: shown.rpartition("\n")[2] in PROMPTS, PATIENCE)


if __name__ == "__main__":
    main()
