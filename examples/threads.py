"""Several threads, one model: each has a context of its own, so that answers are made at the same time.

Run it: python examples/threads.py smollm2.lepton
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import runtime_edge
from runtime_edge import Model

PROMPTS = ("Name three rivers.", "What is a compiler?", "Write a line about rain.", "Why is the sky blue?")


def answers(model: Model, prompts: tuple[str, ...], workers: int = 2) -> list[str]:
    """Answers all prompts, `workers` of them at a time; returns the answers in the order of the prompts."""

    def answer(prompt: str) -> str:
        # A context shares the weights and has its own cache. Calls of `model` itself are safe in any thread too, and
        # wait for their turn: one answer at a time.
        return model.context().generate([{"role": "user", "content": prompt}], max_new_tokens=40).text

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(answer, prompts))


def main(artifact: str) -> None:
    """Prints each prompt with its answer."""
    with runtime_edge.load(artifact) as model:
        for prompt, text in zip(PROMPTS, answers(model, PROMPTS), strict=True):
            print(f"{prompt} -> {text.strip()}")


if __name__ == "__main__":
    main(sys.argv[1])
