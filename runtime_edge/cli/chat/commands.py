"""What begins with a slash: a table of commands, and what each does."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime_edge.cli.chat import files
from runtime_edge.cli.chat.conversation import Conversation
from runtime_edge.cli.chat.session import Session
from runtime_edge.cli.console import megabytes
from runtime_edge.errors import RequestError
from runtime_edge.process import resident

_OFF = "off"
_KEYS = (
    ("Enter", "sends the message"),
    ("Alt-Enter", "begins a new line; so does a backslash before Enter"),
    ('"""', "begins and ends a message of several lines"),
    ("Up, Ctrl-R", "what was typed before"),
    ("Ctrl-C", "ends an answer; twice at the prompt, the chat"),
    ("Ctrl-D", "ends the chat"),
)


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: With its slash.
        argument: What follows it, as /help shows it; empty for none.
        help: What it does, without an argument where that differs.
        run: Does it, with what follows the name.
        aliases: Other names.
        words: What may follow, for completion; None for a file's name.
        forced: The same, after a name with an exclamation mark; None where there is no such form.
    """

    name: str
    argument: str
    help: str
    run: Callable[[Session, str], None]
    aliases: tuple[str, ...] = ()
    words: tuple[str, ...] | None = ()
    forced: Callable[[Session, str], None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return (self.name, *self.aliases)


def is_command(text: str) -> bool:
    """Whether a message is for the chat: it begins with a slash and a letter.

    Of several lines it is one only where the command exists, so that pasted code is sent.
    """
    if not re.match(r"/[A-Za-z]", text):
        return False
    return "\n" not in text.strip() or text.split(maxsplit=1)[0].removesuffix("!") in _BY_NAME


def run(session: Session, text: str) -> None:
    """Runs a command.

    Raises:
        RequestError: There is no such command, or it cannot do what is asked.
        OSError: A file cannot be read or written.
    """
    name, *rest = text.split(maxsplit=1)
    argument = rest[0].strip() if rest else ""
    command = _BY_NAME.get(name.removesuffix("!"))
    if command is None:
        raise RequestError(_unknown(name))
    action = command.forced if name.endswith("!") else command.run
    if action is None:
        raise RequestError(f"{command.name} has no form with an exclamation mark")
    if argument and not command.argument:
        raise RequestError(f"{command.name} takes nothing after it")
    action(session, argument)


def arguments(name: str) -> Sequence[str] | None:
    """What may follow a command, as words, or None for a file's name (raises KeyError)."""
    return _BY_NAME[name.removesuffix("!")].words


def names() -> list[str]:
    """Names of all commands, without aliases."""
    return [command.name for command in COMMANDS]


def _unknown(name: str) -> str:
    if "/" in name[1:]:
        return f"no such command: {name}; /file PATH reads a file, and a space before the slash sends the line as it is"
    close = difflib.get_close_matches(name.lower(), _BY_NAME, n=1, cutoff=0.5)
    meant = f"did you mean {close[0]}?" if close else "/help lists them"
    return f"no such command: {name}; {meant}"


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _help(session: Session, argument: str) -> None:
    session.screen.pairs((f"{command.name} {command.argument}", command.help) for command in COMMANDS)
    session.screen.note("")
    session.screen.pairs(_KEYS)


def _clear(session: Session, argument: str) -> None:
    session.conversation = Conversation(session.conversation.instructions)
    session.files.clear()
    session.screen.note("Cleared; the system message stays." if session.conversation.instructions else "Cleared.")


def _system(session: Session, argument: str) -> None:
    if not argument:
        told = [str(message.get("content")) for message in session.conversation.instructions]
        session.screen.note("\n".join(told) or "No system message is set: the model's own holds, if it has one.")
        return
    session.instruct(None if argument == _OFF else argument)
    session.screen.note("The system message is taken away." if argument == _OFF else "The system message is set.")


def _save(session: Session, argument: str, *, replaces: bool = False) -> None:
    messages = session.conversation.all_messages
    path = files.path_of(argument)
    if not session.conversation.turns:
        raise RequestError("nothing was said yet: there is nothing to save")
    files.save(path, messages, replaces=replaces)
    session.screen.note(f"Saved {_counted(len(messages), 'message')}.")


def _replace(session: Session, argument: str) -> None:
    _save(session, argument, replaces=True)


def _load(session: Session, argument: str) -> None:
    messages = files.load(files.path_of(argument))
    conversation = session.checked(messages)
    tokens = session.count(messages, answer=False)
    count = _counted(len(messages), "message")
    session.screen.note(f"Loaded {count}: {tokens:,} tokens, and the model takes {session.context:,}.")
    session.go_on(conversation)


def _file(session: Session, argument: str) -> None:
    if argument == _OFF:
        session.files.clear()
        session.screen.note("No file goes with the next message.")
    elif not argument:
        session.screen.note(f"With the next message: {', '.join(session.files) or 'no file'}.")
    else:
        path = files.path_of(argument)
        tokens = session.attach(path.name, files.read_text(path))
        session.screen.note(f"{path.name}, {tokens:,} tokens, goes with the next message.")


def _stats(session: Session, argument: str) -> None:
    conversation, stats = session.conversation, session.stats
    tokens = session.count(conversation.messages, answer=False)
    turns = _counted(len(conversation.turns), "turn")
    if conversation.dropped:
        turns += f", the oldest {conversation.dropped} left out"
    rows = [("context", f"{tokens:,} of {session.context:,} tokens; {turns}")]
    if stats is not None:
        cached, new = stats.cached_tokens, stats.prompt_tokens - stats.cached_tokens
        rows += [
            ("prompt", f"{new:,} tokens read at {stats.prefill_tok_s:,.0f} tokens/s; {cached:,} were in the cache"),
            ("first token", f"after {stats.prefill_s:.2f} s"),
            ("answer", f"{stats.new_tokens:,} tokens at {stats.decode_tok_s:,.1f} tokens/s"),
        ]
    if (memory := resident()) is not None:
        rows.append(("memory", megabytes(memory)))
    session.screen.pairs(rows)


def _markdown(session: Session, argument: str) -> None:
    if argument not in ("", "on", _OFF):
        raise RequestError(f"/markdown: expected on or off, found {argument!r}")
    if argument:
        session.is_markdown = argument == "on"
    session.screen.note(f"Markdown is {'rendered' if session.is_markdown else 'shown as it is'}.")


def _quit(session: Session, argument: str) -> None:
    session.is_over = True


COMMANDS = (
    Command("/help", "", "shows this", _help, ("/?",)),
    Command("/clear", "", "starts over; the system message stays", _clear, ("/reset",)),
    Command("/system", "TEXT", "tells the model how to answer; off takes it away", _system, words=(_OFF,)),
    Command("/file", "FILE", "puts a text file into the next message; off takes it out", _file, words=None),
    Command("/save", "FILE", "writes the conversation; /save! replaces a file", _save, words=None, forced=_replace),
    Command("/load", "FILE", "goes on from a saved conversation", _load, words=None),
    Command("/stats", "", "shows tokens, speed and memory", _stats),
    Command("/markdown", "on|off", "renders answers, or shows them as they are", _markdown, words=("on", _OFF)),
    Command("/quit", "", "ends the chat", _quit, ("/exit", "/bye")),
)
_BY_NAME = {name: command for command in COMMANDS for name in command.names}
