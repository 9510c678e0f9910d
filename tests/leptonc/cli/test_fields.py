"""Options of a verb that a dataclass's fields give: how they are spelled, what they take, what the help says."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from leptonc.cli.build import build
from leptonc.cli.fields import options_from
from leptonc.cli.sweep import sweep
from leptonc.options import BuildOptions, option, options_of


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the verb below is asked for."""

    names: str | tuple[str, ...] = option("Names.", "one", several=True)
    size: int | None = option("Size.", None, choices=(16, 32), usual="the backend's")
    form: str | None = option("Form.", None, choices=("a", "b"), open_choice="auto:SIZE")
    loss: float | None = option("Loss.", None, percent=True, metavar="PCT")
    count: int = option("Count.", 3, least=1, most=9, metavar="N")
    share: float | None = option("Share.", None, least=0)
    folder: Path | None = option("Folder.", None, flags=("-f", "--folder"), metavar="DIR")
    quick: bool = option("Quick.", False)
    even: bool | None = option("Even.", None, flags=("--even/--odd",))
    hidden: int = option("A recipe's.", 0, in_command=False)


def parsed(*arguments: str, only: tuple[str, ...] | None = None) -> dict[str, Any]:
    got: dict[str, Any] = {}

    @click.command()
    @options_from(Wanted, only)
    def verb(**values: Any) -> None:
        got.update(values)

    done = CliRunner().invoke(verb, arguments)
    assert done.exit_code == 0, done.output
    return got


def test_without_any_the_defaults_are_the_dataclass_s() -> None:
    assert Wanted(**parsed()) == Wanted()


def test_values_have_the_types_of_their_fields() -> None:
    given = "--names a --names b --size 32 --form auto:9 --loss 2.5% --count 9 --share .5 -f x --quick --odd"
    assert Wanted(**parsed(*shlex.split(given))) == Wanted(
        names=("a", "b"), size=32, form="auto:9", loss=2.5, count=9, share=0.5, folder=Path("x"), quick=True, even=False
    )
    assert parsed("--names", "a")["names"] == "a"
    assert parsed("--count", "2", only=("count",)) == {"count": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "48"), "expected one of 16 or 32, found '48'"),
        (("--form", "c"), "expected one of a, b or auto:SIZE, found 'c'"),
        (("--loss", "-1"), "expected a number of 0 or more, found -1"),
        (("--count", "10"), "10 is not in the range 1<=x<=9"),
        (("--share", "x"), "'x' is not a valid float"),
        (("--hidden", "1"), "No such option"),
    ],
)
def test_values_that_do_not_fit_end_with_2(arguments: tuple[str, ...], message: str) -> None:
    @click.command()
    @options_from(Wanted)
    def verb(**_: Any) -> None:
        raise AssertionError("called")

    done = CliRunner().invoke(verb, arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_choices_complete_in_a_shell() -> None:
    @click.command()
    @options_from(Wanted)
    def verb(**_: Any) -> None:
        pass

    size = next(param for param in verb.params if param.name == "size")
    assert [item.value for item in size.type.shell_complete(click.Context(verb), size, "3")] == ["32"]


def help_of(verb: click.Command) -> list[str]:
    done = CliRunner().invoke(verb, ["--help"], terminal_width=80)
    assert done.exit_code == 0
    return done.output.splitlines()


def test_the_help_of_build_has_every_option_with_its_default_in_80_columns() -> None:
    lines = help_of(build)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    letters = text.replace(" ", "")  # lines also break behind hyphens
    for name, about in options_of(BuildOptions).items():
        if about.in_command:
            assert about.help.replace(" ", "") in letters
            assert about.usual is None or f"[default: {about.usual}]".replace(" ", "") in letters
            assert f"--{name.replace('_', '-')}" in text
    assert "-o, --out OUT Artifact to write. [default: the model's name with .lepton, in this folder]" in text
    assert "--weights [fp32|fp16|fp8|int8|int4|int2|auto:SIZE] " in text
    assert "--block-size [16|32|64|128|256] " in text
    assert "--symmetric / --asymmetric " in text
    assert "--max-loss PCT " in text
    assert "[default: cpu]" in text
    assert "[default: check]" in text


def test_the_help_of_build_has_headings_and_what_has_none_comes_last() -> None:
    headings = [line for line in help_of(build) if line.endswith(":") and not line.startswith(" ")]
    assert headings[:3] == ["What is built:", "Weights:", "Activations and cache:"]
    assert headings[-1] == "Options:"
    assert {f"{option.group}:" for option in options_of(BuildOptions).values() if option.in_command} < set(headings)


def test_sweep_takes_some_of_build_s() -> None:
    text = " ".join(" ".join(help_of(sweep)).split())
    assert "--max-seq-len N As for `build`. [x>=1] --method [rtn|gptq|awq] As for `build`." in text
    assert "--prune" not in text
