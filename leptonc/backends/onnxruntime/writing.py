"""An artifact that answers the prompts of a report's examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import runtime_edge
from leptonc.evaluate.examples import OPENINGS, QUESTIONS
from runtime_edge.errors import ChatTemplateError
from runtime_edge.manifest import Manifest


class ArtifactWriting:
    """See `leptonc.evaluate.examples.Writer`. The artifact is open only while it writes: the original runs between.

    Args:
        path: The artifact.
        manifest: Its manifest.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self.ends = frozenset(manifest.tokenizer.eos_token_ids)
        self._room = manifest.decoder.max_seq_len if manifest.decoder is not None else 0

    def prompts(self) -> tuple[bool, list[str], list[list[int]]]:
        with runtime_edge.load(self._path) as model:
            try:
                messages = [[{"role": "user", "content": question}] for question in QUESTIONS]
                asked = [model.tokenize(message, add_generation_prompt=True) for message in messages]
                asks, names = True, QUESTIONS
            except ChatTemplateError:  # there is none, or it takes no such messages
                asks, names = False, OPENINGS
                asked = [model.tokenize(opening) for opening in names]
        fitting = [(name, ids) for name, ids in zip(names, asked, strict=True) if 0 < len(ids) < self._room]
        return asks, [name for name, _ in fitting], [ids for _, ids in fitting]

    def go_on(self, texts: list[list[int]], most: int) -> list[list[int]]:
        with runtime_edge.load(self._path) as model:
            rooms = [min(most, self._room - len(text)) for text in texts]
            return [
                model.generate(text, max_new_tokens=room).token_ids if room > 0 else []
                for text, room in zip(texts, rooms, strict=True)
            ]

    def text(self, token_ids: Sequence[int]) -> str:
        with runtime_edge.load(self._path) as model:
            return model.detokenize(token_ids)
