"""The room of a made-up task of two parts: see `tests.leptonc.pair_task`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime_edge.manifest import Manifest
from runtime_edge.records import require
from runtime_edge.tasks.program import Program

METHODS = "task.answer"


def check(manifest: Manifest) -> None:
    names = [part.name for part in manifest.parts]
    require(names == ["encoder", "decoder"], f"parts: expected an encoder and a decoder, found {names}")


def start(manifest: Manifest, sessions: Mapping[str, Any], codec: Any, conversations: int) -> Any:
    return Answering(Program(manifest.parts, sessions), int(manifest.settings["begin"]))


class Answering:
    """Reads once, and writes the likeliest token again and again."""

    def __init__(self, program: Program, begin: int) -> None:
        self.program, self._begin = program, begin

    def answer(self, ids: list[int], count: int) -> list[int]:
        given = np.array([ids])
        known = {"encoder/input_ids": given, "encoder/attention_mask": np.ones_like(given)}
        known |= self.program.run_part("encoder", known)
        written = [self._begin]
        for _ in range(count):
            known["decoder/decoder_input_ids"] = np.array([written])
            known |= self.program.run_part("decoder", known)
            written.append(int(known["decoder/logits"][0, -1].argmax()))
        return written[1:]

    def close(self) -> None:
        self.program.close()
