"""`build`: compile a model."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import click

from leptonc.cli import complete
from leptonc.cli.fields import options_from
from leptonc.errors import require
from leptonc.options import BUILT, BuildOptions
from runtime_edge.cli import options

_NEEDED = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "ml_dtypes",
    "safetensors",
    "huggingface_hub",
    "gguf",
    "onnxruntime",
)


@click.command(cls=options.GroupedCommand)
@click.argument("source", shell_complete=complete.sources)
@options_from(BuildOptions)
@click.option(
    "--emit",
    cls=options.GroupedOption,
    group=BUILT,
    type=click.Choice(("onnx",)),
    help="Write the captured model, after --prune and --heal, as a float32 ONNX graph with all that comes with it, "
    "instead of an artifact: a directory, NAME-onnx without -o, that `build` takes as SOURCE.",
)
@click.option(
    "--recipe",
    shell_complete=complete.recipes,
    cls=options.GroupedOption,
    group=BUILT,
    metavar="FILE",
    help="A .toml file with values of these options and exceptions for single layers, or the name of a shipped recipe. "
    "An option on the command line overrides the recipe's value.",
)
@options.as_json
def build(emit: str | None, recipe: str | None, as_json: bool, **values: Any) -> None:
    """Compile a model into an artifact for a target.

    SOURCE is a directory with a Hugging Face model or one that --emit wrote, the name of a model on the hub, a .gguf
    file, or sample:NAME.

    How long it will take is said on stderr once the model is captured.
    """
    import targets
    from leptonc.cli.summary import summary
    from runtime_edge.cli.console import StageProgress, print_json, print_pairs

    asked = BuildOptions(**values)
    if asked.max_loss is not None and not asked.check:
        raise click.UsageError("--max-loss needs the measurement that --no-check leaves out")
    for spec in asked.targets:
        targets.load(spec)
    for module in _NEEDED:
        if find_spec(module) is None:
            require(module, extra="compiler", needed_by="leptonc build")
    from leptonc.build.recipe import with_recipe
    from leptonc.build.to_artifact import build as run_build
    from leptonc.cli.better import better
    from leptonc.memory import collect_seldom

    wanted = with_recipe(asked, recipe, given=options.given())
    collect_seldom()
    if emit is not None:
        _emit(wanted, as_json)
        return
    result = run_build(wanted, progress=StageProgress())
    if as_json:
        print_json(
            {
                "path": str(result.path),
                "manifest": result.manifest,
                "report": result.report,
                "seconds": result.seconds,
                "estimated_seconds": result.estimated_seconds,
                "better": better(result, wanted),
            }
        )
        return
    print_pairs([*summary(result), *(("better", line) for line in better(result, wanted))])


def _emit(wanted: BuildOptions, as_json: bool) -> None:
    from leptonc.build.to_onnx import emit
    from leptonc.cli.summary import facts, figures, pruned
    from runtime_edge.cli.console import StageProgress, megabytes, print_json, print_pairs

    result = emit(wanted, progress=StageProgress())
    report = result.report
    if as_json:
        times = {"seconds": result.seconds, "estimated_seconds": result.estimated_seconds}
        print_json({"path": str(result.path), "about": result.about, "report": report, **times})
        return
    rows = [("graph", str(result.path)), ("size", megabytes(report.bytes.total if report.bytes else 0))]
    rows += pruned(report)
    rows += [("recovery", facts(report.recovery))] if report.recovery is not None else []
    print_pairs([*rows, *figures(report.fidelity), ("time", f"{result.total_seconds:.1f} s")])
