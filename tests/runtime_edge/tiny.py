"""A tiny real decoder artifact, built with onnx alone, and a float64 reference of it in numpy.

Two layers of attention (GroupQueryAttention with rotary embedding, grouped heads, a residual stream, no norms), a
byte-level tokenizer, weights in one blob. Small enough to build in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from runtime_edge import manifest as m
from runtime_edge.decoder_record import decoder_of
from runtime_edge.tasks import names

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 64, 4, 2, 16, 2
MAX_SEQ_LEN = 2048
BOS, EOS, TURN = 256, 257, 258  # after the 256 bytes
VOCAB = 300
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@dataclass
class Weights:
    """Parameters of the tiny decoder, float32."""

    embedding: np.ndarray
    qkv: list[np.ndarray] = field(default_factory=list)
    out: list[np.ndarray] = field(default_factory=list)
    head: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def seeded(cls, seed: int = 0, vocab: int = VOCAB) -> Weights:
        random = np.random.default_rng(seed)

        def normal(*shape: int) -> np.ndarray:
            return (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

        width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
        return cls(
            embedding=random.standard_normal((vocab, HIDDEN)).astype(np.float32),
            qkv=[normal(HIDDEN, width) for _ in range(LAYERS)],
            out=[normal(HEADS * HEAD_DIM, HIDDEN) for _ in range(LAYERS)],
            head=normal(HIDDEN, vocab),
        )


def rotary(length: int) -> tuple[np.ndarray, np.ndarray]:
    """The cos and sin tables [length, head_dim / 2], float32."""
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(HEAD_DIM // 2) * 2 / HEAD_DIM)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def reference_logits(weights: Weights, token_ids: list[int], window: int = 0) -> np.ndarray:
    """Logits [len, vocab] in float64, all tokens at once, no cache; each token reads the last `window`, or all."""
    length = len(token_ids)
    cos, sin = (table.astype(np.float64)[:, None] for table in rotary(length))
    stream = weights.embedding[token_ids].astype(np.float64)
    distance = np.arange(length)[:, None] - np.arange(length)
    is_hidden = (distance < 0) | (distance >= (window or length))
    for qkv, out in zip(weights.qkv, weights.out, strict=True):
        mixed = (stream @ qkv.astype(np.float64)).reshape(length, -1, HEAD_DIM)
        first, second = mixed[..., : HEAD_DIM // 2], mixed[..., HEAD_DIM // 2 :]
        turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        query, key = turned[:, :HEADS], turned[:, HEADS : HEADS + KV_HEADS]
        value = mixed[:, HEADS + KV_HEADS :]
        key, value = (np.repeat(one, HEADS // KV_HEADS, axis=1) for one in (key, value))
        scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(HEAD_DIM)
        scores[:, is_hidden] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", shares, value).reshape(length, -1)
        stream = stream + mixed @ out.astype(np.float64)
    return stream @ weights.head.astype(np.float64)


class Blob:
    """Collects tensors in one file, and makes the graph's references to it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.tensors: list[TensorProto] = []

    def add(self, name: str, array: np.ndarray) -> str:
        tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": "", "offset": str(len(self.data)), "length": str(array.nbytes)}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        self.data += array.tobytes()
        self.data += bytes(-len(self.data) % 64)
        self.tensors.append(tensor)
        return name

    def finish(self) -> str:
        """Names the blob by its content in every reference; returns its path."""
        path = f"blobs/{hashlib.sha256(self.data).hexdigest()}"
        for tensor in self.tensors:
            tensor.external_data[0].value = path
        return path


