"""The steps of a build, one file a step, and their order.

A new step is a file here and a line in the order. Its options are fields of `leptonc.options.BuildOptions`, which the
step names in `options`.
"""

from __future__ import annotations

from leptonc.build.step import Step
from leptonc.build.steps.attach_files import AttachFiles
from leptonc.build.steps.check_capture import CheckCapture
from leptonc.build.steps.check_emitted import CheckEmitted
from leptonc.build.steps.choose_codes import ChooseCodes
from leptonc.build.steps.compile_engine import CompileEngine
from leptonc.build.steps.describe_model import DescribeModel
from leptonc.build.steps.describe_weights import DescribeWeights
from leptonc.build.steps.heal import HealGraph, HealVariant
from leptonc.build.steps.judge import Judge, JudgePrompts
from leptonc.build.steps.keep_original import KeepOriginal
from leptonc.build.steps.lower import Lower
from leptonc.build.steps.measure import Measure, MeasurePrompts
from leptonc.build.steps.measure_speed import MeasureSpeed
from leptonc.build.steps.prompt_graph import PromptGraph
from leptonc.build.steps.prune_pattern import PrunePattern
from leptonc.build.steps.prune_units import PruneUnits
from leptonc.build.steps.prune_width import PruneWidth
from leptonc.build.steps.quantize_cache import QuantizeCache
from leptonc.build.steps.quantize_inputs import QuantizeInputs
from leptonc.build.steps.quantize_prompt_inputs import QuantizePromptInputs
from leptonc.build.steps.rotate import RotateResidual
from leptonc.build.steps.scale_channels import ScaleChannels
from leptonc.build.steps.show_examples import ShowExamples
from leptonc.build.steps.spend_budget import SpendBudget
from leptonc.build.steps.store_tokenizer import StoreTokenizer
from leptonc.build.steps.write_emitted import WriteEmitted
from leptonc.build.steps.write_graph import WriteGraph
from leptonc.build.steps.write_text import WriteText

# On the captured model, before variants part.
MODEL_STEPS: tuple[Step, ...] = (
    CheckCapture(),
    KeepOriginal(),
    WriteText(),  # before anything is cut out of the model that writes
    PruneUnits(),
    PruneWidth(),
    PrunePattern(),
    RotateResidual(),
    DescribeModel(),
)
# On each variant of an artifact.
VARIANT_STEPS: tuple[Step, ...] = (
    QuantizeCache(),
    QuantizePromptInputs(),
    SpendBudget(),
    QuantizeInputs(),
    ScaleChannels(),
    ChooseCodes(),
    HealVariant(),
    Lower(),
    WriteGraph(),
    Measure(),
    DescribeWeights(),
    Judge(),
    PromptGraph(),
    MeasurePrompts(),
    JudgePrompts(),
    ShowExamples(),
    CompileEngine(),
)
TO_ARTIFACT: tuple[Step, ...] = (StoreTokenizer(), AttachFiles(), *MODEL_STEPS, MeasureSpeed(), *VARIANT_STEPS)
TO_ONNX: tuple[Step, ...] = (*MODEL_STEPS, HealGraph(), WriteEmitted(), CheckEmitted())

# What only an artifact's steps own: an emission refuses it.
LOWERED_OPTIONS = frozenset(name for step in TO_ARTIFACT for name in step.options) - frozenset(
    name for step in TO_ONNX for name in step.options
)
