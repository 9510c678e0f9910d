"""Chromium without a window, driven through pipes: pages at any width, in both schemes and in print."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT = 60.0  # seconds for one answer
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip


def found() -> str | None:
    """Returns the browser: `LEPTON_CHROMIUM`, or the first of the usual names that is installed."""
    named = os.environ.get("LEPTON_CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """A page in a browser. Its methods are commands of the DevTools protocol."""

    def __init__(self, to: int, since: int) -> None:
        self._to, self._since, self._numbers = to, since, itertools.count(1)
        self._read = b""
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command, and returns its result."""
        number = next(self._numbers)
        session = {} if self._session is None else {"sessionId": self._session}
        command = json.dumps({"id": number, "method": method, "params": params, **session}).encode() + b"\0"
        while command:
            command = command[os.write(self._to, command) :]
        while (message := self._message()).get("id") != number:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        result: dict[str, Any] = message["result"]
        return result

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._since], [], [], WAIT)
            part = os.read(self._since, 2**20) if ready else b""
            assert part, "the browser does not answer"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    def show(self, page: Path, width: int, *, dark: bool = False, printed: bool = False, height: int = 800) -> None:
        """Opens a page at a width in CSS pixels."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if printed else "screen", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
            pass

    def run(self, script: str) -> Any:
        """Runs a script in the page, and returns the value of its last expression."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def picture(self, height: int | None = None, top: int = 0) -> bytes:
        """Returns a PNG of the page. Default: all of it."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        taken = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(taken["data"])

    def pdf(self) -> bytes:
        """Returns the page as it prints."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])


@contextlib.contextmanager
def browser(program: str) -> Iterator[Browser]:
    """Starts a browser while the context lasts, with a profile of its own."""
    commands, to = os.pipe()
    since, answers = os.pipe()

    def pipes() -> None:  # the browser reads commands from 3 and writes answers to 4
        read, write = os.dup(commands), os.dup(answers)
        os.dup2(read, 3)
        os.dup2(write, 4)

    with tempfile.TemporaryDirectory(prefix="browser.", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *_OPTIONS, f"--user-data-dir={profile}"], preexec_fn=pipes, close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        try:
            yield Browser(to, since)
        finally:
            process.terminate()
            process.wait(WAIT)
            os.close(to)
            os.close(since)
