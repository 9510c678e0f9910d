"""What a step of a build is.

A step is one file of `leptonc.build.steps`. It names the options that it owns, says whether a build has it, refuses
what it cannot do before anything is opened, says what memory it takes and what work it does, and runs.
`leptonc.build.steps` has the order of all steps, and `leptonc.build.engine` runs them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from leptonc.build.calibration_text import texts_for_codes
from leptonc.build.context import BuildContext
from leptonc.build.memory_bound import ModelSizes
from leptonc.build.plan import BuildPlan
from leptonc.build.work import Work
from leptonc.frontend.captured import Captured
from leptonc.variant import VariantBuild, VariantPlan


@dataclass(frozen=True)
class Need:
    """Memory that a step takes beyond what is there before it.

    Attributes:
        what: What takes it, as messages say it.
        bytes: How much, activations left out.
        keeps_activations: Whether the step keeps activations, which get what a bound on memory leaves.
    """

    what: str
    bytes: int
    keeps_activations: bool = False


def layer_need(sizes: ModelSizes) -> Need:
    """Returns what a step takes that gathers statistics of a text, a layer at a time."""
    return Need("calibrating a layer", sizes.layer, keeps_activations=True)


class Step:
    """Base of all steps.

    Attributes:
        name: What messages and the cache of steps call it.
        version: In the key of the cache of steps: counts up when the same options give another result than before.
        options: Fields of `BuildOptions` that the step owns. An ending that has no such step refuses them.
        several_parts: Whether the step knows models of several parts. Default: it knows one graph alone.
        text_option: The option that makes the step read a calibration text, for messages. Default: it reads none.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    options: ClassVar[tuple[str, ...]] = ()
    text_option: ClassVar[str] = ""
    several_parts: ClassVar[bool] = False

    def wanted(self, plan: BuildPlan) -> bool:
        """Returns whether a build has the step. Default: every build has."""
        return True

    def texts(self, plan: BuildPlan) -> int:
        """Returns how many calibration texts the step reads. Default: none."""
        return 0

    def check(self, plan: BuildPlan) -> None:
        """Refuses what the step cannot do, before anything is opened; it is called whether or not the step is wanted.

        Raises:
            LeptonError: It is refused.
        """

    def preflight(self, plan: BuildPlan, captured: Captured) -> None:
        """Refuses what the captured model cannot have, before anything long begins (raises `LeptonError`)."""

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        """Returns the memory that the step takes. Default: none that counts."""
        return ()

    def work(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Work]:
        """Returns what the step does in each of its stages of progress. Default: nothing that counts.

        A step on variants is asked once a variant, with a plan that has this one alone.
        """
        return ()


class ModelStep(Step):
    """A step on the captured model, before its variants part."""

    @abstractmethod
    def run(self, context: BuildContext) -> BuildContext:
        """Does the step: changes the model in place, adds to the report, returns the context that goes on."""


class VariantStep(Step):
    """A step on one variant: on each of its parts, one after the other, or once on the whole of it.

    Attributes:
        is_of_parts: Whether the step is done for each part, with the part's graph. Default: once, for the variant.
    """

    is_of_parts: ClassVar[bool] = False

    def applies(self, plan: VariantPlan) -> bool:
        """Returns whether a variant has the step. Default: every variant has."""
        return True

    def wanted(self, plan: BuildPlan) -> bool:
        return any(map(self.applies, plan.variants))

    @abstractmethod
    def run(self, context: BuildContext, variant: VariantBuild) -> VariantBuild:
        """Does the step; returns the variant that goes on, with other choices or a changed graph."""


class CalibratedStep(VariantStep):
    """A step that chooses something for a variant by what a text shows. The variant's report says which text it is."""

    def texts(self, plan: BuildPlan) -> int:
        return max((texts_for_codes(variant) for variant in plan.variants if self.applies(variant)), default=0)

    def needs(self, plan: BuildPlan, sizes: ModelSizes) -> Iterable[Need]:
        yield layer_need(sizes)
