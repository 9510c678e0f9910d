"""A chat in a terminal: the conversation is a list of messages, and each answer is printed while it is made.

Run it: python examples/chat.py smollm2.lepton
"""

import sys
from collections.abc import Iterator

import runtime_edge
from runtime_edge import Chunk, Model


def main(artifact: str) -> None:
    """Reads a message a line, until the end of input, and answers each."""
    messages: list[dict[str, str]] = []
    with runtime_edge.load(artifact) as model:
        while text := read():
            messages.append({"role": "user", "content": text})
            answer = ""
            for chunk in stream(model, messages):
                print(chunk.text, end="", flush=True)
                answer += chunk.text
            print()
            # The model keeps what it read: the next turn goes on where this one ended, and reads the new message alone.
            messages.append({"role": "assistant", "content": answer})


def stream(model: Model, messages: list[dict[str, str]]) -> Iterator[Chunk]:
    """Streams an answer; takes the oldest turns away where the conversation is longer than the model can read."""
    while True:
        try:
            return model.stream(messages, max_new_tokens=300)  # the length is checked here, before the first token
        except runtime_edge.PromptTooLongError:
            if len(messages) == 1:
                raise
            del messages[:2]


def read() -> str:
    """Returns the next line, or an empty text at the end of input."""
    try:
        return input("> ")
    except EOFError:
        return ""


if __name__ == "__main__":
    main(sys.argv[1])
