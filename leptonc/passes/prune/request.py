"""The request of `--prune`, read from its text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from leptonc.errors import InputError
from leptonc.passes.prune.plan import Cut, cuts_of

_LARGEST_PLAN = 2**24  # bytes
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)
_LATENCY = re.compile(r"latency:(\d+(?:\.\d+)?)\s*%", re.ASCII)
_WIDTH = re.compile(r"width:(\d+(?:\.\d+)?)\s*%", re.ASCII)
_LAYERS = re.compile(r"layers:(\d+)", re.ASCII)


@dataclass(frozen=True)
class Request:
    """A request. Besides `text`, one of these is not zero or empty.

    Attributes:
        text: The request as the user wrote it.
        share: Part of the weights of all layers that goes.
        latency: Part of the time that has to be saved.
        width: Part of the residual stream's features that goes; see `leptonc.build.steps.prune_width`.
        layers: Number of whole layers to cut.
        cuts: Cuts of a plan.
        sparse: Whether weights become 2:4 sparse, and nothing is cut; see `leptonc.build.steps.prune_pattern`.
    """

    text: str
    share: float = 0.0
    latency: float = 0.0
    width: float = 0.0
    layers: int = 0
    cuts: tuple[Cut, ...] = ()
    sparse: bool = False


def parse_prune(text: str) -> Request:
    """Reads `25%`, `latency:30%`, `width:10%`, `layers:4` or the name of a plan's file.

    Raises:
        InputError: The text is none of these, or nothing or everything would go.
    """
    for pattern, field, what in ((_SHARE, "share", ""), (_LATENCY, "latency", "latency:"), (_WIDTH, "width", "width:")):
        if (match := pattern.fullmatch(text)) is not None:
            if not 0 < float(match[1]) < 100:
                raise InputError(
                    f"expected a {field} above 0 % and below 100 %, found {text}", hint=f"--prune {what}20%"
                )
            return Request(text, **{field: float(match[1]) / 100})  # type: ignore[arg-type]
    if (count := _LAYERS.fullmatch(text)) is not None:
        if int(count[1]) == 0:
            raise InputError("expected at least one layer to prune, found layers:0", hint="--prune layers:2")
        return Request(text, layers=int(count[1]))
    if text.endswith(".json"):
        return Request(Path(text).name, cuts=_plan(Path(text)))
    raise InputError(
        f"expected of --prune a share, latency:PCT, width:PCT, layers:N, 2:4 or a plan's .json file, found {text!r}",
        hint="--prune 20%, latency:20%, width:10%, layers:4, 2:4 or plan.json",
    )


def _plan(path: Path) -> tuple[Cut, ...]:
    try:
        if path.stat().st_size > _LARGEST_PLAN:
            raise InputError(f"expected a plan of at most {_LARGEST_PLAN:,} bytes, found more in {path}")
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"expected a plan at {path}, found: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected JSON in {path}, found: {error}", hint="see docs/guides/prune.md") from error
    if not isinstance(record, dict) or not record:
        raise InputError(f"expected a JSON object with names of blocks in {path}, found something else")
    return cuts_of(record)
