"""What every command line of Lepton shares: verbs imported when called, and one place where errors become exit codes.

`EXIT_CODES` has what they mean. With LEPTON_DEBUG=1 every error shows its traceback.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

import click

from runtime_edge import __version__
from runtime_edge.cli import interrupts
from runtime_edge.cli.verbs import Verb

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

BUG = 70
INTERRUPTED = 130
_ENVIRONMENT = 4


class ExitCode(NamedTuple):
    """What an exit code means, and what a user can do about it."""

    meaning: str
    cure: str


# docs/reference/exit-codes.md is made of it.
EXIT_CODES = {
    0: ExitCode("Done.", ""),
    1: ExitCode(
        "The input or the request is wrong, or the system refused a file. stderr has `error: …` with what was expected "
        "and what was found, and mostly `hint: …`.",
        "Do what the hint says.",
    ),
    2: ExitCode("The command line is wrong.", "`leptonc VERB --help` lists the options."),
    3: ExitCode(
        "A bound on quality (`--max-loss`) or size (`--weights auto:SIZE`) was not met. Nothing is at OUT.",
        "Give the model more bits, a text like those it will read (`--calibration FILE`), or a wider bound. The "
        "message has the figure that was reached.",
    ),
    _ENVIRONMENT: ExitCode(
        "The environment lacks a package, a driver or memory.",
        "Install the extra that the message names. `leptonc doctor` shows all that is missing.",
    ),
    BUG: ExitCode(
        "A bug in Lepton. The traceback is in a file that the message names.", "Please report it with that file."
    ),
    INTERRUPTED: ExitCode(
        "Interrupted by Ctrl-C or SIGTERM. A build leaves nothing at OUT.",
        "`leptonc build --resume DIR` keeps the results of long steps.",
    ),
}

# What the system refuses for reasons that are the user's to mend; any other OSError that comes this far is a bug.
_SYSTEM_REFUSALS = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EACCES: "check the permissions, or choose another place",
    errno.EPERM: "check the permissions, or choose another place",
    errno.EROFS: "the file system is mounted read-only: choose another place",
}


class UserError(Protocol):
    """What an error must have to be shown without a traceback (`LeptonError` and its like)."""

    message: str
    hint: str | None
    exit_code: int


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are called, so that `--help` imports nothing but click.

    It has `--version`, which is the same for both command lines.
    """

    def __init__(self, name: str, verbs: Mapping[str, Verb], **attributes: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        super().__init__(name, context_settings=settings, **attributes)
        self.verbs = verbs
        click.version_option(__version__, prog_name=name, message="%(prog)s %(version)s")(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in their order."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a verb; None where there is none of that name."""
        verb = self.verbs.get(cmd_name)
        if verb is None:
            return None
        module, _, attribute = verb.location.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the verb, or says which one may have been meant."""
        if args[0] not in self.verbs and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], self.verbs, n=2)
            meant = f"did you mean {' or '.join(close)}?" if close else f"the verbs are {', '.join(self.verbs)}"
            ctx.fail(f"no such verb: {args[0]} ({meant})")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        """Offers the verbs with their summaries, importing none."""
        from runtime_edge.cli.complete import starting

        verbs = starting(incomplete, [(name, verb.summary) for name, verb in self.verbs.items()])
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of verbs from their summaries, importing none."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.summary) for name, verb in self.verbs.items()])


def _lepton_error() -> tuple[type[BaseException], ...]:
    from runtime_edge.errors import LeptonError

    return (LeptonError,)


def invoke(
    group: click.Group,
    arguments: Sequence[str] | None = None,
    *,
    user_errors: Callable[[], tuple[type[BaseException], ...]] = _lepton_error,
) -> int:
    """Runs a command line and returns its exit code; nothing is raised but for the process's own exit.

    Args:
        group: The command line. An option `--max-len` of verb `run` is also read from `LEPTON_RUN_MAX_LEN`.
        arguments: What follows the program's name. Default: the process's arguments.
        user_errors: Gives the exceptions that are shown without a traceback; called when one was raised.
    """
    try:
        if f"_{group.name}_COMPLETE".upper().replace("-", "_") in os.environ:
            from runtime_edge.cli import complete  # noqa: F401 — a shell asks: bash in its own way
        with interrupts.remembered(), _warnings_as_messages():
            code = group.main(
                args=None if arguments is None else list(arguments),
                prog_name=group.name,
                standalone_mode=False,
                auto_envvar_prefix="LEPTON",
            )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # click takes one for a Ctrl-D, and no verb asks anything
            return _told(error.__cause__, user_errors())
        _say("interrupted")
        return INTERRUPTED
    except click.ClickException as error:
        return _usage(error)
    except BrokenPipeError:
        # Who read our output has gone (`| head`): no error. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        _say("not enough memory", "close other programs, or give a smaller --max-seq-len", error=True)
        return _ENVIRONMENT
    except Exception as error:  # the outermost boundary: whatever arrives is told to the user, and none is lost
        return _told(error, user_errors())


@contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """Shows what the runtime warns of as it shows errors: where in the code it was raised is nothing to a user."""
    from runtime_edge.errors import BackendWarning, RequestWarning

    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, (BackendWarning, RequestWarning)):
                click.echo(paint("warning: ", "yellow") + str(message), err=True)
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        yield


def fail(message: str, *, hint: str | None = None) -> NoReturn:
    """Refuses a command line that click itself could not see to be wrong (exit code 2)."""
    error = click.UsageError(message, ctx=click.get_current_context(silent=True))
    error.hint = hint  # type: ignore[attr-defined]
    raise error


def _usage(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message())
        return error.exit_code
    hint = getattr(error, "hint", None) or (f"try `{context.command_path} --help`" if context is not None else None)
    _say(error.format_message(), hint, error=True)
    return error.exit_code


def _told(error: Exception, user_errors: tuple[type[BaseException], ...]) -> int:
    if isinstance(error, user_errors):
        refusal: UserError = error  # type: ignore[assignment]
        _say(refusal.message, refusal.hint, error=True)
        _debug(error)
        return refusal.exit_code
    if isinstance(error, OSError) and error.errno in _SYSTEM_REFUSALS:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror}", _SYSTEM_REFUSALS[error.errno], error=True)
        _debug(error)
        return 1
    report = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile(
        "w", prefix="lepton-crash-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(f"{sys.argv}\n{sys.version}\n\n{report}")
    _say(
        f"this is a bug in Lepton: {type(error).__name__}: {error}",
        f"please report it with {file.name}, which has the traceback",
        error=True,
    )
    _debug(error)
    return BUG


def _debug(error: BaseException) -> None:
    if os.environ.get("LEPTON_DEBUG") == "1":
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def _say(message: str, hint: str | None = None, *, error: bool = False) -> None:
    lines = [paint("error: ", "red") + message if error else message]
    if hint is not None:
        lines.append(paint("hint: ", "cyan") + hint)
    click.echo("\n".join(lines), err=True)


def paint(text: str, colour: str) -> str:
    """`text` in colour where stderr is a terminal and NO_COLOR is not set."""
    plain = bool(os.environ.get("NO_COLOR")) or not sys.stderr.isatty()
    return text if plain else click.style(text, fg=colour, bold=True)
