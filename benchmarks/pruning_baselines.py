#!/usr/bin/env python3
"""Perplexity of a Llama-like decoder pruned as others prune it, without training: what `--prune` is compared with.

    python benchmarks/pruning_baselines.py SOURCE TEXT CALIBRATION [--method M…] [--share S…] [--max-windows N]

SOURCE is a Hugging Face directory; of CALIBRATION the first 32 windows of 512 tokens are read, the same for every
method. Methods, each at each share of the parameters that are no embedding:

    magnitude  MLP channels by the norms of their weights, the same number in every layer
    wanda-sp   the same by |W| |x| over the consuming matrix (Sun et al. 2024, in An et al. 2024's structured form)
    flap       channels and key/value groups by the fluctuation of what the consuming matrix reads, standardised and
               compared over all layers; biases make up for the mean of what is gone (An et al. 2024)
    slicegpt   the residual width, by principal components layer after layer; what the rotations between layers
               take counts, the untied embedding does not (Ashkboos et al. 2024)

What is removed is set to zero, which changes outputs as removing it does. Perplexity is counted as `leptonc eval`
counts it. Prints one line of JSON a method and share.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Tensor = torch.Tensor
WINDOW, BATCH, CALIBRATED = 512, 4, 32  # tokens, windows, windows


class Decoder:
    """A transformers model, the inputs of whose consuming matrices are masked; biases may be added to their outputs."""

    def __init__(self, path: str) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.layers: list[Any] = list(self.model.model.layers)
        config = self.model.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width, self.channels = config.hidden_size, config.intermediate_size
        self.head_dim = self.layers[0].self_attn.head_dim
        self.parameters = sum(p.numel() for layer in self.layers for p in layer.parameters() if p.dim() > 1)
        self.channel_cost = 3 * self.width
        self.group_cost = 2 * self.head_dim * self.width * (self.heads // self.groups + 1)

    def consumers(self) -> Iterator[tuple[int, str, Any]]:
        """Yields (layer, "group" or "channel", matrix) of each matrix that reads what heads or channels give."""
        for at, layer in enumerate(self.layers):
            yield at, "group", layer.self_attn.o_proj
            yield at, "channel", layer.mlp.down_proj

    @torch.no_grad()
    def perplexity(self, ids: Tensor) -> float:
        """Returns exp of the mean negative log-likelihood over token ids int64 [windows, length]."""
        total = 0.0
        for batch in ids.split(BATCH):
            logits = self.model(batch, use_cache=False).logits[:, :-1]
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()) * len(batch))
        return math.exp(total / len(ids))

    @torch.no_grad()
    def statistics(self, ids: Tensor) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
        """Returns mean and second moment, float64 [in] each, of what each consuming matrix reads of a text."""
        sums = {(at, kind): torch.zeros(2, m.in_features, dtype=torch.float64) for at, kind, m in self.consumers()}
        hooks = []
        for at, kind, matrix in self.consumers():

            def see(_: Any, args: tuple[Tensor], key: tuple[int, str] = (at, kind)) -> None:
                rows = args[0].flatten(0, 1)
                sums[key] += torch.stack([rows.sum(0), rows.square().sum(0)]).double()

            hooks.append(matrix.register_forward_pre_hook(see))
        for batch in ids.split(BATCH):
            self.model.model(batch, use_cache=False)
        for hook in hooks:
            hook.remove()
        return {key: (value[0] / ids.numel(), value[1] / ids.numel()) for key, value in sums.items()}

    def masked(self, removed: dict[tuple[int, str], Tensor], biases: dict[tuple[int, str], Tensor]) -> list[Any]:
        """Hooks that zero what is removed (bool [in] by consuming matrix) and add biases; returns their handles."""
        hooks = []
        for at, kind, matrix in self.consumers():
            key = (at, kind)
            if key in removed and bool(removed[key].any()):
                keep, bias = (~removed[key]).float(), biases.get(key)
                hooks.append(matrix.register_forward_pre_hook(lambda _, args, keep=keep: (args[0] * keep,)))
                if bias is not None:
                    hooks.append(matrix.register_forward_hook(lambda _, __, out, bias=bias: out + bias))
        return hooks


def uniform(decoder: Decoder, scores: Callable[[int], Tensor], share: float) -> dict[tuple[int, str], Tensor]:
    """Removes the channels of the lowest scores, as many in every layer."""
    count = round(share * decoder.parameters / len(decoder.layers) / decoder.channel_cost)
    found = {}
    for at in range(len(decoder.layers)):
        mask = torch.zeros(decoder.channels, dtype=torch.bool)
        mask[scores(at).topk(count, largest=False).indices] = True
        found[at, "channel"] = mask
    return found


def magnitude(decoder: Decoder, _: Any, share: float) -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
    """Norm of all weights that a channel has: its rows of gate and up, its column of down."""

    def scores(at: int) -> Tensor:
        mlp = decoder.layers[at].mlp
        squares = [mlp.gate_proj.weight.square().sum(1), mlp.up_proj.weight.square().sum(1)]
        found: Tensor = sum(squares, mlp.down_proj.weight.square().sum(0))
        return found

    return uniform(decoder, scores, share), {}


def wanda(decoder: Decoder, statistics: Any, share: float) -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
    """Sum over a column of |W_ij| times the norm of what it reads."""

    def scores(at: int) -> Tensor:
        found: Tensor = decoder.layers[at].mlp.down_proj.weight.abs().sum(0) * statistics[at, "channel"][1].sqrt()
        return found

    return uniform(decoder, scores, share), {}


@torch.no_grad()
def flap(decoder: Decoder, statistics: Any, share: float) -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
    """Fluctuation times the squared norm of the column, standardised within each matrix; lowest first, over all."""
    units: list[tuple[float, int, tuple[int, str], Tensor]] = []
    for at, kind, matrix in decoder.consumers():
        mean, second = statistics[at, kind]
        score = (second - mean.square()) * matrix.weight.square().sum(0)
        size = 1 if kind == "channel" else decoder.head_dim * decoder.heads // decoder.groups
        cost = decoder.channel_cost if kind == "channel" else decoder.group_cost
        score = score.view(-1, size).mean(1)
        score = (score - score.mean()) / score.std()
        places = torch.arange(matrix.in_features).view(-1, size)
        units += [(float(s), cost, (at, kind), place) for s, place in zip(score, places, strict=True)]
    removed = {(at, kind): torch.zeros(m.in_features, dtype=torch.bool) for at, kind, m in decoder.consumers()}
    left = share * decoder.parameters
    for _, cost, key, place in sorted(units, key=lambda unit: unit[0]):
        if left < cost / 2:
            break
        removed[key][place] = True
        left -= cost
    biases = {}
    for at, kind, matrix in decoder.consumers():
        gone = removed[at, kind]
        biases[at, kind] = (matrix.weight.double()[:, gone] @ statistics[at, kind][0][gone]).float()
    return removed, biases


@torch.no_grad()
def slicegpt(decoder: Decoder, ids: Tensor, share: float) -> tuple[list[Any], int]:
    """Projects the residual stream on principal components before each block; returns hooks and the width.

    A stream of width d whose basis is rotated and cut to k runs as one that is projected on the k directions.
    """
    slots = 2 * len(decoder.layers)
    # Parameters left: all matrices' other sides at the width k, and a k x k rotation for each block's shortcut.
    a, b, c = float(slots), decoder.parameters / decoder.width, -(1 - share) * decoder.parameters
    width = int((-b + math.sqrt(b * b - 4 * a * c)) / (2 * a))
    model, hooks = decoder.model.model, []

    def projection(states: list[Tensor]) -> Tensor:
        moment = torch.zeros(decoder.width, decoder.width, dtype=torch.float64)
        for state in states:
            rows = torch.nn.functional.rms_norm(state.flatten(0, 1), (decoder.width,)).double()
            moment += rows.T @ rows
        basis = torch.linalg.eigh(moment).eigenvectors[:, -width:]
        return (basis @ basis.T).float()

    states = [model.embed_tokens(batch) for batch in ids.split(BATCH)]
    places = torch.arange(ids.shape[1])[None]
    first = projection(states)
    hooks.append(model.embed_tokens.register_forward_hook(lambda _, __, out: out @ first))
    states = [state @ first for state in states]
    for layer in decoder.layers:
        middle: list[Tensor] = []
        hook = layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args, to=middle: to.append(args[0]))
        turns = [model.rotary_emb(state, places) for state in states]
        for state, turn in zip(states, turns, strict=True):
            layer(state, position_embeddings=turn)
        hook.remove()
        inner = projection(middle)
        # In place: the layer adds the same tensor to the MLP's output.
        hooks.append(
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda _, args, by=inner: (args[0].copy_(args[0] @ by),)
            )
        )
        states = [layer(state, position_embeddings=turn) for state, turn in zip(states, turns, strict=True)]
        outer = projection(states)
        hooks.append(layer.register_forward_hook(lambda _, __, out, by=outer: out @ by))
        states = [state @ outer for state in states]
    return hooks, width


METHODS = {"magnitude": magnitude, "wanda-sp": wanda, "flap": flap}


def windows_of(source: Path, text: Path, count: int) -> Tensor:
    """Token ids int64 [windows, 512] of a text's start."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text.read_text(encoding="utf-8")).ids
    whole = min(count, len(ids) // WINDOW)
    return torch.tensor(ids[: whole * WINDOW]).view(whole, WINDOW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--method", nargs="+", choices=[*METHODS, "slicegpt"], default=[*METHODS, "slicegpt"])
    parser.add_argument("--share", nargs="+", type=float, default=[0.1, 0.2, 0.3])
    parser.add_argument("--max-windows", type=int, default=40)
    args = parser.parse_args()
    torch.manual_seed(0)
    decoder = Decoder(str(args.source))
    text = windows_of(args.source, args.text, args.max_windows)
    ids = windows_of(args.source, args.calibration, CALIBRATED)
    base = decoder.perplexity(text)
    print(json.dumps({"method": None, "perplexity": round(base, 3), "windows": len(text)}), flush=True)
    statistics = decoder.statistics(ids) if {"wanda-sp", "flap"} & set(args.method) else None
    for method in args.method:
        for share in args.share:
            found: dict[str, Any] = {"method": method, "share": share}
            if method == "slicegpt":
                hooks, found["width"] = slicegpt(decoder, ids, share)
            else:
                hooks = decoder.masked(*METHODS[method](decoder, statistics, share))
            value = decoder.perplexity(text)
            for hook in hooks:
                hook.remove()
            found |= {"perplexity": round(value, 3), "increase": round(100 * (value / base - 1), 1)}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
