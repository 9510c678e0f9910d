"""`lepton-edge`: run, measure and check artifacts on a device. `leptonc` offers the same verbs from here."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lepton-edge` and returns its exit code."""
    from runtime_edge.cli.app import LazyGroup, invoke
    from runtime_edge.cli.verbs import VERBS

    group = LazyGroup("lepton-edge", VERBS, help="Run, measure and check Lepton artifacts on this device.")
    return invoke(group, arguments)
