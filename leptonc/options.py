"""What a build is asked for: one dataclass whose fields are the command line's options and a recipe's fields too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from leptonc.formats import FORMATS
from leptonc.passes.quantize.methods import METHODS

_KEY = "option"  # of a field's metadata

# Headings of the help, in its order.
BUILT = "What is built"
WEIGHTS = "Weights"
ACTIVATIONS = "Activations and cache"
CALIBRATION = "Calibration text"
PRUNING = "Pruning"
HEALING = "Healing"
QUALITY = "Quality"
RUNNING = "The build itself"


@dataclass(frozen=True)
class Option:
    """What the command line and recipes know of a field of `BuildOptions`.

    Attributes:
        help: What it means, in sentences.
        usual: What a build does where it is not given. Default: the field's own default is told.
        choices: The values that it may have. Default: any of its type.
        open_choice: One more form that a value may have, told by what is before its colon (`auto:SIZE`).
        least: The least number that it may be.
        most: The largest number that it may be.
        percent: Whether it is a number of percent, which may be written with its sign.
        several: Whether it may be given more than once.
        metavar: What the help writes in a value's place.
        flags: How the command line spells it. Default: the field's name with dashes.
        in_command: Whether the command line has an option of it.
        in_recipe: Whether a recipe may have it as a field. What is one build's own affair is no part of a recipe.
        group: The heading that it stands under in the help and in the reference. Default: none of its own.
    """

    help: str
    usual: str | None = None
    choices: tuple[str | int, ...] = ()
    open_choice: str | None = None
    least: float | None = None
    most: float | None = None
    percent: bool = False
    several: bool = False
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    in_command: bool = True
    in_recipe: bool = True
    group: str | None = None

    def may_be(self, value: object) -> bool:
        """Whether a value is one of the choices, or has the open one's form; any is where there are no choices."""
        form = (self.open_choice or "").partition(":")[0]
        return not self.choices or value in self.choices or bool(form and str(value).startswith(form))

    def listed(self) -> list[str]:
        """Returns the choices as texts, the open one last."""
        return [*map(str, self.choices), *([self.open_choice] if self.open_choice else [])]


def option(help: str, default: Any = MISSING, **about: Any) -> Any:
    """Returns a field of a dataclass that carries an `Option`.

    Args:
        help: What the field means.
        default: Its default. Default: the field has to be given.
        about: The other attributes of `Option`.
    """
    return field(default=default, metadata={_KEY: Option(help, **about)})


def options_of(record: type[Any]) -> dict[str, Option]:
    """Returns the `Option` of each field that carries one, by the fields' names, in their order."""
    return {item.name: item.metadata[_KEY] for item in fields(record) if _KEY in item.metadata}


def kinds_of(record: type[Any]) -> Mapping[str, str]:
    """Returns the first type of each field, as it is written: `str` for `str | None`."""
    return {item.name: str(item.type).split(" | ")[0] for item in fields(record)}


@dataclass(frozen=True)
class LayerRule:
    """What a recipe asks for the linear layers whose module paths match.

    Attributes:
        match: Patterns of module paths, `*` for anything, dots too; one that matches none is an error.
        weights: fp32 or fp16 (the weights are not quantized), int8, int4 or int2. Default: what other layers have.
        block_size: Weights that share a scale. Default: what other layers have.
        symmetric: Whether weights are quantized without zero points. Default: what other layers have.
    """

    match: tuple[str, ...] = ()
    weights: str | None = None
    block_size: int | None = None
    symmetric: bool | None = None


