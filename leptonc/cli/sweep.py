"""`sweep`: build and measure one model in several schemes."""

from __future__ import annotations

import contextlib
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import click
import msgspec

from leptonc.cli import complete
from leptonc.cli.fields import options_from
from leptonc.errors import require
from leptonc.options import BuildOptions
from leptonc.report.quality import Fidelity
from runtime_edge.cli import options

_PROMPT, _NEW, _BATCH, _REPETITIONS = 512, 64, 32, 4


@click.command()
@click.argument("source", shell_complete=complete.sources)
@click.option(
    "--target", default="cpu", show_default=True, metavar="NAME", shell_complete=complete.target_names,
    help="As for `build`.",
)
@click.option(
    "--schemes",
    default="",
    metavar="NAME,…",
    help="The schemes, with commas between: number formats of weights, auto:SIZE, w8a8 (int8 weights and activations). "
    "`int4,int8,auto:95MB`",
)
@click.option(
    "--recipe", "recipes", multiple=True, metavar="FILE", shell_complete=complete.recipes,
    help="A recipe as one more point. May be given several times.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Directory for artifacts, figures, sweep.html with plots, and all as sweep.json. Points that are there "
    "whole are not built again, so an interrupted sweep goes on.",
)
@options_from(BuildOptions, only=("method", "calibration", "max_seq_len", "seed"), help="As for `build`.")
@click.option(
    "--eval-text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text that perplexity is measured on, in windows as `eval` does.  [default: that of the builds' report]",
)
@click.option(
    "--window", type=click.IntRange(min=2), default=512, show_default=True, metavar="N", help="Tokens in a window."
)
@click.option("--max-windows", type=click.IntRange(min=1), metavar="N", help="Windows to run at most.  [default: all]")
@click.option("--speed", is_flag=True, help="Measure the speed of prefill and decode too, in separate processes.")
@options.threads
@click.option("--page", type=click.Path(path_type=Path), metavar="FILE", help="Write the page with plots to FILE.")
@options.as_json
def sweep(
    source: str,
    target: str,
    schemes: str,
    recipes: tuple[str, ...],
    keep: Path | None,
    eval_text: Path | None,
    window: int,
    max_windows: int | None,
    speed: bool,
    threads: int | None,
    page: Path | None,
    as_json: bool,
    **shared: Any,
) -> None:
    """Build a model in several schemes, and compare them.

    SOURCE is built in each scheme. Size and quality of each are measured, with --speed its speed too. The points
    that no other beats in all of them are marked.

    A point that fails is reported and the others go on; the exit code is the failure's. Loss is the rise of
    perplexity over the scheme fp32, if it is among the schemes, else over the original model on the builds' text.
    """
    import targets
    from runtime_edge.cli.console import StageProgress, print_json, print_table
    from runtime_edge.writing import write_output

    targets.load(target)
    require("torch", extra="compiler", needed_by="leptonc sweep")
    from leptonc.pages.sweep import sweep_page
    from leptonc.sweep import Sweep, lines, mark, points, row

    base = BuildOptions(source, target, **shared)
    wanted = points([name.strip() for name in schemes.split(",") if name.strip()], recipes, base)
    measuring = _Measuring(eval_text, window, max_windows, speed, threads)
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lepton-sweep.")))
        folder.mkdir(parents=True, exist_ok=True)
        records = Sweep(folder, measuring, measuring.how(), StageProgress(animate=not speed)).run(wanted)
    _relative(records)
    mark(records)
    if keep is None:
        records = [{k: v for k, v in record.items() if k != "artifact"} for record in records]
    made = sweep_page(source, target, records, row)
    for place in filter(None, (page, keep and keep / "sweep.html")):
        write_output(place, made)
    result = {"source": source, "target": target, "how": measuring.how(), "points": records}
    if keep is not None:
        import json

        write_output(keep / "sweep.json", (json.dumps(result, indent=2) + "\n").encode())
    if as_json:
        print_json(result)
    else:
        headings, rows = lines(records)
        print_table(headings, rows)
    failed = [record for record in records if "error" in record]
    for record in failed:
        click.echo(f"{record['name']}: {record['error']['message']}", err=True)
        if record["error"]["hint"]:
            click.echo(f"hint: {record['error']['hint']}", err=True)
    if failed:
        raise click.exceptions.Exit(int(failed[0]["error"]["exit_code"]))


def _relative(records: list[dict[str, Any]]) -> None:
    """Gives each point its loss: over the point fp32's perplexity where that was measured, else its own report's."""
    from leptonc.evaluate.bounds import loss

    plain = next((r["perplexity"] for r in records if r["name"] == "fp32" and "perplexity" in r), None)
    for record in records:
        if plain and "perplexity" in record:
            record["loss_percent"] = round(100 * (record["perplexity"] / plain - 1), 3)
        elif record.get("fidelity"):
            record["loss_percent"] = round(loss(msgspec.convert(record["fidelity"], Fidelity))[1], 3)


class _Measuring:
    """What `sweep` measures of an artifact besides what its report has."""

    def __init__(self, text: Path | None, window: int, limit: int | None, speed: bool, threads: int | None) -> None:
        from leptonc.evaluate.text import load_text

        self._content = load_text(text) if text is not None else None
        self._window, self._limit, self._speed, self._threads = window, limit, speed, threads

    def how(self) -> dict[str, Any]:
        """What decides the figures, as JSON has it."""
        from hashlib import sha256

        settings: dict[str, Any] = {"speed": self._speed, "threads": self._threads}
        if self._content is not None:
            text = sha256(self._content.encode()).hexdigest()
            settings |= {"text_sha256": text, "window": self._window, "max_windows": self._limit}
        return settings

    def __call__(self, artifact: Path) -> dict[str, Any]:
        import runtime_edge
        from runtime_edge.cli.bench import measured
        from runtime_edge.cli.perplexity import Windows, perplexity

        figures: dict[str, Any] = {}
        decoder = runtime_edge.verify(artifact).decoder
        if decoder is not None and self._content is not None:
            with runtime_edge.load(artifact, threads=self._threads) as model:
                window = min(self._window, decoder.max_seq_len)
                windows = Windows.of(model.tokenize(self._content), model.tokenize(""), window)
                result = perplexity(model.score, islice(windows, self._limit))
            figures |= {"perplexity": round(result.perplexity, 4), "tokens": result.tokens, "windows": result.windows}
        if self._speed:
            spec: dict[str, Any] = {"artifact": str(artifact), "threads": self._threads, "repetitions": _REPETITIONS}
            spec |= {"new_tokens": _NEW, "prompts": (), "depths": (), "batches": ()}
            if decoder is None:
                figures["texts_s"] = _middle(measured(spec | {"batches": (_BATCH,)})["encode"][0]["texts_s"])
            else:
                depth = max(1, min(_PROMPT, decoder.max_seq_len - _NEW))
                speeds = measured(spec | {"prompts": (min(_PROMPT, decoder.max_seq_len),), "depths": (depth,)})
                figures["prefill_tok_s"] = _middle(speeds["prefill"][0]["tok_s"])
                figures["decode_tok_s"] = _middle(speeds["decode"][0]["tok_s"])
        return figures


def _middle(values: list[float]) -> float:
    from statistics import median

    return round(median(values), 2)
