"""Runs pip of this environment, and says in one sentence what was wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec

from leptonc.errors import InputError, MissingExtraError

# What pip says, among other lines, where no index answers.
_UNREACHABLE = re.compile(
    r"Could not fetch URL [^\n]*: (connection error|timed out|There was a problem confirming)|"
    r"Retrying [^\n]* after connection broken"
)
_ABSENT = re.compile(r"No matching distribution found for ([^\s(]+)")


class NoWheelError(InputError):
    """No index has a wheel that fits; `requirement` is what it was wanted for."""

    def __init__(self, message: str, requirement: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.requirement = requirement


def run_pip(*arguments: str, what: str) -> None:
    """Runs pip; nothing is printed.

    Args:
        arguments: Its command and options.
        what: What is wanted of it, for messages: `wheels for Python 3.10 on manylinux_2_35_aarch64`.

    Raises:
        MissingExtraError: There is no pip, or the package index cannot be reached.
        NoWheelError: A wheel is on no index.
        InputError: pip refuses for another reason.
    """
    if find_spec("pip") is None:
        raise MissingExtraError(
            "expected pip in this environment, found none", hint=f"{sys.executable} -m ensurepip --upgrade"
        )
    command = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-color", *arguments)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode == 0:
        return
    told = done.stdout.decode(errors="replace")
    if _UNREACHABLE.search(told):
        raise MissingExtraError(
            f"{what}: expected a package index, found none that answers",
            hint="connect this machine, or name a folder that has the wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER",
        )
    absent = _ABSENT.search(told)
    if absent is not None:
        raise NoWheelError(
            f"{what}: expected a wheel of {absent[1]}, found none that fits",
            absent[1],
            hint="choose another --platform or --python-version, or put a wheel into a folder: PIP_FIND_LINKS=FOLDER",
        )
    errors = [line.removeprefix("ERROR:").strip() for line in told.splitlines() if line.startswith("ERROR:")]
    raise InputError(f"{what}: expected pip to make it, found: {(errors or told.splitlines() or ['nothing said'])[-1]}")