def decoder_graph(
    weights: Weights, max_seq_len: int = MAX_SEQ_LEN, *, keeps_none: bool = True, window: int = 0
) -> tuple[bytes, str, bytes]:
    """Returns the graph, its blob's path and the blob; as of earlier formats, it keeps all logits for zero."""
    blob = Blob()
    vocab = weights.embedding.shape[0]
    cos, sin = rotary(max_seq_len)
    blob.add("cos", cos)
    blob.add("sin", sin)
    constants = {"one": np.array([1], np.int64), "large": np.array([2**62], np.int64), "zero": np.array([0], np.int64)}
    inline = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    node = helper.make_node
    nodes = [
        node("Shape", ["input_ids"], ["seq"], start=1, end=2),
        node("Add", ["past_length", "seq"], ["total"]),
        node("Sub", ["total", "one"], ["last"]),
        node("Cast", ["last"], ["seqlens"], to=TensorProto.INT32),
        node("ReduceMax", ["total"], ["total_max"], keepdims=0),
        node("Cast", ["total_max"], ["total32"], to=TensorProto.INT32),
        node("Gather", [blob.add("embedding", weights.embedding), "input_ids"], ["stream0"]),
    ]
    cache_in, cache_out = [], []
    for layer in range(LAYERS):
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        nodes += [
            node("MatMul", [f"stream{layer}", blob.add(f"qkv{layer}", weights.qkv[layer])], [f"mixed{layer}"]),
            node(
                "GroupQueryAttention",
                [f"mixed{layer}", "", "", *past, "seqlens", "total32", "cos", "sin"],
                [f"attended{layer}", *present],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                do_rotary=1,
                local_window_size=window or -1,
            ),
            node("MatMul", [f"attended{layer}", blob.add(f"out{layer}", weights.out[layer])], [f"projected{layer}"]),
            node("Add", [f"stream{layer}", f"projected{layer}"], [f"stream{layer + 1}"]),
        ]
        shape = ["batch", KV_HEADS, f"capacity{layer}", HEAD_DIM]
        cache_in += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in past]
        cache_out += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in present]
    nodes += [
        node("Sub", ["seq", "logits_to_keep"], ["start"]) if keeps_none else node("Neg", ["logits_to_keep"], ["start"]),
        node("Slice", [f"stream{LAYERS}", "start", "large", "one"], ["kept"]),
        node("MatMul", ["kept", blob.add("head", weights.head)], ["logits"]),
    ]
    path = blob.finish()
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"]),
            helper.make_tensor_value_info("past_length", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("logits_to_keep", TensorProto.INT64, [1]),
            *cache_in,
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "n", vocab]), *cache_out],
        initializer=[*inline, *blob.tensors],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(), path, bytes(blob.data)


def byte_tokenizer() -> Tokenizer:
    """One token a byte, then `<bos>`, `<eos>`, `<|turn|>`; `<bos>` is put before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<bos>", "<eos>", "<|turn|>")])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return tokenizer


def write(root: Path, fields: dict[str, Any], files: dict[str, bytes]) -> Path:
    """Writes files and a manifest that lists them; returns `root`."""
    listed = []
    for path, data in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        listed.append({"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    base = {
        "format": m.FORMAT,
        "format_version": m.FORMAT_VERSION,
        "name": "tiny",
        "architecture": "tiny",
        "parameters": 1,
        "source": {"kind": "test"},
    }
    (root / "manifest.json").write_text(json.dumps({**base, **fields, "files": listed}))
    return root


def variant(*graphs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A variant's record."""
    base = {"name": "cpu", "target": "cpu", "backend": "onnxruntime", "weights": "fp32"}
    return {**base, "graphs": list(graphs), **changes}


def port(port: m.Port, *dims: int | str) -> dict[str, Any]:
    """A port's record, with other sizes where some are given."""
    fields: dict[str, Any] = msgspec.to_builtins(port)
    return {**fields, "dims": list(dims)} if dims else fields


def decoder_part(layers: int, vocab: int) -> dict[str, Any]:
    """The record of a part that is a decoder."""
    widths = (HEAD_DIM, HEAD_DIM)
    states = [msgspec.to_builtins(names.key_value_state(i, KV_HEADS, widths, "float32")) for i in range(layers)]
    inputs, outputs = [port(names.TOKEN_IDS), port(names.PAST_LENGTH)], [port(names.LOGITS, *names.TEXT, vocab)]
    return {"name": "decoder", "inputs": inputs, "outputs": outputs, "states": states}


def decoder(vocab_size: int, max_seq_len: int, layers: Sequence[m.CacheLayer], dtype: str = "float32") -> m.Decoder:
    """A decoder as backends see it."""
    widths = [(layer.kv_heads, (layer.key_dim, layer.value_dim), dtype, layer.window) for layer in layers]
    part = m.Part(
        name="decoder",
        inputs=(names.TOKEN_IDS, names.PAST_LENGTH),
        outputs=(msgspec.structs.replace(names.LOGITS, dims=(*names.TEXT, vocab_size)),),
        states=tuple(names.key_value_state(i, *each) for i, each in enumerate(widths)),
    )
    found = decoder_of([part], {"max_seq_len": max_seq_len})
    assert found is not None
    return found


