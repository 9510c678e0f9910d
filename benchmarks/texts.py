#!/usr/bin/env python3
"""Writes the texts that quality is measured on, beside WikiText-2's validation split: to standard output.

    python benchmarks/texts.py code > code.txt                       20 modules of this Python's standard library
    python benchmarks/texts.py code --skip 20 > other-code.txt       the 20 after them
    python benchmarks/texts.py dialogue dialogsum.dev.jsonl > dialogue.txt

Modules are taken in a random order of fixed seed, 8,000 characters of each. Dialogues are the first 50 of DialogSum's
development split (Chen et al. 2021), with names in the place of marks such as `#Person1#`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sysconfig
from pathlib import Path

MODULES, SIZES, CUT, SEED = 20, (8_000, 40_000), slice(2_000, 10_000), 3
DIALOGUES, NAMES, OTHERS = 50, {"#Person1#": "Anna", "#Person2#": "Ben", "#Person3#": "Carla"}, "Mr. Lee"


def code(skip: int) -> str:
    """Returns parts of modules of the standard library, without the first `skip` of the random order."""
    folder = Path(sysconfig.get_path("stdlib"))
    modules = [path for path in sorted(folder.glob("*.py")) if SIZES[0] < path.stat().st_size < SIZES[1]]
    random.Random(SEED).shuffle(modules)
    return "\n\n".join(path.read_text(encoding="utf-8")[CUT] for path in modules[skip : skip + MODULES])


def dialogue(path: Path) -> str:
    """Returns dialogues of a file of DialogSum, which has a JSON object with `dialogue` in each line."""
    lines = path.read_text(encoding="utf-8").splitlines()[:DIALOGUES]
    texts = [json.loads(line)["dialogue"] for line in lines]
    for mark, name in NAMES.items():
        texts = [text.replace(mark, name) for text in texts]
    return "\n\n".join(re.sub(r"#\w+#", OTHERS, text) for text in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("code", "dialogue"))
    parser.add_argument("file", nargs="?", type=Path, help="with `dialogue`: dialogsum.dev.jsonl")
    parser.add_argument("--skip", type=int, default=0, help="with `code`: modules to leave out")
    args = parser.parse_args()
    if args.kind == "dialogue" and args.file is None:
        parser.error("dialogue needs a file of DialogSum")
    print(code(args.skip) if args.kind == "code" else dialogue(args.file), end="")


if __name__ == "__main__":
    main()
