"""Fixtures that tests of several packages share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import runtime_edge.ort  # noqa: F401 — before any test imports onnxruntime, which sends events otherwise


class Outcome(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: at the end of a run no worker waits for another's."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds an artifact once a session: `artifact("sample:tiny-llama", weights="fp32")`.

    Options are those of `leptonc.options.BuildOptions`; without `check=True` quality is not measured, and without a
    method codes are rounded. The artifact is shared: tests that change one take a copy.
    """
    built: dict[tuple[Any, ...], Path] = {}

    def build(source: str, **options: Any) -> Path:
        key = (source, *sorted(options.items()))
        if key not in built:
            from leptonc.build.to_artifact import build as run_build
            from leptonc.options import BuildOptions

            out = tmp_path_factory.mktemp("artifact") / "model.lepton"
            built[key] = run_build(BuildOptions(source, out=out, **{"check": False, "method": "rtn", **options})).path
        return built[key]

    return build


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with random weights that was written without the compiler; not to be changed."""
    from tests.runtime_edge import tiny

    root = tmp_path_factory.mktemp("tiny") / "tiny.lepton"
    root.mkdir()
    return tiny.write_decoder(root)


@pytest.fixture
def leptonc(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line `leptonc` in this process: `leptonc("targets", "--json")`."""
    from leptonc.cli import main

    return lambda *arguments: _run(main, arguments, capfd)


@pytest.fixture
def lepton_edge(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line `lepton-edge` in this process."""
    from runtime_edge.cli import main

    return lambda *arguments: _run(main, arguments, capfd)


def _run(
    main: Callable[[Sequence[str]], int], arguments: Sequence[object], capfd: pytest.CaptureFixture[str]
) -> Outcome:
    capfd.readouterr()
    code = main([str(argument) for argument in arguments])
    return Outcome(code, *capfd.readouterr())


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Builds remember what they measured of the machine in a folder of the tests, never in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEPTON_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Programs that are started while SIGINT is ignored, as a shell's background jobs are, ignore it too.

    With a handler here, what the tests start has the default again, and can be interrupted.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
