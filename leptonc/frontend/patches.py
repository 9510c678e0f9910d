"""Makes a transformers model, built on the meta device, emit our operators where it attends, rotates and normalises.

Everything is patched on the instance that is traced, except the two things that transformers keeps a module's global:
the rotary function and the attention registry. Those are restored when the trace ends.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from leptonc.errors import CaptureError
from leptonc.frontend import ops  # noqa: F401  (registers torch.ops.lepton)
from leptonc.frontend.probe import RotaryForm, rms_norm_form, rotary_form

INTERFACE = "lepton"
_lock = threading.RLock()

# Arguments of every attention function in transformers that leave the result as it is, or are read elsewhere.
_INERT = {
    "dropout", "position_ids", "cache_position", "output_attentions", "output_hidden_states", "use_cache",
    "target_dtype",
    "past_key_values", "is_causal", "return_dict", "logits_to_keep", "layer_idx", "head_mask", "position_embeddings",
}  # fmt: skip


@dataclass
class Recorder:
    """Records what a trace captures.

    Attributes:
        paths: Path of each module, by its id.
        max_positions: Rows of the rotary tables.
        cached: Whether the part that is traced keeps keys and values from run to run.
        attended: Modules whose attention was seen; `kept` are those of parts that keep something.
        updated: Layers whose cache was updated.
        tables: Rotary tables, cosines and sines; `forms` are the ways in which functions rotate by them.
    """

    paths: dict[int, str]
    max_positions: int
    cached: bool = False
    attended: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    updated: list[int] = field(default_factory=list)
    tables: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    forms: dict[tuple[str, str], RotaryForm | None] = field(default_factory=dict)

    def path(self, module: nn.Module) -> str:
        return self.paths.get(id(module), type(module).__name__)

    def begin(self, *, keeps: bool) -> None:
        """Begins a run of a part; `keeps` says whether it keeps keys and values from run to run."""
        self.cached = keeps


class PassThroughCache:
    """Stands for transformers' cache in a trace: keys and values go straight to the attention, which owns the cache."""

    is_compileable = False

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self._recorder.updated.append(layer_idx)
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        return 0

    def get_max_cache_shape(self, *_: Any) -> int:
        return -1


def _attention_interface(recorder: Recorder) -> Any:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
        scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None, **rest: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        path = recorder.path(module)
        unknown = sorted(k for k, v in rest.items() if k not in _INERT and isinstance(v, Tensor))
        if sliding_window and not recorder.cached:
            unknown.append("sliding_window")
        if unknown or attention_mask is not None:
            extra = unknown[0] if unknown else "attention_mask"
            raise CaptureError(
                f"{path} ({type(module).__name__}): expected attention over queries, keys and values alone, "
                f"found the extra input `{extra}`",
                hint="this architecture's attention is not supported yet",
            )
        recorder.attended.append(path)
        if recorder.cached:
            recorder.kept.append(path)
        layer = getattr(module, "layer_idx", None)
        if scaling is None:
            scaling = float(query.shape[-1]) ** -0.5
        out = torch.ops.lepton.attention(
            query, key, value, path, -1 if layer is None else int(layer), float(scaling), float(softcap or 0.0),
            int(sliding_window or 0), recorder.cached,
        )  # fmt: skip
        return out, None

    return attend


def _patch_norms(model: nn.Module) -> None:
    forms: dict[tuple[Any, ...], Any] = {}
    for module in model.modules():
        if not type(module).__name__.endswith("Norm"):
            continue
        weight = getattr(module, "weight", None)
        key = (type(module), None if weight is None else tuple(weight.shape),
               tuple(sorted((k, v) for k, v in vars(module).items() if isinstance(v, float))))  # fmt: skip
        if key not in forms:
            forms[key] = rms_norm_form(module)
        form = forms[key]
        if form is None:
            continue

        def forward(x: Tensor, _m: nn.Module = module, _f: Any = form) -> Tensor:
            result: Tensor = torch.ops.lepton.rms_norm(x, _m.weight if _f.weighted else None, _f.eps, _f.offset)
            return result

        module.forward = forward


