#!/usr/bin/env python3
"""Prefill and decode speed of a peer's model, measured as `speed.py` measures ours.

    PEER/bin/python benchmarks/peer_speed.py llama.cpp FILE.gguf
    PEER/bin/python benchmarks/peer_speed.py ort-genai DIR
    PEER/bin/python benchmarks/peer_speed.py openvino DIR

Greedy, the median of 4 repetitions, a process that does nothing else. Peers run in environments of their own, which
`prepare_peers.py` makes. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from typing import Any

TEXT = (
    "Edge computing is a distributed computing model that brings computation and data storage closer to the "
    "sources of data. "
)
REPETITIONS = 4
Times = tuple[float, list[float], list[float]]  # seconds to load, of each prompt, of each answer


def ort_genai(path: str, prompt: int, new: int, threads: int) -> Times:
    import onnxruntime_genai as og

    started = time.perf_counter()
    config = og.Config(path)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    ids = list(og.Tokenizer(model).encode(TEXT * 100))[:prompt]
    loaded, prefill, decode = time.perf_counter() - started, [], []
    for _ in range(REPETITIONS):
        wanted = og.GeneratorParams(model)
        wanted.set_search_options(max_length=prompt + new + 1, min_length=prompt + new + 1, do_sample=False)
        generator = og.Generator(model, wanted)
        started = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        prefill.append(time.perf_counter() - started)
        started = time.perf_counter()
        for _ in range(new):
            generator.generate_next_token()
        decode.append(time.perf_counter() - started)
        del generator
    return loaded, prefill, decode


def llama_cpp(path: str, prompt: int, new: int, threads: int) -> Times:
    import llama_cpp
    import numpy as np

    started = time.perf_counter()
    model = llama_cpp.Llama(
        path, n_ctx=prompt + new + 8, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    ids = model.tokenize((TEXT * 100).encode())[:prompt]
    loaded, prefill, decode = time.perf_counter() - started, [], []
    for _ in range(REPETITIONS):
        model.reset()
        started = time.perf_counter()
        model.eval(ids)
        prefill.append(time.perf_counter() - started)
        token, started = 1, time.perf_counter()
        for _ in range(new):
            model.eval([token])
            logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
            token = int(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).argmax())
        decode.append(time.perf_counter() - started)
    return loaded, prefill, decode


def openvino(path: str, prompt: int, new: int, threads: int) -> Times:
    import numpy as np
    import openvino as ov
    import openvino_genai as og

    started = time.perf_counter()
    pipe = og.LLMPipeline(path, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})
    loaded, prefill, decode = time.perf_counter() - started, [], []
    ids = pipe.get_tokenizer().encode(TEXT * 60).input_ids.data
    config = og.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = new + 1, True, False
    for repetition in range(REPETITIONS):  # another prompt each time: the pipeline keeps prefixes
        row = np.ascontiguousarray(ids[:, repetition + 1 : repetition + 1 + prompt])
        given = og.TokenizedInputs(ov.Tensor(row), ov.Tensor(np.ones((1, prompt), dtype=np.int64)))
        metrics: Any = pipe.generate(given, config).perf_metrics
        prefill.append(metrics.get_ttft().mean / 1e3)
        decode.append(metrics.get_tpot().mean / 1e3 * new)
    return loaded, prefill, decode


PEERS = {"llama.cpp": llama_cpp, "ort-genai": ort_genai, "openvino": openvino}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    load, prefill, decode = PEERS[args.peer](args.model, args.prompt, args.new, args.threads)
    found = {
        "peer": args.peer,
        "load_s": round(load, 2),
        "prefill_tok_s": round(args.prompt / statistics.median(prefill), 1),
        "decode_tok_s": round(args.new / statistics.median(decode), 1),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
