"""Runs the parts of a model on tensors without data, and exports each as a program of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from leptonc.errors import CaptureError, InputError, LeptonError
from leptonc.frontend.interface import PartForm
from leptonc.frontend.patches import Recorder
from leptonc.frontend.tasks.base import Traced
from leptonc.quiet import quiet
from runtime_edge import part_record as roles

_TYPES = {"int64": torch.int64, "float32": torch.float32}
# Symbolic sizes in the run that a trace begins with: all differ, and torch takes none of them for a constant.
_SIZES = {roles.BATCH: 2, roles.LENGTH: 7}
_FURTHER = (5, 11, 13, 17, 19)


def export(
    traced: Mapping[str, tuple[PartForm, Traced]], model: nn.Module, recorder: Recorder, limit: int | None
) -> dict[str, torch.export.ExportedProgram]:
    """Runs every part, counts what was captured of the model, and exports the parts.

    Args:
        traced: The form and the traced module of each part, by its name.
        model: The model that they are parts of.
        recorder: Records what the trace captures.
        limit: The greatest length in tokens that the model was made for, or None where it has no limit.

    Raises:
        CaptureError: The model cannot be captured whole.
    """
    family, programs = type(model).__name__, {}
    try:
        with torch.no_grad(), quiet():  # torch.export logs its own steps
            for form, module in traced.values():
                recorder.begin(keeps=form.keeps is not None)
                module(*_examples(form))
            _count(model, recorder)
            for name, (form, module) in traced.items():
                recorder.begin(keeps=form.keeps is not None)
                args = _examples(form)
                program = torch.export.export(module, args, dynamic_shapes=(_dynamic(form, limit),), strict=False)
                program.graph.eliminate_dead_code()  # a pooler that nothing reads needs no weights
                programs[name] = program
            return programs
    except LeptonError:
        raise
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")
        raise CaptureError(
            f"{_place(error, recorder) or family}: expected a forward pass that runs on shapes alone, found "
            f"{type(error).__name__}: {line[:300]}",
            hint="this architecture is not supported yet",
        ) from error


def _examples(form: PartForm) -> tuple[torch.Tensor, ...]:
    """Returns a part's arguments as tensors without data."""
    names = [name for port in form.traced for name in port.dims if isinstance(name, str) and name not in _SIZES]
    sizes = {**_SIZES, **dict(zip(dict.fromkeys(names), _FURTHER, strict=False))}
    shapes = [[sizes[d] if isinstance(d, str) else d for d in port.dims] for port in form.traced]
    types = [_TYPES[port.dtype] for port in form.traced]
    return tuple(torch.zeros(shape, dtype=dtype, device="meta") for shape, dtype in zip(shapes, types, strict=True))


def _dynamic(form: PartForm, limit: int | None) -> tuple[dict[int, Any], ...]:
    """Returns the symbolic sizes of each of a part's arguments, by axis. `limit` is the greatest length in tokens."""
    sizes: dict[str, Any] = {}
    for port in form.traced:
        for name in port.dims:
            if isinstance(name, str) and name not in sizes:
                sizes[name] = torch.export.Dim(name, max=limit if name == roles.LENGTH else None)
    return tuple({i: sizes[d] for i, d in enumerate(port.dims) if isinstance(d, str)} for port in form.traced)


def check_tables(recorder: Recorder) -> None:
    """Refuses rotary tables with NaN or infinity, which a base or factor of 0 gives, for example."""
    for name, tables in recorder.tables.items():
        if not all(bool(torch.isfinite(table).all()) for table in tables):
            raise InputError(
                f"{name}: expected finite rotary tables, found NaN or infinity",
                hint="check `rope_parameters` (or rope_theta and rope_scaling) in the config",
            )


def _place(error: Exception, recorder: Recorder) -> str:
    """Returns the innermost module whose code was running when `error` was raised, or ""."""
    place, trace = "", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        path = recorder.paths.get(id(module))
        place = f"{path} ({type(module).__name__})" if path else place
        trace = trace.tb_next
    return place


def _count(model: nn.Module, recorder: Recorder) -> None:
    """Refuses a model any of whose attention modules did not attend through the interface, once each."""
    candidates = {
        path: module for path, module in model.named_modules()
        if "Attention" in type(module).__name__
    }  # fmt: skip
    inner = {p for p in candidates if not any(q.startswith(p + ".") for q in candidates)}
    missed = sorted(inner - set(recorder.attended))
    if missed:
        raise CaptureError(
            f"{missed[0]} ({type(candidates[missed[0]]).__name__}): expected it to attend through transformers' "
            f"attention interface once, found that it does not ({len(missed)} of {len(inner)} attention modules)",
            hint="this architecture is not supported yet",
        )
    if not recorder.attended:
        raise CaptureError(
            f"{type(model).__name__}: expected attention layers, found none",
            hint="this architecture is not supported yet",
        )
    twice = sorted({p for p in recorder.kept if recorder.kept.count(p) > 1})
    if twice:
        raise CaptureError(f"{twice[0]}: expected one attention a module, found several")
    if len(recorder.updated) != len(recorder.kept):
        raise CaptureError(
            f"{type(model).__name__}: expected one key/value cache update a layer, found {len(recorder.updated)} for "
            f"{len(recorder.kept)} layers",
            hint="layers that share or do without a cache are not supported yet",
        )