def write_decoder(
    root: Path, *, weights: Weights | None = None, max_seq_len: int = MAX_SEQ_LEN, prefill: Weights | None = None,
    keeps_none: bool = True, window: int = 0,
) -> Path:  # fmt: skip
    """Writes the tiny decoder's artifact; with `prefill`, a second graph of these weights for prefill."""
    weights = weights or Weights.seeded()
    graph, path, blob = decoder_graph(weights, max_seq_len, keeps_none=keeps_none, window=window)
    keep = {"name": "logits_to_keep", "role": "last_positions", "dtype": "int64", "dims": [1]}
    graph_record = {"part": "decoder", "added": [keep]}
    fields = {
        "task": m.TEXT_GENERATION,
        "tokenizer": {
            "file": "tokenizer.json",
            "bos_token_id": BOS,
            "eos_token_ids": [EOS],
            "special_tokens": {"bos_token": "<bos>", "eos_token": "<eos>"},
            "chat_template": "chat_template.jinja",
        },
        "variants": [variant({**graph_record, "file": "cpu.onnx", "blobs": [path]})],
        "parts": [decoder_part(LAYERS, weights.embedding.shape[0])],
        "settings": {"max_seq_len": max_seq_len, **({} if keeps_none else {"keeps_none": False})},
    }
    files = {
        "cpu.onnx": graph,
        path: blob,
        "tokenizer.json": byte_tokenizer().to_str().encode(),
        "chat_template.jinja": TEMPLATE.encode(),
    }
    if prefill is not None:
        files["cpu.prefill.onnx"], other, files[other] = decoder_graph(prefill, max_seq_len)
        prompts = {**graph_record, "file": "cpu.prefill.onnx", "purpose": "prompts", "activations": "int8"}
        both = ({**graph_record, "file": "cpu.onnx", "blobs": [path]}, {**prompts, "blobs": [other]})
        fields["variants"] = [variant(*both)]
        files[path] = blob
    return write(root, fields, files)


def word_tokenizer() -> Tokenizer:
    """One token a lower-case word of a few; `[CLS]` and `[SEP]` around every text; cuts and pads as it was trained."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "one", "two", "three", "four", "five", "six"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(3)
    return tokenizer


def encoder_table(dim: int) -> np.ndarray:
    """The encoder's embedding [10, dim] float32."""
    return np.random.default_rng(3).standard_normal((10, dim)).astype(np.float32)


def write_encoder(
    root: Path, *, labels: tuple[str, ...] = (), dim: int = 6, mask: str = "attention_mask", **fields: Any
) -> Path:
    """Writes an encoder that averages the embeddings of the tokens that its mask keeps.

    `fields` are the encoder's in the manifest; inputs that it names besides are there and not read.
    """
    output = "logits" if labels else "embeddings"
    dim = len(labels) or dim
    blob = Blob()
    node = helper.make_node
    nodes = [
        node("Gather", [blob.add("table", encoder_table(dim)), "input_ids"], ["rows"]),
        node("Cast", [mask], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["mask3"]),
        node("Mul", ["rows", "mask3"], ["masked"]),
        node("ReduceSum", ["masked", "first"], ["sum"], keepdims=0),
        node("ReduceSum", ["mask", "first"], ["count"], keepdims=1),
        node("Div", ["sum", "count"], [output]),
    ]
    path = blob.finish()
    inline = [onnx.numpy_helper.from_array(np.array([value]), name) for name, value in (("first", 1), ("last", 2))]
    inputs = fields.pop("inputs", ("input_ids", mask))
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", dim])],
        initializer=[*inline, *blob.tensors],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    manifest = {
        "task": m.TEXT_CLASSIFICATION if labels else m.TEXT_EMBEDDING,
        "tokenizer": {"file": "tokenizer.json", "pad_token_id": 0},
        "variants": [variant({"part": "encoder", "file": "cpu.onnx", "blobs": [path]})],
        "parts": [
            {
                "name": "encoder",
                "inputs": [port(names.ENCODER_INPUTS[name]) for name in inputs],
                "outputs": [port(names.LABEL_LOGITS if labels else names.EMBEDDINGS, "batch", dim)],
            }
        ],
        "settings": {"max_seq_len": 5, "labels": labels, **fields},
    }
    tokenizer = word_tokenizer().to_str().encode()
    files = {"cpu.onnx": model.SerializeToString(), path: bytes(blob.data), "tokenizer.json": tokenizer}
    return write(root, manifest, files)
