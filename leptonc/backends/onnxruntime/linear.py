"""Linear layers and embeddings for ONNX Runtime: MatMulNBits, GatherBlockQuantized, FusedMatMul."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from leptonc.backends.onnxruntime.attention import MS
from leptonc.ir import edit
from leptonc.ir.dialect import STORAGE_KEY
from leptonc.ir.structure import embeddings, linears
from leptonc.passes.base import Pass
from leptonc.passes.quantize.blocks import Quantized
from leptonc.passes.quantize.weights import quantized_of

INT8_ACCURACY = 4  # MatMulNBits: activations are rounded to int8 in blocks, the fastest kernels


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Packs codes along the last axis into bytes, low bits first; the rest of a last byte is zero."""
    count = 8 // bits
    if count == 1:
        return codes
    short = -codes.shape[-1] % count
    if short:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, short)])
    packed = codes[..., 0::count]
    for at in range(1, count):
        packed = np.bitwise_or(packed, codes[..., at::count] << (at * bits), dtype=np.uint8)
    return packed


class NBits:
    """Initializers of a quantized weight in MatMulNBits' layout, registered once a weight.

    codes uint8 [out, blocks, size * bits / 8], scales float32 [out, blocks], zeros uint8 [out, ceil(blocks * bits / 8)]
    (None when symmetric: the kernels' default is the middle). Scales of a format with `half` are stored as float16,
    behind a Cast that ONNX Runtime folds when it loads: the kernels take float32.
    """

    def __init__(self, graph: ir.Graph, weight: Quantized) -> None:
        self.weight, self.form = weight, weight.form
        rows, columns = weight.shape
        self.blocks = -(-columns // self.form.size)
        self._graph = graph
        self.bytes_a_block = self.form.size * self.form.bits // 8
        self.codes = self._part("codes", (rows, self.blocks, self.bytes_a_block), self._codes)
        self.scales = self._scales()
        self.zeros: ir.Value | None = None
        if not self.form.symmetric:
            packed = -(-self.blocks * self.form.bits // 8)
            self.zeros = self._part("zeros", (rows, packed), lambda: pack(_zeros(weight), self.form.bits))

    def _codes(self) -> NDArray[np.uint8]:
        codes = self.weight.parts().codes
        if codes.shape[1] != self.blocks * self.form.size:
            short = self.blocks * self.form.size - codes.shape[1]
            codes = np.pad(codes, ((0, 0), (0, short)), constant_values=self.form.middle)
        return pack(codes, self.form.bits).reshape(codes.shape[0], self.blocks, -1)

    def _scales(self) -> ir.Value:
        shape = (self.weight.shape[0], self.blocks)
        if not self.form.half:
            return self._part("scales", shape, lambda: self.weight.parts().scales, ir.DataType.FLOAT)
        stored = self._graph.initializers.get(f"{self.weight.key}.nbits.scales")
        if stored is not None:  # a tied embedding and head
            return next(iter(stored.uses())).node.outputs[0]
        half = lambda: self.weight.parts().scales.astype(np.float16)  # noqa: E731
        stored = self._part("scales", shape, half, ir.DataType.FLOAT16)
        (scales,) = edit.insert(
            self._graph[0], "Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{stored.name}/Cast", module=""
        )
        scales.shape, scales.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        return scales

    def _part(
        self, suffix: str, shape: tuple[int, ...], read: Callable[[], NDArray[Any]], dtype: Any = ir.DataType.UINT8,
        stored_as: str = "",
    ) -> ir.Value:  # fmt: skip
        name = f"{self.weight.key}.nbits.{suffix}"
        lazy = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(read())), dtype=dtype, shape=ir.Shape(shape), name=name, cache=False
        )
        value = edit.initializer(self._graph, name, lazy)
        value.meta[STORAGE_KEY] = stored_as or name
        return value

    def rows(self) -> ir.Value:
        """Returns the same codes in GatherBlockQuantized's layout, uint8 [out, in * bits / 8], stored once."""
        shape = (self.weight.shape[0], self.blocks * self.bytes_a_block)
        read = lambda: self._codes().reshape(shape)  # noqa: E731
        return self._part("rows", shape, read, stored_as=str(self.codes.name))


def _zeros(weight: Quantized) -> NDArray[np.uint8]:
    zeros = weight.parts().zeros
    if zeros is None:
        raise ValueError("a symmetric weight has no zero points")
    return zeros


class LinearToKernels(Pass):
    """Replaces quantized linear layers by `MatMulNBits`, float ones by `FusedMatMul` on the checkpoint's weight.

    FusedMatMul takes the weight [out, in] transposed by an attribute: a tied embedding and head share one matrix, and
    nothing is transposed while building.
    """

    name = "ort-linear"
    in_dialect = False

    def run(self, model: ir.Model) -> int:
        count = 0
        for linear in linears(model):
            weight = quantized_of(linear.weight)
            if weight is not None:
                nbits = NBits(model.graph, weight)
                rows, columns = weight.shape
                attributes = {
                    "K": columns, "N": rows, "bits": weight.form.bits, "block_size": weight.form.size,
                    "accuracy_level": INT8_ACCURACY,
                }  # fmt: skip
                inputs = [linear.x, nbits.codes, nbits.scales, nbits.zeros, None, linear.bias]
                while inputs[-1] is None:
                    inputs.pop()
                (y,) = edit.insert(linear.node, "MatMulNBits", inputs, attributes, domain=MS)
                edit.replace(linear.y, y)
            elif linear.transposed:
                inputs = [linear.x, linear.weight]
                (y,) = edit.insert(linear.node, "FusedMatMul", inputs, {"transB": 1}, domain=MS)
                edit.replace(linear.node.outputs[0], y)
            else:
                continue
            count += 1
        return count


class EmbeddingToKernels(Pass):
    """Replaces a look-up in a quantized table by `GatherBlockQuantized`, on the bytes that a tied head reads.

    The kernel needs whole blocks and, in a row, whole bytes of zero points; a table without them is looked up through
    DequantizeLinear as it stands.
    """

    name = "ort-embedding"
    in_dialect = False

    def run(self, model: ir.Model) -> int:
        count = 0
        for node in list(embeddings(model)):
            dequantize = edit.producer(node.inputs[0], "DequantizeLinear")
            weight = quantized_of(dequantize.inputs[0]) if dequantize is not None else None  # type: ignore[arg-type]
            if weight is None or not weight.form.fills(weight.shape[1]):
                continue
            nbits = NBits(model.graph, weight)
            attributes = {
                "bits": weight.form.bits, "block_size": weight.form.size, "gather_axis": 0, "quantize_axis": 1,
            }  # fmt: skip
            inputs = [nbits.rows(), node.inputs[1], nbits.scales, *([nbits.zeros] if nbits.zeros else [])]
            (y,) = edit.insert(node, "GatherBlockQuantized", inputs, attributes, domain=MS)
            edit.replace(node.outputs[0], y)
            count += 1
        return count
