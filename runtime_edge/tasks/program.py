"""A model of several parts that keep nothing: they run one after the other, each fed by those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_edge.backends import EncoderSession
from runtime_edge.errors import ArtifactError
from runtime_edge.part_record import Part

Arrays = Mapping[str, NDArray[Any]]


class Program:
    """Open parts in the order that they run. Threads may share it.

    Args:
        parts: The parts; each keeps nothing from run to run, and gives one output.
        sessions: A session of each, by its name.

    Raises:
        ArtifactError: A part keeps something, or gives several outputs.
    """

    def __init__(self, parts: Sequence[Part], sessions: Mapping[str, EncoderSession]) -> None:
        for part in parts:
            if part.states or len(part.outputs) != 1:
                raise ArtifactError(f"part {part.name}: expected one output and no states, found others")
        self.parts, self._sessions = tuple(parts), sessions

    def run(self, inputs: Arrays) -> NDArray[np.float32]:
        """Runs all parts once.

        Args:
            inputs: Every input that no part feeds, by `part/input`.

        Returns:
            The last part's output, float32.
        """
        values: dict[str, NDArray[Any]] = dict(inputs)
        for part in self.parts:
            values |= self.run_part(part.name, values)
        return values[f"{self.parts[-1].name}/{self.parts[-1].outputs[0].name}"]

    def run_part(self, name: str, known: Arrays) -> dict[str, NDArray[np.float32]]:
        """Runs one part; what it reads and what it gives is named `part/value`."""
        part = next(part for part in self.parts if part.name == name)
        inputs = {port.name: known[port.source or f"{name}/{port.name}"] for port in part.inputs}
        return {f"{name}/{part.outputs[0].name}": self._sessions[name].run(inputs)}

    def close(self) -> None:
        """Frees what the sessions hold outside of the host's memory."""
        for session in self._sessions.values():
            session.close()
