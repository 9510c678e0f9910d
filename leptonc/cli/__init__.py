"""`leptonc`: build artifacts from models; run, measure and check them."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_edge.cli.app import LazyGroup, invoke
from runtime_edge.cli.verbs import VERBS, Verb

_HELP = """Compile a trained transformer into a small, fast artifact for an edge device, and run it.

\b
    leptonc build sample:smollm2-135m --target cpu -o smollm2.lepton
    leptonc run smollm2.lepton "What is edge computing?"
"""

_VERBS = {
    "build": Verb("leptonc.cli.build:build", "Compile a model into an artifact for a target."),
    "sweep": Verb("leptonc.cli.sweep:sweep", "Build a model in several schemes, and compare them."),
    "targets": Verb("leptonc.cli.targets:show_targets", "List the devices that Lepton knows, or show one."),
    **VERBS,
    "pack": Verb("leptonc.cli.pack:pack", "Cut variants out of an artifact, for copying to a device."),
}


def _user_errors() -> tuple[type[BaseException], ...]:
    from runtime_edge.errors import LeptonError
    from targets import TargetError

    return (LeptonError, TargetError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `leptonc` and returns its exit code."""
    group = LazyGroup("leptonc", _VERBS, help=_HELP)
    return invoke(group, arguments, user_errors=_user_errors)
