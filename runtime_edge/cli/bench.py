"""`bench`: speed, load time and memory on this machine, measured in processes that hold nothing but the runtime."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from runtime_edge.cli import machine, options
from runtime_edge.cli.app import fail

_PROMPTS = (32, 128, 512, 1024)
_DEPTHS = (32, 512, 1024)
_BATCHES = (1, 8, 32)
_NEW_TOKENS = 64
_INCLUDES = (
    "start: from starting a process until the model is loaded in it, Python and all imports included",
    "load: of that, `load()`: every sha256, the tokenizer, the backend and its session; the files were read before",
    "prefill: prompt to first token, sampling and detokenizing included, nothing cached; greedy",
    "decode: tokens after the first behind a prompt of that depth, one sequence, no drafts; otherwise as prefill",
    "encode: texts of about 20 tokens, tokenizing included",
    "memory: of a process that runs this runtime and nothing else; after loading, and its peak over all measurements",
)


def _lengths(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"expected whole numbers above 0 with commas between, found {value!r}", ctx, param)
    return tuple(int(part) for part in parts)


@click.command()
@options.artifact
@click.option(
    "--prompts",
    callback=_lengths,
    metavar="N,…",
    help="Prompt lengths, in tokens, that prefill is measured at.  [default: 32…1024]",
)
@click.option(
    "--depths",
    callback=_lengths,
    metavar="N,…",
    help="Tokens in the cache before decode is measured.  [default: 32…1024]",
)
@click.option("--new-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens to decode.  [default: 64]")
@click.option(
    "--batches", callback=_lengths, metavar="N,…", help="Batch sizes that encoders are measured at.  [default: 1,8,32]"
)
@click.option(
    "--repetitions",
    type=click.IntRange(min=2),
    default=4,
    show_default=True,
    metavar="N",
    help="Repetitions of each measurement.",
)
@options.threads
@click.option("--markdown", is_flag=True, help="Print a Markdown table to paste.")
@options.as_json
def bench(
    artifact: Path,
    prompts: tuple[int, ...] | None,
    depths: tuple[int, ...] | None,
    new_tokens: int | None,
    batches: tuple[int, ...] | None,
    repetitions: int,
    threads: int | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Measure a model's speed, load time and memory on this machine.

    Each figure is the mean of the repetitions ± their standard deviation. What it includes is printed below the table.
    """
    from runtime_edge.cli.console import StageProgress, print_json, print_table
    from runtime_edge.verify import read_manifest

    if markdown and as_json:
        fail("--markdown and --json: expected one of them")
    manifest = read_manifest(artifact)
    alone: dict[str, Any] = {"artifact": str(artifact), "threads": threads, "repetitions": repetitions}
    alone |= {"new_tokens": new_tokens or _NEW_TOKENS, "prompts": (), "depths": (), "batches": ()}
    spec = alone | {"batches": batches or _BATCHES}
    if manifest.decoder is not None:
        longest = manifest.decoder.max_seq_len
        lengths = _fitting("--prompts", prompts, _PROMPTS, longest)
        new = _new_tokens(new_tokens, depths, longest)
        spec = alone | {"new_tokens": new, "prompts": lengths}
        spec["depths"] = _fitting("--depths", depths, _DEPTHS, longest - new)
    progress = StageProgress(animate=False)
    loads = []
    with progress.stage("load", repetitions) as advance:
        for _ in range(repetitions):
            loads.append(measured(alone))
            advance(1)
    with progress.stage("speed"):
        speeds = measured(spec)
    record = _record(manifest, loads, speeds, spec)
    if as_json:
        print_json(record)
    elif markdown:
        click.echo("| measurement | mean | ± | |\n| --- | ---: | ---: | --- |")
        for row in _rows(record):
            click.echo(f"| {' | '.join(row)} |")
    else:
        print_table(("measurement", "mean", "±", ""), _rows(record), numbers_from=1)
    if not as_json:
        click.echo()
        click.echo(f"{record['model']}, {record['variant']}, {record['threads']} threads, {record['machine']}")
        for line in record["includes"]:
            click.echo(f"- {line}")


