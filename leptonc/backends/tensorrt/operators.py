"""Operators that TensorRT's ONNX parser documents, and a check of a graph against them."""

from __future__ import annotations

import onnx_ir as ir

from leptonc.errors import InputError
from leptonc.ir.dialect import module_of
from runtime_edge.tensorrt.flavours import flavour, parses

# "Supported ONNX Operators" of onnx-tensorrt 10.1 GA (docs/operators.md,
# https://github.com/onnx/onnx-tensorrt/blob/10.1-GA/docs/operators.md): what 10.1 parses, 10.3 does too. Operators that
# came later are in `runtime_edge.tensorrt.flavours`, each with its first version.
DOCUMENTED = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil
    Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace
    DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization GRU HardSigmoid HardSwish Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul Max
    MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad
    ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike
    Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RNN RoiAlign Round ScaledTanh Scan Scatter
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
    SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample
    Where Xor
    """.split()  # noqa: SIM905
)


def unsupported(model: ir.Model, flavour_name: str, version: str) -> list[tuple[str, str]]:
    """Returns (operator, module path) of every node that a version's parser does not document."""
    target_flavour = flavour(flavour_name)

    def is_parsed(node: ir.Node) -> bool:
        later = node.op_type in target_flavour.first_operators
        if node.domain:
            return False
        return parses(target_flavour, node.op_type, version) if later else node.op_type in DOCUMENTED

    return [(node.op_type, module_of(node)) for node in model.graph if not is_parsed(node)]


def require_operators(model: ir.Model, flavour_name: str, version: str) -> None:
    """Refuses a graph with operators that a version does not parse.

    Raises:
        InputError: The message names the operators and the modules that they come from.
    """
    missing = unsupported(model, flavour_name, version)
    if missing:
        places = "; ".join(f"{op} of {module or 'the graph'}" for op, module in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"expected operators that {flavour(flavour_name).title} {version} parses, found {places}{more}",
            hint="a later version may have them: for a Jetson, say which with `jetpack=7.2` behind the target's name",
        )
