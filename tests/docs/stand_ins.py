"""What stands in for real models and files while the pages' blocks run: small ones, which take a second or two."""

from __future__ import annotations

import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

# A block's text is changed by these patterns, in this order.
TEXTS = (
    (r"sample:smollm2-135m", "sample:tiny-llama"),
    (r"sample:minilm-l6", "sample:tiny-sentence"),
    (r"sample:gemma3-270m", "sample:tiny-gemma3"),
    (r"\bHuggingFaceTB/SmolLM2-[\w.-]+", "sample:tiny-llama"),
    (r"\bQwen/Qwen3-[\w.-]+", "sample:tiny-qwen3"),
    (r"\bsentence-transformers/[\w.-]+", "sample:tiny-sentence"),
    (r"\bauto:\d+(\.\d+)?MB", "auto:240kB"),
    (r"--heal[ =]\w+", "--heal 2steps"),
    (r"--max-new-tokens[ =]\d+|max_new_tokens=\d+", lambda found: re.sub(r"\d+", "8", found[0])),
    (r"--max-windows[ =]\d+", "--max-windows 2"),
    (r"--repetitions[ =]\d+", "--repetitions 2"),
)

_TEXT = "The valves close when the pressure falls, and a lamp tells the driver which of them did so. "


def _artifact(source: str, **options: object) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        shutil.copytree(_built(source, **options), path)

    return make


@functools.cache
def _built(source: str, **options: object) -> Path:
    from leptonc.build.to_artifact import build
    from leptonc.options import BuildOptions

    out = Path(tempfile.mkdtemp(prefix="lepton-docs.")) / "model.lepton"
    return build(BuildOptions(source, out=out, **{"method": "rtn", **options})).path  # type: ignore[arg-type]


def _text(content: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_text(content, encoding="utf-8")

    return make


def _directory(path: Path) -> None:
    from leptonc.sources import open_source
    from sample_models.export import write_directory

    write_directory(open_source("sample:tiny-llama"), path)


def _gguf(path: Path) -> None:
    from leptonc.sources import open_source
    from tests.leptonc.sources.converter import write_gguf

    write_gguf(open_source("sample:tiny-llama"), path, "llama")


def _reranker(path: Path) -> None:
    from tests.runtime_edge.tiny import write_encoder

    write_encoder(path, labels=("relevance",))


def _json(content: object) -> Callable[[Path], None]:
    return _text(json.dumps(content))


# What is there when a block first names it and no earlier block of the page made it.
FILES: dict[str, Callable[[Path], None]] = {
    "smollm2.lepton": _artifact("sample:tiny-llama"),
    "smollm2-int4.lepton": _artifact("sample:tiny-llama", weights="int4"),
    "minilm.lepton": _artifact("sample:tiny-sentence"),
    "classifier.lepton": _artifact("sample:tiny-bert-classifier"),
    "reranker.lepton": _reranker,
    "my-model": _directory,
    "model.gguf": _gguf,
    "text.txt": _text(_TEXT * 60),
    "unseen.txt": _text(_TEXT * 60),
    "texts.jsonl": _text("".join(json.dumps({"text": _TEXT * 20}) + "\n" for _ in range(8))),
    "messages.json": _json([{"role": "user", "content": "What is edge computing?"}]),
    "tools.json": _json([{"type": "function", "function": {"name": "now", "description": "Tells the time."}}]),
}


def with_stand_ins(text: str) -> str:
    """Returns a block's text with small models and short runs in the place of real ones."""
    for pattern, replacement in TEXTS:
        text = re.sub(pattern, replacement, text)
    return text


def provide(text: str, folder: Path) -> None:
    """Makes the files that a block names and that are not in the page's folder yet."""
    for name, make in FILES.items():
        for named in re.findall(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text):
            if not (folder / named).exists() and not _writes(text, named):
                make(folder / named)


def _writes(text: str, name: str) -> bool:
    """Whether a block's first mention of a file is the place that something is written to."""
    first = re.search(rf"(\S+)?[ =]*(?<![\w.-]){re.escape(name)}(?![\w-])", text)
    return first is not None and first[1] in {"-o", "--out", "--emit", ">"}
