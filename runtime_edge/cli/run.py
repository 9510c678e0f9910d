"""`run`: one answer, a chat, an embedding, or a classification."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from runtime_edge.cli import options
from runtime_edge.cli.app import INTERRUPTED, fail

if TYPE_CHECKING:
    from runtime_edge.cli.chat.screen import Screen
    from runtime_edge.model import Model
    from runtime_edge.tasks.results import Stats

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_TEXT_GENERATION_ONLY = {
    *("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed", "drafts"),
    *("system", "raw", "messages", "tools", "chat_template", "variables"),
}
_FLAGS = {"variables": "template-variable"}
_message_option = partial(click.option, cls=options.GroupedOption, group="Messages")
_answer_option = partial(click.option, cls=options.GroupedOption, group="Answer")
_terminal_option = partial(click.option, cls=options.GroupedOption, group="Chat in a terminal")


def _sampling(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that go to `Model.generate` as they are."""
    added = (
        _answer_option(
            "--max-new-tokens",
            type=click.IntRange(min=1),
            default=512,
            show_default=True,
            metavar="N",
            help="Tokens that an answer may have.",
        ),
        _answer_option(
            "--temperature",
            type=click.FloatRange(min=0),
            default=0.0,
            show_default=True,
            metavar="T",
            help="0 takes the likeliest token each time; above, tokens are drawn.",
        ),
        _answer_option("--top-k", type=click.IntRange(min=0), metavar="K", help="Draw from the K likeliest tokens."),
        _answer_option(
            "--top-p",
            type=click.FloatRange(0, 1, min_open=True),
            metavar="P",
            help="Draw from the fewest likeliest that together have probability P.",
        ),
        _answer_option(
            "--min-p",
            type=click.FloatRange(0, 1),
            metavar="P",
            help="Draw from those at least P times as likely as the likeliest.",
        ),
        _answer_option(
            "--repetition-penalty",
            type=click.FloatRange(min=0, min_open=True),
            metavar="X",
            help="Above 1, makes tokens that were there before less likely.",
        ),
        _answer_option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given repeatedly."),
        _answer_option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="End an answer after so long, within a run of the model too.",
        ),
        options.seed,
        _answer_option(
            "--drafts/--no-drafts",
            default=False,
            show_default=True,
            help="Copy what may come next from earlier text and check it in one run: faster where an answer repeats.",
        ),
    )
    for option in reversed(added):
        command = option(command)
    return command


def _chat_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what goes to the chat template."""
    added = (
        _message_option(
            "--messages", type=_FILE, metavar="FILE", help="Take the conversation from a JSON file, in PROMPT's place."
        ),
        _message_option("--tools", type=_FILE, metavar="FILE", help="JSON list of the tools that the model may call."),
        _message_option("--chat-template", metavar="NAME", help="Which of the model's chat templates to use, by name."),
        _message_option(
            "--template-variable",
            "variables",
            multiple=True,
            metavar="NAME=VALUE",
            help="A variable of the chat template; VALUE is JSON (false, 3), else text. May be given repeatedly.",
        ),
    )
    for option in reversed(added):
        command = option(command)
    return command


def _terminal_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what a chat in a terminal looks like."""
    added = (
        _terminal_option(
            "--markdown/--no-markdown",
            default=True,
            show_default=True,
            help="In a chat, render the Markdown of answers. /markdown changes it during the chat.",
        ),
        _terminal_option(
            "--history/--no-history",
            default=True,
            show_default=True,
            help="In a chat, keep what is typed for later chats, in a file of the cache folder (LEPTON_CACHE).",
        ),
    )
    for option in reversed(added):
        command = option(command)
    return command