def _patch_linears(model: nn.Module) -> None:
    """Makes each linear layer one operator. GPT-2's are stored transposed, with reshapes around them."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:

            def whole(x: Tensor, _m: nn.Linear = module) -> Tensor:
                result: Tensor = torch.ops.lepton.linear(x, _m.weight, _m.bias)
                return result

            module.forward = whole  # type: ignore[assignment, method-assign]
        if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):

            def forward(x: Tensor, _m: Any = module) -> Tensor:
                result: Tensor = torch.ops.lepton.linear(x, _m.weight.t(), _m.bias)
                return result

            module.forward = forward


def _patch_activations(model: nn.Module) -> None:
    """Makes each GELU one operator: some activations spell its tanh form (Hendrycks & Gimpel, arXiv:1606.08415) out."""
    x = torch.linspace(-6, 6, 101)
    forms: dict[type, bool] = {}
    for module in model.modules():
        kind = type(module)
        if "GELU" not in kind.__name__ or next(module.parameters(), None) is not None:
            continue
        if kind not in forms:
            forms[kind] = torch.allclose(module(x), nn.functional.gelu(x, approximate="tanh"), rtol=1e-6, atol=1e-6)
        if forms[kind]:
            module.forward = lambda x: nn.functional.gelu(x, approximate="tanh")


def _patch_padding_warnings(model: nn.Module) -> None:
    """Turns off warnings of padding: GPT-2's family looks for it among the ids, which have no values in a trace."""
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = lambda *_, **__: None  # type: ignore[assignment]


def _patch_rotary_tables(model: nn.Module, recorder: Recorder) -> None:
    """Replaces modules that compute cos and sin of positions by a look-up in tables made by their own code."""
    for path, module in model.named_modules():
        if "RotaryEmbedding" not in type(module).__name__ or not hasattr(module, "config"):
            continue
        with torch.device("cpu"):
            real = type(module)(module.config)

        def forward(
            x: Tensor, position_ids: Tensor, *args: Any, _path: str = path, _real: Any = real, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            name = ".".join([_path, *(str(a) for a in (*args, *kwargs.values()) if isinstance(a, str))])
            if name not in recorder.tables:
                positions = torch.arange(recorder.max_positions)[None]
                with torch.no_grad():
                    cos, sin = _real(torch.zeros(1), positions, *args, **kwargs)
                recorder.tables[name] = (cos[0], sin[0])
            width = recorder.tables[name][0].shape[-1]
            result: tuple[Tensor, Tensor] = torch.ops.lepton.rotary_tables(position_ids, name, width)
            # The pre-run is eager: there the rotating function reads from this attribute which table it has.
            for t in result:
                t._lepton_table = name  # type: ignore[attr-defined]
            return result

        module.forward = forward


def _rotary_patch(original: Any, where: str, recorder: Recorder) -> Any:
    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if sin is None:  # GPT-J's: one tensor, sines and cosines
            return original(q, k, cos)
        if args or kwargs or q.dim() != 4 or k.dim() != 4:
            return original(q, k, cos, sin, *args, **kwargs)
        table = getattr(cos, "_lepton_table", None)
        key = (where, f"{q.shape[1]}x{q.shape[3]}x{k.shape[1]}x{cos.shape[-1]}")
        if key not in recorder.forms and table is not None:
            rows = slice(1, min(6, recorder.max_positions))
            c, s = (t[rows][None] for t in recorder.tables[table])
            recorder.forms[key] = rotary_form(original, tuple(q.shape), tuple(k.shape), c, s)
        form = recorder.forms.get(key)
        if form is None:
            return original(q, k, cos, sin)
        return tuple(torch.ops.lepton.rotary(x, cos, sin, form.interleaved, form.layout) for x in (q, k))

    return apply


@contextlib.contextmanager
def patched(model: nn.Module, *, max_positions: int) -> Iterator[Recorder]:
    """Patches `model`: within the context, running it emits torch.ops.lepton and records what was captured.

    Args:
        model: A transformers model on the meta device; its instances stay patched.
        max_positions: Rows of the rotary tables.
    """
    from transformers import AttentionInterface

    recorder = Recorder({id(m): p for p, m in model.named_modules()}, max_positions)
    _patch_norms(model)
    _patch_linears(model)
    _patch_activations(model)
    _patch_padding_warnings(model)
    _patch_rotary_tables(model, recorder)
    files = {sys.modules[type(m).__module__] for m in model.modules() if type(m).__module__ in sys.modules}
    with _lock:
        saved = [(f, f.apply_rotary_pos_emb) for f in files if hasattr(f, "apply_rotary_pos_emb")]
        AttentionInterface.register(INTERFACE, _attention_interface(recorder))
        # No mask function has this name, so transformers makes no mask: the captured attention implies it.
        configs: list[Any] = [m.config for m in model.modules() if hasattr(m, "config")]
        for config in configs:
            config._attn_implementation = INTERFACE
        try:
            for file, original in saved:
                patch = _rotary_patch(original, file.__name__, recorder)
                file.apply_rotary_pos_emb = patch  # type: ignore[attr-defined]
            yield recorder
        finally:
            for file, original in saved:
                file.apply_rotary_pos_emb = original  # type: ignore[attr-defined]
            AttentionInterface._global_mapping.pop(INTERFACE, None)
