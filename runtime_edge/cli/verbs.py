"""The verbs that `lepton-edge` and `leptonc` share, without importing them."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """A verb: where its click command is (`module:attribute`), and its line in the list of verbs."""

    location: str
    summary: str


VERBS = {
    "run": Verb("runtime_edge.cli.run:run", "Run a model: answer a prompt, chat, embed or classify a text."),
    "inspect": Verb("runtime_edge.cli.inspect:inspect", "Show what an artifact holds and how good it is."),
    "verify": Verb("runtime_edge.cli.verify:verify", "Check that an artifact is complete and unchanged."),
    "finish": Verb(
        "runtime_edge.cli.finish:finish", "Build the TensorRT engine that this device needs, if it is missing."
    ),
    "eval": Verb("runtime_edge.cli.evaluate:evaluate", "Measure a model's perplexity on a text."),
    "bench": Verb("runtime_edge.cli.bench:bench", "Measure a model's speed, load time and memory on this machine."),
    "doctor": Verb("runtime_edge.cli.doctor:doctor", "Show what this machine and this installation can do."),
}