def _new_tokens(given: int | None, depths: Sequence[int] | None, longest: int) -> int:
    """How many tokens are decoded: those asked for, or 64, or as many as a short context has room for."""
    from runtime_edge.errors import PromptTooLongError

    least = max(depths) if depths is not None else 1
    if longest < 2:
        raise PromptTooLongError(
            f"expected a model of at least 2 tokens to measure, found one of {longest}",
            hint="build it with a larger --max-seq-len",
        )
    if given is not None and depths is None and given >= longest:
        raise PromptTooLongError(
            f"--new-tokens: expected fewer than the {longest} tokens that this model takes, found {given}"
        )
    return given if given is not None else max(1, min(_NEW_TOKENS, longest // 2, longest - least))


def _fitting(option: str, given: Sequence[int] | None, usual: Sequence[int], most: int) -> tuple[int, ...]:
    """The lengths asked for, or those usual ones that the model has room for."""
    from runtime_edge.errors import PromptTooLongError

    lengths = given if given is not None else [length for length in usual if length <= most] or [most]
    if max(lengths) > most:
        raise PromptTooLongError(
            f"{option}: expected at most {max(most, 0)} tokens for this model, found {max(lengths)}"
        )
    return tuple(lengths)


def measured(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs `measure` in a process of its own."""
    from runtime_edge.errors import LeptonError

    command = [sys.executable, "-m", "runtime_edge.cli.measure", json.dumps({**spec, "started": time.time()})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        # Its traceback is on stderr, above.
        raise subprocess.CalledProcessError(done.returncode, command)
    result: dict[str, Any] = json.loads(done.stdout)
    if "error" in result:
        error = LeptonError(result["error"]["message"], hint=result["error"]["hint"])
        error.exit_code = result["error"]["exit_code"]
        raise error
    return result


def _record(manifest: Any, loads: list[dict[str, Any]], speeds: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    variant = manifest.variants[0]
    kinds = ("start", "load", "memory", *(kind for kind in ("prefill", "decode", "encode") if speeds[kind]))
    return {
        "model": manifest.name,
        "variant": f"{variant.target}, {variant.backend}, weights {variant.weights}",
        "machine": f"{platform.machine()}, {machine.processor()}",
        "versions": {name: version for name in ("numpy", "onnxruntime") if (version := machine.version(name))},
        "threads": speeds["threads"],
        "repetitions": spec["repetitions"],
        "new_tokens": spec["new_tokens"],
        "start_s": _summary([load["start_s"] for load in loads]),
        "load_s": _summary([load["load_s"] for load in loads]),
        **_memory(loads, speeds),
        "prefill": [{**item, "tok_s": _summary(item["tok_s"])} for item in speeds["prefill"]],
        "decode": [{**item, "tok_s": _summary(item["tok_s"])} for item in speeds["decode"]],
        "encode": [{**item, "texts_s": _summary(item["texts_s"])} for item in speeds["encode"]],
        "includes": [line for line in _INCLUDES if line.partition(":")[0] in kinds],
    }


def _memory(loads: list[dict[str, Any]], speeds: dict[str, Any]) -> dict[str, Any]:
    """Megabytes after loading and at most; nothing where the system does not say, as Windows does not."""
    if speeds["peak_rss"] is None:
        return {}
    return {
        "rss_after_load_mb": _summary([load["rss_after_load"] / 1e6 for load in loads]),
        "peak_rss_mb": speeds["peak_rss"] / 1e6,
    }


def _summary(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values), "values": values}


def _rows(record: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    def row(name: str, summary: dict[str, Any], unit: str, digits: int) -> tuple[str, str, str, str]:
        return name, f"{summary['mean']:,.{digits}f}", f"{summary['deviation']:,.{digits}f}", unit

    yield row("start", record["start_s"], "s", 3)
    yield row("load", record["load_s"], "s", 3)
    if "peak_rss_mb" in record:
        yield row("memory after load", record["rss_after_load_mb"], "MB", 0)
        yield "memory at most", f"{record['peak_rss_mb']:,.0f}", "", "MB"
    for item in record["prefill"]:
        yield row(f"prefill {item['tokens']}", item["tok_s"], "tok/s", 1)
    for item in record["decode"]:
        yield row(f"decode at {item['depth']}", item["tok_s"], "tok/s", 1)
    for item in record["encode"]:
        yield row(f"encode, batch {item['batch']}", item["texts_s"], "texts/s", 1)
