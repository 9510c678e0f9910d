"""What `bootstrap.py demo` ends with: an answer, what it took, and what to type next.

python -m leptonc.cli.demo ARTIFACT [FOLDER-OF-THE-COMMANDS]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import runtime_edge

QUESTION = "What is edge computing? Answer in two sentences."
FLOAT32 = 4  # bytes of a parameter


def main() -> None:
    """Streams an answer of the artifact, then prints its speed, its size and its loss beside float32."""
    artifact, commands = Path(sys.argv[1]), Path(*sys.argv[2:3])
    report = json.loads((artifact / "report.json").read_text(encoding="utf-8"))
    with runtime_edge.load(artifact) as model:
        print(f"\n> {QUESTION}")
        for chunk in model.stream([{"role": "user", "content": QUESTION}], max_new_tokens=100):
            print(chunk.text, end="", flush=True)
        stats = chunk.stats
        assert stats is not None  # of the last chunk
        parameters = model.manifest.parameters
        size = sum(file.size for file in model.manifest.files)
    fidelity = report["fidelity"]
    ours, reference = fidelity["perplexity"], fidelity["perplexity_reference"]
    print(f"""

speed   {stats.decode_tok_s:.0f} tokens a second on this CPU; the first came after {stats.prefill_s:.2f} s
size    {size / 1e6:.0f} MB; in float32 the model takes {parameters * FLOAT32 / 1e6:.0f} MB
loss    perplexity {100 * (ours / reference - 1):+.1f} % beside float32 ({ours:.2f} and {reference:.2f})
""")
    leptonc = str(commands / "leptonc")
    following = {
        f"{leptonc} run {artifact}": "chat with it",
        f"{artifact / 'report.html'}": "in a browser: what was done, and what it cost",
        f"{leptonc} build sample:smollm2-135m --weights int4": "half the size, in some two minutes",
        f"{leptonc} build MODEL": "your own: a folder, a hub id or a GGUF file",
    }
    width = max(map(len, following))
    for place, (command, meaning) in zip(["next", *[""] * 3], following.items(), strict=True):
        print(f"{place:<8}{command:<{width}}  {meaning}")


if __name__ == "__main__":
    main()
