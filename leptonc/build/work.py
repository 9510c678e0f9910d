"""What a step of a build has to do, in amounts of few kinds; `leptonc.build.rates` knows how much a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leptonc.build import calibration_text
from leptonc.calibrate.texts import built_in_texts
from leptonc.evaluate.measure import SENTENCES, TOKENS

if TYPE_CHECKING:
    from leptonc.build.memory_bound import ModelSizes
    from leptonc.build.plan import BuildPlan

A_SENTENCE = 24  # tokens of a sentence, about
A_TOKEN = 4  # bytes of text for a token, about
OPENED = 10  # runs of a layer over a text that take as long as it takes to open the layer
FIRST_LAYERS = 30  # layers that take as long to capture as what comes before the first one


CORE, CORES = "core", "cores"  # what makes a kind of work faster: a faster core, and more of them too


@dataclass(frozen=True)
class Kind:
    """One kind of work.

    Attributes:
        unit: What amounts of it count.
        rate: How many a second there were on one core of the machine whose speed `leptonc.build.rates` tells.
        faster: What makes it faster, `CORE` or `CORES`. Default: it takes as long anywhere.
    """

    unit: str
    rate: float
    faster: str = ""


KINDS = {
    "seconds": Kind("seconds that are asked for", 1),
    "captured": Kind("layers that are traced", 17),
    "written": Kind("bytes of weights that are read, rounded and stored", 7e8),
    "runs": Kind("runs of a layer over a text, whatever its size, and layers that are opened", 400),
    "drawn": Kind("multiply-adds of a model that writes text", 3e10, CORES),
    "products": Kind("multiply-adds of a model that reads text, and of moments of what its layers read", 4.6e10, CORES),
    "ranges": Kind("multiply-adds of a model whose values are looked at for their ranges", 2.6e10, CORES),
    "trials": Kind("multiply-adds of a model that runs on with one change", 6e10, CORES),
    "codes": Kind("weights whose codes are chosen one input after the other", 3e6, CORE),
    "fits": Kind("multiply-adds of systems of equations, a row and a column for each input of a layer", 1.5e10, CORES),
    "removals": Kind("multiply-adds of curves of what is lost as inputs of a layer go one by one", 5.4e9, CORE),
    "compared": Kind("multiply-adds of the original, with which an artifact is compared", 1.5e10, CORES),
    "sentences": Kind("sentences that an encoder and its own library are compared on", 16),
    "learnt": Kind("multiply-adds of a model that learns", 1e10, CORES),
    "compiled": Kind("bytes of weights that become an engine", 1e7),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What one stage of progress does.

    Attributes:
        stage: The stage's name, without a variant's or a part's before it.
        amounts: How much it does of each of `KINDS`.
    """

    stage: str
    amounts: Mapping[str, float]


def work(stage: str, **amounts: float) -> Work:
    """Returns the work of a stage; amounts are by the names of `KINDS`."""
    return Work(stage, amounts)


def tokens(plan: BuildPlan, sizes: ModelSizes, texts: int) -> float:
    """Returns about how many tokens so many texts of a decoder have, or all of an encoder's, which are sentences."""
    captured, file = sizes.captured, plan.options.calibration
    if not captured.interface.writes_text:
        sentence, most = min(A_SENTENCE, captured.max_seq_len), calibration_text.WINDOWS * 8
        read = len(built_in_texts()) if file is None or not file.is_file() else file.stat().st_size / A_TOKEN / sentence
        return min(most, read) * sentence
    length = min(calibration_text.WINDOW, captured.max_seq_len)
    if file is None or not file.is_file():
        return texts * length
    return min(texts * length, max(length, file.stat().st_size / A_TOKEN))


def texts_of(plan: BuildPlan, sizes: ModelSizes, texts: int) -> float:
    """Returns about how many texts there are where so many of a decoder are asked for; an encoder reads all."""
    length = calibration_text.WINDOW if sizes.captured.interface.writes_text else A_SENTENCE
    return tokens(plan, sizes, texts) / min(length, sizes.captured.max_seq_len)


def reading(
    plan: BuildPlan, sizes: ModelSizes, texts: int, kind: str = "products", *, graphs: int = 1, moments: float = 0
) -> dict[str, float]:  # fmt: skip
    """Returns the amounts of a walk over texts.

    Args:
        plan: What is asked for.
        sizes: The model's.
        texts: Texts of a decoder.
        kind: Of the model's multiply-adds.
        graphs: Graphs that run side by side.
        moments: Products that sum second moments of what linear layers read: one half for those of a value with itself.
    """
    count = tokens(plan, sizes, texts)
    runs = graphs * sizes.layers * (OPENED + texts_of(plan, sizes, texts))
    layers = sizes.multiplications - sizes.head  # a walk ends before the head
    return {kind: count * (graphs * layers + moments * sizes.squares), "runs": runs}


def changing(sizes: ModelSizes, changes: float, texts: int, length: int) -> dict[str, float]:
    """Returns the amounts of runs over texts of `length` tokens with one change each, evenly spread over the layers.

    All changes of earlier layers run on together.
    """
    products = changes * texts * length * ((sizes.multiplications - sizes.head) / 2 + sizes.head)
    return {"trials": products, "runs": OPENED * (changes + sizes.layers)}


def checking(sizes: ModelSizes, times: int = 1) -> dict[str, float]:
    """Returns the amounts of so many comparisons with the original on the text of the check."""
    if not sizes.captured.interface.writes_text:
        return {"sentences": times * SENTENCES}
    return {"compared": times * TOKENS * sizes.multiplications, "runs": times * (OPENED + 1) * sizes.layers}