@dataclass(frozen=True)
class BuildOptions:
    """What to build. Each field carries its meaning, as `options_of` returns and `leptonc build --help` prints it."""

    source: str = field(
        metadata={
            _KEY: Option(
                "The model: a directory with a Hugging Face model or one that --emit wrote, the name of a model on the "
                "hub, a .gguf file, or sample:NAME.",
                in_command=False,  # an argument, which the verb has
                in_recipe=False,
            )
        }
    )
    target: str | tuple[str, ...] = option(
        "Device to compile for, with changes behind its name: `jetson-orin,memory_gb=8`. `leptonc targets` lists them. "
        "Given several times, the artifact holds a variant for each.",
        "cpu", metavar="NAME", several=True, in_recipe=False, group=BUILT,
    )  # fmt: skip
    out: Path | None = option(
        "Artifact to write.", None,
        usual="the model's name with .lepton, in this folder", metavar="OUT", flags=("-o", "--out"), in_recipe=False,
        group=BUILT,
    )  # fmt: skip
    weights: str | None = option(
        "Number format of the weights. With `auto:95MB` weights have 4 bits, and 8 where they help most, so that graph "
        "and weights fit in that size.",
        None, usual="int8 with int8 activations, fp16 with --prune 2:4, else the target's",
        choices=tuple(FORMATS), open_choice="auto:SIZE", group=WEIGHTS,
    )  # fmt: skip
    activations: str = option(
        "Number format of what linear layers read. int8 goes with --weights int8 and takes its scales from a "
        "calibration text.",
        "none", choices=("none", "int8"), group=ACTIVATIONS,
    )  # fmt: skip
    max_seq_len: int | None = option(
        "Tokens of context to provide for.",
        None, usual="the target's, at most the model's", metavar="N", least=1, group=BUILT,
    )  # fmt: skip
    attach: Path | None = option(
        "File, or folder with files, to put into the artifact as they are: a licence, a model card. They lie under "
        "attached/ there, and `verify` checks them.",
        None, metavar="PATH", in_recipe=False, group=BUILT,
    )  # fmt: skip
    force: bool = option("Replace an artifact that is already at OUT.", False, in_recipe=False, group=BUILT)
    method: str | None = option(
        "How integer codes are chosen. " + " ".join(f"{name}: {method.meaning}." for name, method in METHODS.items()),
        None, usual="gptq; rtn for weights of 16 or more bits, with --fast, and for 8 bits on engines",
        choices=tuple(METHODS), group=WEIGHTS,
    )  # fmt: skip
    fast: bool = option(
        "Round weights to nearest, and look at no text for them. It takes a fraction of the time and loses more.",
        False, group=WEIGHTS,
    )  # fmt: skip
    block_size: int | None = option(
        "Weights that share one scale, for integers.",
        None, usual="the backend's own: 32 for ONNX Runtime", choices=(16, 32, 64, 128, 256), group=WEIGHTS,
    )  # fmt: skip
    symmetric: bool | None = option(
        "Quantize weights without zero points (symmetric) or with them.",
        None, usual="symmetric; asymmetric for auto, and where a text chooses codes of fewer than 8 bits",
        flags=("--symmetric/--asymmetric",), group=WEIGHTS,
    )  # fmt: skip
    embeddings: str | None = option(
        "Number format of the embedding and of a head tied to it.",
        None, usual="that of --weights", choices=("int8", "int4"), group=WEIGHTS,
    )  # fmt: skip
    rotate: bool = option(
        "Give a decoder's residual stream a random basis, folded into the weights, before they are quantized. It "
        "spreads outliers over all features.",
        False, group=WEIGHTS,
    )  # fmt: skip
    calibrator: str = option(
        "How the ranges of int8 activations are chosen from what the model makes of the calibration text. search tries "
        "minmax, percentile and mse, and takes for each layer the one whose outputs are off least.",
        "search", choices=("minmax", "percentile", "entropy", "mse", "search"), group=ACTIVATIONS,
    )  # fmt: skip
    kv_cache: str | None = option(
        "Keep keys and values of a decoder as 8-bit integers, with scales from a calibration text. The cache takes a "
        "quarter of the memory. For ONNX Runtime.",
        None, usual="float32", choices=("int8",), group=ACTIVATIONS,
    )  # fmt: skip
    prefill: str | None = option(
        "Add a second graph of a decoder with 8-bit weights and activations, which prompts of 16 tokens and more go "
        "through faster. With int8 it has weights of its own, which take as much space again. With shared they are "
        "made of the first graph's when the artifact is opened. For ONNX Runtime.",
        None, usual="no second graph", choices=("int8", "shared"), group=ACTIVATIONS,
    )  # fmt: skip
    calibration: Path | None = option(
        "Text like what the model will read, .txt or .jsonl with a field `text` or `messages`, for whatever measures "
        "the model: codes of weights, --weights auto, --activations int8, --kv-cache, --prefill, --prune and --heal. "
        "`built-in` stands for text of many kinds that Lepton carries.",
        None, metavar="FILE", group=CALIBRATION,
        usual="a decoder reads what it writes itself and text that Lepton carries, an encoder sentences",
    )  # fmt: skip
    chat: bool = option(
        "Put each text of --calibration into the model's chat template, as what a user says. (Lines of a .jsonl that "
        "have `messages` are always rendered with it.)",
        False, group=CALIBRATION,
    )  # fmt: skip
    prune: str | None = option(
        "Cut heads, channels and blocks out of the model: `25%` of its layers' weights, what saves `latency:30%` of "
        "its time on this machine, `layers:4`, or what a plan's .json file lists. `width:10%` cuts a decoder's "
        "residual stream. `2:4` makes two weights of each four zero, for sparse tensor cores.",
        None, metavar="SPEC", group=PRUNING,
    )  # fmt: skip
    prune_method: str | None = option(
        "How --prune chooses what goes. 2:4 has sparsegpt and magnitude.",
        None, usual="reconstruction; with 2:4: sparsegpt",
        choices=("reconstruction", "magnitude", "wanda", "flap", "taylor", "sparsegpt"), group=PRUNING,
    )  # fmt: skip
    prune_compensation: str | None = option(
        "How the weights that stay make up for what --prune takes.",
        None, usual="least-squares; none for a plan", choices=("none", "bias", "least-squares", "sequential"),
        group=PRUNING,
    )  # fmt: skip
    prune_allocation: str | None = option(
        "Whether magnitude, wanda, flap and taylor cut as much of every block, or what matters least anywhere.",
        None, usual="uniform; with flap: global", choices=("uniform", "global"), group=PRUNING,
    )  # fmt: skip
    heal: str | None = option(
        "Let the quantized or pruned model learn from the original on the calibration text for a time (10min, 30s, 1h) "
        "or a number of steps (200steps). Scales, zero points, gains and biases change; codes and the size do not. For "
        "ONNX Runtime.",
        None, metavar="TIME", group=HEALING,
    )  # fmt: skip
    heal_rank: str | None = option(
        "Rank of the term that --heal adds to each weight of a pruned model in float32. With `full` every weight "
        "learns, which takes more memory.",
        None, usual="16", metavar="RANK|full", group=HEALING,
    )  # fmt: skip
    max_loss: float | None = option(
        "Fail, with exit code 3 and nothing at OUT, where quality falls by more than PCT percent (3 or 3%): perplexity "
        "of a causal model, cosine similarity of embeddings, agreement of a classifier.",
        None, usual="no bound", metavar="PCT", percent=True, group=QUALITY,
    )  # fmt: skip
    eval_text: Path | None = option(
        "Text that quality is measured on.",
        None, usual="one that Lepton carries", metavar="FILE", in_recipe=False, group=QUALITY,
    )  # fmt: skip
    check: bool = option(
        "Measure the artifact against the original model. For an engine the lowered graph is measured on the CPU "
        "before it is built.",
        True, flags=("--check/--no-check",), in_recipe=False, group=QUALITY,
    )  # fmt: skip
    memory_gb: float | None = option(
        "Memory that the build may take in all, Python and torch among it. Activations that it has no room for wait on "
        "disk. A bound that is too small is refused with the least that does.",
        None, usual="no bound, and up to 0.5 GB of activations in memory", metavar="GB", least=0, group=RUNNING,
    )  # fmt: skip
    resume: Path | None = option(
        "Directory for the results of long steps (calibration, --prune, --heal). After an interruption the same "
        "command goes on from them. A finished build removes it.",
        None, metavar="DIR", in_recipe=False, group=RUNNING,
    )  # fmt: skip
    seed: int = option(
        "Seed of the text that a model writes for its calibration, and of --rotate. Nothing else in a build is random.",
        0, metavar="N", least=0, most=2**63 - 1, group=RUNNING,
    )  # fmt: skip
    dump_ir: Path | None = option(
        "Write the graph after each pass to DIR.", None, metavar="DIR", in_recipe=False, group=RUNNING
    )
    layers: tuple[LayerRule, ...] = option(
        "Exceptions for single layers: the tables [[layers]] of a recipe.",
        (), in_command=False, in_recipe=False,
    )  # fmt: skip

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets' specifications, one or several."""
        return (self.target,) if isinstance(self.target, str) else self.target
