"""`eval`: how well a language model predicts a text."""

from __future__ import annotations

import dataclasses
import time
from itertools import islice
from pathlib import Path

import click

from runtime_edge.cli import options
from runtime_edge.cli.app import fail


@click.command("eval")
@options.artifact
@click.option(
    "--text", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Text to measure on, UTF-8."
)
@click.option(
    "--window", type=click.IntRange(min=2), default=512, show_default=True, metavar="N", help="Tokens in a window."
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens from one window's start to the next.  [default: the window]",
)
@click.option("--max-windows", type=click.IntRange(min=1), metavar="N", help="Windows to run at most.  [default: all]")
@options.threads
@options.as_json
def evaluate(
    artifact: Path,
    text: Path,
    window: int,
    stride: int | None,
    max_windows: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure a model's perplexity on a text.

    The text is cut into windows; every token of a window but its first is scored given those before it. What the
    tokenizer puts before every text comes first in each. With a --stride below the window, windows overlap, and each
    token is scored once, with more context.
    """
    import runtime_edge
    from runtime_edge.cli.console import StageProgress, print_json, print_pairs
    from runtime_edge.cli.perplexity import Windows, perplexity
    from runtime_edge.errors import RequestError

    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{text}: expected a text file in UTF-8, found: {error}") from error
    with runtime_edge.load(artifact, threads=threads) as model:
        token_ids = model.tokenize(content)
        windows = Windows.of(token_ids, model.tokenize(""), window, stride)
        if windows.stride > windows.room:
            fail(
                f"--stride: expected at most {windows.room}, what a window has room for, found {stride}: "
                "tokens would be lost"
            )
        count = len(windows)
        if count == 0:
            raise RequestError(f"{text}: expected at least 2 tokens, found {len(token_ids)}")
        count = count if max_windows is None else min(count, max_windows)
        start = time.perf_counter()
        with StageProgress().stage("windows", count) as advance:
            scored = perplexity(model.score, islice(windows, count), advance)
        seconds = time.perf_counter() - start
    record = {**dataclasses.asdict(scored), "window": window, "stride": windows.stride, "seconds": seconds}
    if as_json:
        print_json(record)
    else:
        rows = [("perplexity", f"{scored.perplexity:.4f}"), ("nats a token", f"{scored.nll:.5f}")]
        cut = f"{scored.windows} windows of {window}, stride {windows.stride}"
        rows += [("tokens scored", f"{scored.tokens:,} in {cut}")]
        rows += [("speed", f"{scored.tokens / seconds:,.0f} tok/s")]
        print_pairs(rows)
