"""`lepton-edge`: run, measure and check artifacts on a device. `leptonc` offers the same verbs from here."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_edge.cli.app import LazyGroup, Verb, invoke

# Shared with `leptonc`, which adds its own.
VERBS: dict[str, Verb] = {
    "run": Verb("runtime_edge.cli.run:run", "Run a model: answer a prompt, chat, embed or classify a text."),
    "inspect": Verb(
        "runtime_edge.cli.inspect:inspect", "Show what an artifact holds and how good it was measured to be."
    ),
    "verify": Verb("runtime_edge.cli.verify:verify", "Check that an artifact is complete and unchanged."),
    "eval": Verb("runtime_edge.cli.evaluate:evaluate", "Measure a model's perplexity on a text."),
    "bench": Verb("runtime_edge.cli.bench:bench", "Measure a model's speed, load time and memory on this machine."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lepton-edge` and returns its exit code."""
    group = LazyGroup("lepton-edge", VERBS, help="Run Lepton artifacts on this device.")
    return invoke(group, arguments)