@click.command(cls=options.GroupedCommand)
@options.artifact
@click.argument("prompt", required=False)
@_message_option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@_message_option("--raw", is_flag=True, help="Continue the prompt as it is, without the model's chat template.")
@click.option("--prompt-name", metavar="NAME", help="Put the model's prompt of this name before a text to embed.")
@_chat_options
@_sampling
@_terminal_options
@options.threads
@options.as_json
def run(
    artifact: Path,
    prompt: str | None,
    system: str | None,
    raw: bool,
    prompt_name: str | None,
    messages: Path | None,
    tools: Path | None,
    chat_template: str | None,
    variables: tuple[str, ...],
    markdown: bool,
    history: bool,
    threads: int | None,
    as_json: bool,
    **sampling: Any,
) -> int:
    """Run a model: answer a prompt, chat, embed or classify a text.

    The answer streams to stdout, its speed goes to stderr. Without PROMPT, the prompt is read from a pipe; on a
    terminal a chat begins, in which /help lists commands and keys, Ctrl-C ends an answer and Ctrl-D the chat.
    Embeddings and classifications are printed as JSON.
    """
    import runtime_edge
    from runtime_edge.manifest import TEXT_GENERATION
    from runtime_edge.verify import read_manifest

    read_manifest(artifact)  # a path that is no artifact is told of before anything else
    chat = {
        "tools": None if tools is None else _json("--tools", tools),
        "chat_template": chat_template,
        "chat_template_kwargs": _variables(variables) or None,
    }
    chat = {name: value for name, value in chat.items() if value is not None}
    if raw and (system is not None or messages is not None or chat):
        fail("--system, --messages, --tools, --chat-template and --template-variable need what --raw leaves out")
    if messages is not None and (prompt is not None or system is not None):
        fail("--messages has the whole conversation: give neither PROMPT nor --system beside it")
    is_chat = prompt is None and messages is None and sys.stdin.isatty()
    if is_chat and (raw or as_json):
        fail(f"{'--raw' if raw else '--json'} needs a PROMPT")
    screen = _screen() if is_chat else None
    with nullcontext() if screen is None else screen.loading():
        model = runtime_edge.load(artifact, threads=threads)
    with model:
        if model.manifest.task != TEXT_GENERATION:
            _refuse(_TEXT_GENERATION_ONLY & options.given(), model)
            return _encode(model, _given(prompt), prompt_name, sampling["timeout"])
        if prompt_name is not None:
            fail("--prompt-name is for models that embed texts; this one generates: see --system")
        if screen is not None:
            return _chat(model, system, sampling | chat, screen, is_markdown=markdown, has_history=history)
        record = model.manifest.tokenizer
        has_template = record.chat_template is not None or bool(record.chat_templates)
        asked: Any
        if messages is not None:
            asked = _json("--messages", messages)
        else:
            use_template = not raw and (has_template or system is not None or bool(chat))
            text = _given(prompt)
            asked = [*_system(system), _message("user", text)] if use_template else text
        if as_json:
            return _as_json(model, asked, sampling | chat)
        return _answer(model, asked, sampling | chat)


def _json(option: str, path: Path) -> list[Any]:
    """Reads a file with a JSON list."""
    from runtime_edge.errors import RequestError

    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{option}: expected JSON in {path.name}, found: {str(error)[:200]}") from error
    if not isinstance(values, list):
        raise RequestError(f"{option}: expected a JSON list in {path.name}, found {type(values).__name__}")
    return values


def _variables(given: tuple[str, ...]) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            fail(f"--template-variable: expected NAME=VALUE, found {text!r}")
        try:
            variables[name] = json.loads(value)
        except (ValueError, RecursionError):
            variables[name] = value
    return variables


def _refuse(given: set[str], model: Model) -> None:
    """Refuses options that a model without answers does nothing with."""
    from runtime_edge.errors import RequestError

    if given:
        name = sorted(given)[0].replace("_", "-")
        raise RequestError(
            f"--{_FLAGS.get(name, name)}: expected a model for text generation, found one for {model.manifest.task}",
            hint="leave the option out",
        )


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


def _answer(model: Model, prompt: Any, sampling: dict[str, Any]) -> int:
    """Streams an answer to stdout; returns the exit code. Ctrl-C ends it after the token in work."""
    from runtime_edge.cli.chat.terminal import printable, with_any_letter

    shown = printable if sys.stdout.isatty() else str
    with_any_letter(sys.stdout)
    with _cancelled_by_interrupt() as cancel:
        for chunk in model.stream(prompt, cancel=cancel, **sampling):
            click.echo(shown(chunk.text), nl=False)
    click.echo()
    if chunk.stats is not None:
        click.echo(_speed(chunk.stats, chunk.finish_reason), err=True)
    return INTERRUPTED if chunk.finish_reason == "cancelled" else 0


def _as_json(model: Model, prompt: Any, sampling: dict[str, Any]) -> int:
    from runtime_edge.cli.console import print_json

    with _cancelled_by_interrupt() as cancel:
        generation = model.generate(prompt, cancel=cancel, **sampling)
    rates = {"prefill_tok_s": generation.stats.prefill_tok_s, "decode_tok_s": generation.stats.decode_tok_s}
    print_json({**dataclasses.asdict(generation), "stats": {**dataclasses.asdict(generation.stats), **rates}})
    return INTERRUPTED if generation.finish_reason == "cancelled" else 0


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


def _screen() -> Screen:
    from runtime_edge.cli.chat.screen import Screen

    return Screen()


def _chat(
    model: Model, system: str | None, options: dict[str, Any], screen: Screen, *, is_markdown: bool, has_history: bool
) -> int:
    from runtime_edge.cli.chat.loop import chat

    chat(model, system, options, screen, is_markdown=is_markdown, has_history=has_history)
    return 0


def _encode(model: Model, text: str, prompt_name: str | None, timeout: float | None) -> int:
    from runtime_edge.cli.console import print_json
    from runtime_edge.manifest import TEXT_EMBEDDING

    if model.manifest.task == TEXT_EMBEDDING:
        print_json({"embedding": model.encode([text], prompt_name=prompt_name, timeout=timeout)[0].tolist()})
    elif prompt_name is not None:
        fail("--prompt-name is for models that embed texts; this one classifies")
    else:
        print_json(dataclasses.asdict(model.classify([text], timeout=timeout)[0]))
    return 0
