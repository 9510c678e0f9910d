"""`build`: compile a model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from leptonc.errors import require
from leptonc.formats import FORMATS
from runtime_edge.cli import options

_METHODS = ("rtn", "gptq", "awq")
_ACTIVATIONS = ("none", "int8")
_CALIBRATORS = ("minmax", "percentile", "entropy", "mse", "search")
_PRUNE_METHODS = ("reconstruction", "magnitude", "wanda", "flap", "taylor", "sparsegpt")
_PRUNE_ALLOCATIONS = ("uniform", "global")
_PRUNE_COMPENSATIONS = ("none", "bias", "least-squares", "sequential")
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



class Weights(click.ParamType):  # type: ignore[type-arg]
    """A number format, or auto:SIZE, which the build reads."""

    name = "weights"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(FORMATS)}|auto:SIZE]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in FORMATS and not value.startswith("auto"):
            self.fail(f"expected one of {', '.join(FORMATS)} or auto:SIZE, found {value!r}", param, ctx)
        return value


class Percent(click.ParamType):  # type: ignore[type-arg]
    """A number of percent, its sign written or not."""

    name = "percent"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "PCT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = click.FLOAT(str(value).strip().removesuffix("%"), param, ctx)
        if not found >= 0:
            self.fail(f"expected a number of 0 or more, found {value}", param, ctx)
        return float(found)


@click.command()
@click.argument("source")
@click.option(
    "--target",
    multiple=True,
    default=("cpu",),
    show_default=True,
    metavar="NAME",
    help="Device to compile for, with changes behind it: `jetson-orin,memory_gb=8`. See `leptonc targets`. Given "
    "several times, the artifact holds a variant for each.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="OUT", help="Artifact to write.  [default: NAME.lepton]"
)
@click.option(
    "--weights",
    type=Weights(),
    help="Number format of the weights; `auto:95MB` has 4 bits, and 8 where they help most within that size "
    "of graph and weights.  [default: the target's]",
)
@click.option(
    "--activations",
    type=click.Choice(_ACTIVATIONS),
    default="none",
    show_default=True,
    help="Number format of what linear layers read; int8, with --weights int8, takes its scales from a calibration "
    "text.",
)
@click.option(
    "--calibrator",
    type=click.Choice(_CALIBRATORS),
    default="search",
    show_default=True,
    help="What chooses the ranges of int8 activations, from what the model makes of the calibration text; search tries "
    "minmax, percentile and mse on the outputs of each layer.",
)
@click.option(
    "--prefill",
    type=click.Choice(("int8", "shared")),
    help="Add a second graph with 8-bit weights and activations that prompts go through, faster: int8 stores its "
    "weights too, as large again; shared makes them from the others as the artifact is opened.",
)
@click.option(
    "--kv-cache",
    type=click.Choice(("int8",)),
    help="Keep keys and values as 8-bit integers, with scales from a calibration text: a quarter of the memory.  "
    "[default: float]",
)
@click.option(
    "--block-size",
    type=click.Choice(("16", "32", "64", "128", "256")),
    help="Weights that share one scale, for integers.  [default: the backend's: 32 for ONNX Runtime]",
)
@click.option(
    "--symmetric/--asymmetric",
    default=None,
    help="Quantize weights without or with zero points.  [default: without; with auto: with]",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    help="How codes are chosen for integers: round to nearest; GPTQ, which keeps what the layers make of a "
    "text; or AWQ, which gives finer codes to channels that a text sends most through.  [default: rtn; with auto or "
    "--activations int8: gptq]",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text like what the model will read, .txt or .jsonl, for --method gptq, --weights auto, --activations int8 "
    "and --heal.  [default: one that the model writes itself; for an encoder, one that Lepton carries]",
)
@click.option(
    "--rotate",
    is_flag=True,
    help="Give a decoder's residual stream a random basis, folded into the weights, before they are quantized: what is "
    "stored has no outliers then. See docs/quantization.md.",
)
@click.option(
    "--chat",
    is_flag=True,
    help="Put each text of --calibration into the model's chat template, as what a user says. (Lines of a .jsonl that "
    "have `messages` are always rendered with it.)",
)
@click.option(
    "--heal",
    metavar="TIME",
    help="Let the quantized model learn from the original on the calibration text for so long (10min, 30s, 1h) or so "
    "many steps (200steps): scales, zero points, gains and biases change, codes and the size do not.",
)
@click.option(
    "--heal-rank",
    metavar="RANK|full",
    help="Of what --heal adds to each weight of a pruned model in float32; `full` lets every weight learn, which takes "
    "more memory.  [default: 16]",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep there what long steps (calibration, --prune, --heal) made: after an interruption the same command goes "
    "on from it.",
)
@click.option(
    "--embeddings",
    type=click.Choice(("int8", "int4")),
    help="Number format of the embedding and a head tied to it.  [default: that of --weights]",
)
@click.option(
    "--memory-gb",
    type=click.FloatRange(min=0),
    metavar="GB",
    help="Memory that the build may take; activations that it has no room for wait on disk.  [default: what it takes, "
    "with up to 0.5 GB of activations]",
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of context to provide for.  [default: the target's, at most the model's]",
)
@click.option(
    "--max-loss",
    type=Percent(),
    help="Fail, with exit code 3 and nothing at OUT, where quality falls by more than PCT percent (3 or 3%).",
)
@click.option(
    "--prune",
    metavar="SPEC",
    help="Cut heads, channels and blocks out of the model: `25%` of its layers' weights, what saves `latency:30%` of "
    "its time on this machine, `layers:4`, or a plan.json; `width:10%` of a decoder's residual stream; or `2:4`, two "
    "weights of each four zero, for sparse tensor cores. See docs/pruning.md.",
)
@click.option(
    "--prune-method",
    type=click.Choice(_PRUNE_METHODS),
    help="How what goes is chosen; for 2:4 sparsegpt or magnitude.  [default: reconstruction, sparsegpt for 2:4]",
)
@click.option(
    "--prune-compensation",
    type=click.Choice(_PRUNE_COMPENSATIONS),
    help="What makes up for it in the weights that stay.  [default: least-squares, none for a plan]",
)
@click.option(
    "--prune-allocation",
    type=click.Choice(_PRUNE_ALLOCATIONS),
    help="Whether magnitude, wanda and flap cut as much of every block, or what matters least anywhere.  [default: "
    "uniform; with flap: global]",
)
@click.option(
    "--emit",
    type=click.Choice(("onnx",)),
    help="Write the captured model, after --prune and --heal, as a float32 ONNX graph with all that comes with it, "
    "instead of an artifact: a directory that `build` takes as SOURCE.",
)
@click.option(
    "--eval-text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text that quality is measured on.  [default: one that Lepton carries]",
)
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Measure the artifact against the original model."
)
@click.option(
    "--recipe",
    metavar="FILE",
    help="A .toml file that says the same and more, with exceptions for single layers, or the name of a shipped one; "
    "options given beside it stand above it.",
)
@options.seed
@click.option(
    "--dump-ir", type=click.Path(path_type=Path), metavar="DIR", help="Write the graph after each pass to DIR."
)
@click.option("--force", is_flag=True, help="Replace an artifact that is already at OUT.")
@options.as_json
def build(
    source: str,
    target: tuple[str, ...],
    out: Path | None,
    weights: str | None,
    activations: str,
    calibrator: str,
    kv_cache: str | None,
    prefill: str | None,
    block_size: str | None,
    symmetric: bool | None,
    method: str | None,
    calibration: Path | None,
    chat: bool,
    rotate: bool,
    heal: str | None,
    heal_rank: str | None,
    resume: Path | None,
    embeddings: str | None,
    memory_gb: float | None,
    max_seq_len: int | None,
    max_loss: float | None,
    eval_text: Path | None,
    prune: str | None,
    prune_method: str | None,
    prune_compensation: str | None,
    prune_allocation: str | None,
    emit: str | None,
    check: bool,
    recipe: str | None,
    seed: int,
    dump_ir: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compile a model into an artifact for a target.

    SOURCE is a directory with a Hugging Face model or one that --emit wrote, the name of a model on the hub, a .gguf
    file, or sample:NAME.
    """
    import targets
    from leptonc.cli.summary import summary
    from runtime_edge.cli.console import StageProgress, print_json, print_pairs

    if max_loss is not None and not check:
        raise click.UsageError("--max-loss needs the measurement that --no-check leaves out")
    for spec in target:
        targets.load(spec)
    for module in _NEEDED:
        if find_spec(module) is None:
            require(module, extra="compiler", needed_by="leptonc build")
    from leptonc.build.recipe import with_recipe
    from leptonc.build.to_artifact import build as run_build
    from leptonc.memory import collect_seldom
    from leptonc.options import BuildOptions

    wanted = with_recipe(
        BuildOptions(
            source=source,
            target=target if len(target) > 1 else target[0],
            out=out,
            weights=weights,
            activations=activations,
            calibrator=calibrator,
            kv_cache=kv_cache,
            prefill=prefill,
            block_size=None if block_size is None else int(block_size),
            symmetric=symmetric,
            method=method,
            calibration=calibration,
            chat=chat,
            rotate=rotate,
            heal=heal,
            heal_rank=heal_rank,
            resume=resume,
            embeddings=embeddings,
            memory_gb=memory_gb,
            max_seq_len=max_seq_len,
            max_loss=max_loss,
            seed=seed,
            dump_ir=dump_ir,
            eval_text=eval_text,
            prune=prune,
            prune_method=prune_method,
            prune_compensation=prune_compensation,
            prune_allocation=prune_allocation,
            check=check,
            force=force,
        ),
        recipe,
        given=options.given(),
    )
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
            }
        )
        return
    print_pairs(summary(result))


def _emit(wanted: Any, as_json: bool) -> None:
    from leptonc.build.to_onnx import emit
    from leptonc.cli.summary import facts, pruned
    from runtime_edge.cli.console import StageProgress, megabytes, print_json, print_pairs

    result = emit(wanted, progress=StageProgress())
    report = result.report
    if as_json:
        print_json({"path": str(result.path), "about": result.about, "report": report, "seconds": result.seconds})
        return
    rows = [("graph", str(result.path)), ("size", megabytes(sum(report["bytes"].values()))), *pruned(report)]
    rows += [("recovery", facts(report["recovery"]))] if "recovery" in report else []
    rows += [(f"  {name.replace('_', ' ')}", str(value)) for name, value in report.get("fidelity", {}).items()]
    print_pairs([*rows, ("time", f"{sum(result.seconds.values()):.1f} s")])
