"""Measures one artifact in this process, for `bench`: it imports the runtime and nothing else of the command line.

    python -m runtime_edge.cli.measure '{"artifact": …}'

prints one line of JSON on stdout. `bench` starts it anew for each load, so that memory is the runtime's own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

import runtime_edge
from runtime_edge.process import most_resident, resident

if TYPE_CHECKING:
    from runtime_edge.model import Model

# Near the 23 tokens of a mean sentence of the STS benchmark.
_SENTENCE = "Edge computing is a model of computing that brings computation and storage closer to the sources of data."
_MAX_TRIES = 8  # generations that may end early before a decode measurement takes what it has


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Loads `spec["artifact"]` and measures what `spec` asks for.

    Args:
        spec: artifact (path), started (`time.time()` when this process was), threads (or None), repetitions, prompts
            (lengths), depths, new_tokens, batches; empty lists measure loading alone.

    Returns:
        Lists of one number a repetition: seconds, tokens a second, texts a second; memory in bytes.
    """
    start = perf_counter()
    # What is measured of memory is one conversation's: no prompt goes on from another one here.
    with runtime_edge.load(spec["artifact"], threads=spec["threads"], conversations=1) as model:
        figures: dict[str, Any] = {
            "start_s": time() - spec["started"],
            "load_s": perf_counter() - start,
            "rss_after_load": resident(),
            "threads": model.threads,
            "prefill": [{"tokens": n, "tok_s": _prefill(model, n, spec)} for n in spec["prompts"]],
            "decode": [{"depth": n, "tok_s": _decode(model, n, spec)} for n in spec["depths"]],
            "encode": [{"batch": n, "texts_s": _encode(model, n, spec)} for n in spec["batches"]],
        }
    figures["peak_rss"] = most_resident()
    return figures


def _prompts(model: Model, length: int, count: int) -> Iterator[list[int]]:
    """Prompts of random tokens, each with another first token so that none finds a part of itself in the cache."""
    import numpy as np

    assert model.manifest.decoder is not None
    vocabulary = model.manifest.decoder.vocab_size
    chance = np.random.default_rng(length)
    firsts = chance.permutation(vocabulary)
    for index in range(count):
        yield [int(firsts[index % vocabulary]), *chance.integers(0, vocabulary, length - 1).tolist()]


def _prefill(model: Model, length: int, spec: dict[str, Any]) -> list[float]:
    """Tokens a second from the prompt to the first token; the first run warms up and is not counted."""
    prompts = _prompts(model, length, 1 + spec["repetitions"])
    runs = [model.generate(prompt, max_new_tokens=1).stats.prefill_tok_s for prompt in prompts]
    return runs[1:]


def _decode(model: Model, depth: int, spec: dict[str, Any]) -> list[float]:
    """Tokens a second after the first token, behind a prompt of `depth` tokens."""
    wanted = spec["new_tokens"]
    prompts = _prompts(model, depth, _MAX_TRIES * (1 + spec["repetitions"]))
    rates = []
    for _ in range(1 + spec["repetitions"]):
        tokens, seconds = 0, 0.0
        for _ in range(_MAX_TRIES):  # an answer that ends early is followed by another
            stats = model.generate(next(prompts), max_new_tokens=wanted - tokens + 1, drafts=False).stats
            tokens += stats.new_tokens - 1
            seconds += stats.decode_s
            if tokens >= wanted:
                break
        rates.append(tokens / seconds if seconds else 0.0)
    return rates[1:]


def _encode(model: Model, batch: int, spec: dict[str, Any]) -> list[float]:
    from runtime_edge.manifest import TEXT_EMBEDDING

    run = model.encode if model.manifest.task == TEXT_EMBEDDING else model.classify
    texts = [_SENTENCE] * batch
    rates = []
    for _ in range(1 + spec["repetitions"]):
        start = perf_counter()
        count = 0
        while count == 0 or perf_counter() - start < 0.5:  # long enough for the clock
            run(texts, batch_size=batch)
            count += batch
        rates.append(count / (perf_counter() - start))
    return rates[1:]


def main() -> int:
    """Measures what the argument says; a LeptonError becomes JSON too."""
    from runtime_edge.errors import LeptonError

    try:
        result = measure(json.loads(sys.argv[1]))
    except LeptonError as error:
        result = {"error": {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
