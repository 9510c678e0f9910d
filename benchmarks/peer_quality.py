#!/usr/bin/env python3
"""Perplexity of an artifact or of a peer's model on the very same windows of tokens, each scored from an empty cache.

    python benchmarks/peer_quality.py windows ART --text FILE --max-windows 40 > windows.json
    python benchmarks/peer_quality.py lepton ART --windows windows.json
    PEER/bin/python benchmarks/peer_quality.py llama.cpp FILE.gguf --windows windows.json
    PEER/bin/python benchmarks/peer_quality.py ort-genai DIR --windows windows.json
    PEER/bin/python benchmarks/peer_quality.py openvino DIR --windows windows.json

`windows` cuts a text as `leptonc eval --window N` does, with the artifact's tokenizer: each begins with what the
tokenizer puts before every text, and each token of a window but its first is scored given those before it. The peers
run in environments of their own, where this file needs numpy and the peer's package: llama-cpp-python,
onnxruntime-genai, or openvino. Each prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np

# Log-probability of each token of a window but the first, given those before it; from an empty cache.
Score = Callable[[list[int]], Any]


def chosen(logits: Any, ids: list[int]) -> Any:
    """Returns the log-probabilities that logits [tokens, vocabulary] give to each next token, in float64."""
    if logits.shape[0] != len(ids) or logits.shape[1] <= max(ids):
        raise SystemExit(f"expected logits of {len(ids)} tokens over {max(ids) + 1} ids, found {logits.shape}")
    rows = np.asarray(logits[:-1], np.float64)
    rows = rows - rows.max(-1, keepdims=True)
    return rows[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(rows).sum(-1))


def cut(artifact: str, text: str, window: int, limit: int | None) -> dict[str, Any]:
    """Returns the windows of a text: token ids of each."""
    from pathlib import Path

    import runtime_edge
    from runtime_edge.cli.perplexity import Windows

    with runtime_edge.load(artifact) as model:
        cuts = Windows.of(model.tokenize(Path(text).read_text(encoding="utf-8")), model.tokenize(""), window)
    found = [ids for ids, _ in islice(cuts, limit)]
    return {"window": window, "windows": [each for each in found if len(each) > 1]}


def lepton(path: str, threads: int, length: int) -> Score:
    import runtime_edge

    return runtime_edge.load(path, threads=threads).score


def llama_cpp(path: str, threads: int, length: int) -> Score:
    import llama_cpp

    model = llama_cpp.Llama(
        path, n_ctx=length + 8, n_batch=length, n_threads=threads, n_threads_batch=threads, logits_all=True,
        verbose=False,
    )  # fmt: skip

    def score(ids: list[int]) -> Any:
        model.reset()
        model.eval(ids)
        return chosen(np.asarray(model.scores[: len(ids)]), ids)

    return score


def ort_genai(path: str, threads: int, length: int) -> Score:
    import onnxruntime_genai as og

    config = og.Config(path)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    def start() -> Any:
        wanted = og.GeneratorParams(model)
        wanted.set_search_options(max_length=length + 1, do_sample=False)
        return og.Generator(model, wanted)

    def score(ids: list[int]) -> Any:
        generator = start()
        generator.append_tokens(np.asarray([ids], np.int32))
        logits = np.array(generator.get_output("logits"), np.float32)[0]
        if len(logits) == len(ids):
            return chosen(logits, ids)
        # A graph that gives the last row alone is asked a token at a time.
        generator, rows = start(), []
        for token in ids:
            generator.append_tokens(np.asarray([[token]], np.int32))
            rows.append(np.array(generator.get_output("logits"), np.float32).reshape(-1, logits.shape[-1])[-1])
        return chosen(np.stack(rows), ids)

    return score


def openvino(path: str, threads: int, length: int) -> Score:
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(f"{path}/openvino_model.xml", "CPU", settings)
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.names}

    def score(ids: list[int]) -> Any:
        request.reset_state()
        row = np.asarray([ids], np.int64)
        given = {
            "input_ids": row, "attention_mask": np.ones_like(row),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None], "beam_idx": np.zeros(1, np.int32),
        }  # fmt: skip
        request.infer({name: value for name, value in given.items() if name in names})
        return chosen(np.array(request.get_tensor("logits").data, np.float32)[0], ids)

    return score


PEERS = {"lepton": lepton, "llama.cpp": llama_cpp, "ort-genai": ort_genai, "openvino": openvino}


def perplexity(score: Score, windows: list[list[int]]) -> dict[str, Any]:
    """Exp of the mean negative log-likelihood of all tokens but each window's first, summed in float64."""
    total, count = 0.0, 0
    for ids in windows:
        total -= float(np.sum(score(ids), dtype=np.float64))
        count += len(ids) - 1
    return {
        "perplexity": round(math.exp(total / count), 4), "nll": total / count, "tokens": count, "windows": len(windows)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("windows", *PEERS))
    parser.add_argument("model")
    parser.add_argument("--text", help="with `windows`")
    parser.add_argument("--window", type=int, default=512, help="with `windows`")
    parser.add_argument("--max-windows", type=int, help="with `windows`")
    parser.add_argument("--windows", help="file that `windows` made")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.what == "windows":
        if args.text is None:
            parser.error("windows needs --text")
        print(json.dumps(cut(args.model, args.text, args.window, args.max_windows)))
        return
    if args.windows is None:
        parser.error(f"{args.what} needs --windows")
    with open(args.windows, encoding="utf-8") as file:
        found = json.load(file)
    score = PEERS[args.what](args.model, args.threads, int(found["window"]))
    print(json.dumps({"peer": args.what, "model": args.model, **perplexity(score, found["windows"])}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
