#!/usr/bin/env python3
"""How far artifacts of one decoder are from the model in float32 on a text, side by side.

    python benchmarks/divergence.py sample:gemma3-270m TEXT ONE.lepton OTHER.lepton [--windows 6] [--tokens 384]

Windows of that many tokens are spread over the text. Prints JSON: of each artifact the mean Kullback-Leibler divergence
from transformers' own float32 forward pass, in nats a token, and its perplexity beside that one's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="of the artifacts, as `leptonc build` takes it")
    parser.add_argument("text", type=Path)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=384)
    args = parser.parse_args()
    import runtime_edge
    from leptonc.evaluate.fidelity import compare_logits
    from leptonc.evaluate.reference import Reference
    from leptonc.frontend.capture import capture
    from leptonc.report.quality import Fidelity
    from leptonc.sources import open_source

    found: dict[str, list[Fidelity]] = {str(path): [] for path in args.artifacts}
    with open_source(args.source) as source:
        reference = Reference(source, capture(source, max_seq_len=args.tokens).task)
        models = {str(path): runtime_edge.load(path) for path in args.artifacts}
        first = next(iter(models.values()))
        ids, lead = first.tokenize(args.text.read_text(encoding="utf-8")), first.tokenize("")
        if args.windows < 1 or len(ids) < args.tokens:
            parser.error(f"expected {args.tokens} tokens of text and a window, found {len(ids)} and {args.windows}")
        step = (len(ids) - args.tokens) // max(1, args.windows - 1)
        for at in range(args.windows):
            window = [*lead, *ids[at * step + (0 if at else len(lead)) :]][: args.tokens]
            blocks = [(start, block.copy()) for start, block in reference.logits(window)]
            for path, model in models.items():
                found[path].append(compare_logits(blocks, model.logits_blocks(window), window))
            print(f"window {at + 1} of {args.windows}", file=sys.stderr)

    def mean(path: str, field: str) -> float:
        return sum(getattr(each, field) for each in found[path]) / args.windows

    def perplexity(path: str, field: str) -> float:
        return math.exp(sum(math.log(getattr(each, field)) for each in found[path]) / args.windows)

    print(
        json.dumps(
            {
                path: {
                    "kl_divergence": round(mean(path, "kl_divergence"), 5),
                    "perplexity": round(perplexity(path, "perplexity"), 3),
                    "perplexity_reference": round(perplexity(path, "perplexity_reference"), 3),
                }
                for path in found
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
