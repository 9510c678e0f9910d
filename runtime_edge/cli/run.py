"""`run`: one answer, a chat, an embedding, or a classification."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from runtime_edge.cli import options
from runtime_edge.cli.app import INTERRUPTED, fail

if TYPE_CHECKING:
    from runtime_edge.model import Model
    from runtime_edge.tasks.results import Stats

_EXIT, _RESET = "/exit", "/reset"
_WELCOME = f"{_RESET} starts over, {_EXIT} or Ctrl-D ends; Ctrl-C stops an answer."


def _sampling(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that go to `Model.generate` as they are."""
    added = (
        click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True, metavar="N"),
        click.option(
            "--temperature",
            type=click.FloatRange(min=0),
            default=0.0,
            show_default=True,
            metavar="T",
            help="0 takes the likeliest token each time; above, tokens are drawn.",
        ),
        click.option("--top-k", type=click.IntRange(min=0), metavar="K", help="Draw from the K likeliest."),
        click.option(
            "--top-p",
            type=click.FloatRange(0, 1, min_open=True),
            metavar="P",
            help="Draw from the fewest likeliest that together have probability P.",
        ),
        click.option(
            "--min-p",
            type=click.FloatRange(0, 1),
            metavar="P",
            help="Draw from those at least P times as likely as the likeliest.",
        ),
        click.option(
            "--repetition-penalty",
            type=click.FloatRange(min=0, min_open=True),
            metavar="X",
            help="Above 1, makes tokens that were there before less likely.",
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given repeatedly."),
        options.seed,
        click.option(
            "--drafts/--no-drafts",
            default=False,
            show_default=True,
            help="Copy what may come next from earlier text and check it in one run: faster where an answer repeats.",
        ),
    )
    for option in reversed(added):
        command = option(command)
    return command


@click.command()
@options.artifact
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the model's chat template.")
@click.option("--prompt-name", metavar="NAME", help="Put the model's prompt of this name before a text to embed.")
@_sampling
@options.threads
@options.as_json
def run(
    artifact: Path,
    prompt: str | None,
    system: str | None,
    raw: bool,
    prompt_name: str | None,
    threads: int | None,
    as_json: bool,
    **sampling: Any,
) -> int:
    """Run a model: answer a prompt, chat, embed or classify a text.

    The answer streams to stdout, its speed goes to stderr. Without PROMPT, the prompt is read from stdin; on a
    terminal that is a chat. Embeddings and classifications are printed as JSON.
    """
    import runtime_edge
    from runtime_edge.manifest import TEXT_GENERATION

    if raw and system is not None:
        fail("--system needs the chat template that --raw leaves out")
    is_chat = prompt is None and sys.stdin.isatty()
    if is_chat and (raw or as_json):
        fail(f"{'--raw' if raw else '--json'} needs a PROMPT")
    with runtime_edge.load(artifact, threads=threads) as model:
        if model.manifest.task != TEXT_GENERATION:
            return _encode(model, _given(prompt), prompt_name)
        if prompt_name is not None:
            fail("--prompt-name is for models that embed texts; this one generates: see --system")
        if is_chat:
            return _chat(model, system, sampling)
        use_template = not raw and (model.manifest.tokenizer.chat_template is not None or system is not None)
        text = _given(prompt)
        asked: str | list[dict[str, str]] = [*_system(system), _message("user", text)] if use_template else text
        if as_json:
            return _as_json(model, asked, sampling)
        _, code = _answer(model, asked, sampling)
        return code


def _given(prompt: str | None) -> str:
    """The prompt, from stdin where it was not an argument."""
    from runtime_edge.errors import RequestError

    text = sys.stdin.read() if prompt is None else prompt
    if not text.strip():
        raise RequestError("prompt: expected a text, found an empty one", hint='give it as in: run ART "PROMPT"')
    return text


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _system(text: str | None) -> list[dict[str, str]]:
    return [] if text is None else [_message("system", text)]


def _answer(model: Model, prompt: Any, sampling: dict[str, Any]) -> tuple[str, int]:
    """Streams an answer to stdout; returns it with the exit code. Ctrl-C ends it after the token in work."""
    pieces: list[str] = []
    with _cancelled_by_interrupt() as cancel:
        for chunk in model.stream(prompt, cancel=cancel, **sampling):
            pieces.append(chunk.text)
            click.echo(chunk.text, nl=False)
    click.echo()
    if chunk.stats is not None:
        click.echo(_speed(chunk.stats, chunk.finish_reason), err=True)
    return "".join(pieces), INTERRUPTED if chunk.finish_reason == "cancelled" else 0


def _as_json(model: Model, prompt: Any, sampling: dict[str, Any]) -> int:
    from runtime_edge.cli.console import print_json

    with _cancelled_by_interrupt() as cancel:
        made = model.generate(prompt, cancel=cancel, **sampling)
    rates = {"prefill_tok_s": made.stats.prefill_tok_s, "decode_tok_s": made.stats.decode_tok_s}
    print_json({**dataclasses.asdict(made), "stats": {**dataclasses.asdict(made.stats), **rates}})
    return INTERRUPTED if made.finish_reason == "cancelled" else 0


def _speed(stats: Stats, reason: str | None) -> str:
    run_tokens = stats.prompt_tokens - stats.cached_tokens
    drafts = f"; drafts {stats.accepted} of {stats.drafted}" if stats.drafted else ""
    return (
        f"[prompt {run_tokens} tokens, {stats.prefill_tok_s:.0f} tok/s; "
        f"answer {stats.new_tokens} tokens, {stats.decode_tok_s:.0f} tok/s{drafts}; {reason}]"
    )


@contextmanager
def _cancelled_by_interrupt() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C sets; a second Ctrl-C raises KeyboardInterrupt as ever."""
    cancel = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        cancel.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


def _chat(model: Model, system: str | None, sampling: dict[str, Any]) -> int:
    """Talks with the user until the end of input."""
    model.tokenize([*_system(system), _message("user", "Hello")])  # says at once where there is no template
    click.echo(_WELCOME, err=True)
    history = _system(system)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            click.echo(err=True)
            return 0
        if text == _EXIT:
            return 0
        if text == _RESET:
            history = _system(system)
        elif text:
            asked = [*history, _message("user", text)]
            answer, _ = _answer(model, asked, sampling)
            history = [*asked, _message("assistant", answer)]


def _encode(model: Model, text: str, prompt_name: str | None) -> int:
    from runtime_edge.cli.console import print_json
    from runtime_edge.manifest import TEXT_EMBEDDING

    if model.manifest.task == TEXT_EMBEDDING:
        print_json({"embedding": model.encode([text], prompt_name=prompt_name)[0].tolist()})
    elif prompt_name is not None:
        fail("--prompt-name is for models that embed texts; this one classifies")
    else:
        print_json(dataclasses.asdict(model.classify([text])[0]))
    return 0
