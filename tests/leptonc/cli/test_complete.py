"""What a Tab offers, asked as shells ask: the classes of click for zsh and fish, bash itself, and the time it takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete, get_completion_class

import runtime_edge
import targets
from leptonc.build.recipe import shipped
from leptonc.cli import _HELP, _VERBS
from leptonc.sources import sample_names
from runtime_edge.cli.app import LazyGroup
from runtime_edge.cli.verbs import VERBS

ROOT = Path(__file__).parent.parent.parent.parent
SHELLS = ("bash", "zsh", "fish")
GROUP = LazyGroup("leptonc", _VERBS, help=_HELP)
SAMPLES = [f"sample:{name}" for name in sample_names()]


def shell(name: str, group: LazyGroup = GROUP) -> ShellComplete:
    kind = get_completion_class(name)
    assert kind is not None
    return kind(group, {}, group.name or "", f"_{group.name}_COMPLETE".upper().replace("-", "_"))


def offered(*words: str, group: LazyGroup = GROUP) -> list[str]:
    """The values that are offered for the last word; `<file>` where the shell offers files."""
    items = shell("zsh", group).get_completions(list(words[:-1]), words[-1])
    return ["<file>" if item.type == "file" else item.value for item in items]


def test_verbs() -> None:
    assert offered("") == list(_VERBS)
    assert offered("b") == [verb for verb in _VERBS if verb.startswith("b")]
    assert offered("", group=LazyGroup("lepton-edge", VERBS)) == list(VERBS)
    assert "--version" in offered("--")


@pytest.mark.parametrize(
    "before", [["build", "--target"], ["build", "x", "--target"], ["sweep", "--target"], ["targets"]]
)
def test_targets(before: list[str]) -> None:
    assert offered(*before, "") == targets.names()
    assert offered(*before, "cpu") == ["cpu", "cpu-arm64"]
    assert offered(*before, "jetson-orin,") == [f"jetson-orin,jetpack={v}" for v in ("6.1", "6.2", "7.2")]
    assert offered(*before, "jetson-orin-nano-8gb,jetpack=7") == ["jetson-orin-nano-8gb,jetpack=7.2"]
    assert offered(*before, "nothing,") == []


def test_shells_that_show_help_have_a_description() -> None:
    (cpu, _) = shell("zsh").get_completions(["build", "--target"], "cpu")
    assert cpu.help == targets.load("cpu").description
    verb = shell("fish").get_completions([], "doc")[0]
    assert verb.help == VERBS["doctor"].summary


@pytest.mark.parametrize("verb", ["build", "sweep"])
def test_sources(verb: str) -> None:
    assert offered(verb, "") == ["<file>"]
    assert offered(verb, "s") == offered(verb, "sample:") == SAMPLES
    assert offered(verb, "sample:tiny-qwen") == ["sample:tiny-qwen2", "sample:tiny-qwen3"]
    assert offered(verb, "./models") == ["<file>"]


@pytest.mark.parametrize("verb", ["build", "sweep"])
def test_recipes(verb: str) -> None:
    assert offered(verb, "x", "--recipe", "") == shipped()
    assert offered(verb, "x", "--recipe", "./my") == ["<file>"]


def test_choices_end_where_the_user_goes_on() -> None:
    assert offered("build", "x", "--weights", "a") == ["auto:"]
    assert {"int4", "int8"} <= set(offered("build", "x", "--weights", "int"))
    assert "--weights" in offered("build", "x", "--w")


def test_variants_are_those_of_the_artifact(tiny_artifact: Path) -> None:
    names = [variant.name for variant in runtime_edge.verify(tiny_artifact).variants]
    assert names
    assert offered("pack", str(tiny_artifact), "--only", "") == names
    assert offered("finish", str(tiny_artifact), "--variant", names[0][:1]) == names
    assert offered("pack", "no-such-artifact", "--only", "") == []
    assert offered("pack", "--only", "") == []


@pytest.mark.parametrize("name", SHELLS)
def test_each_shell_has_a_script(name: str) -> None:
    script = shell(name).source()
    assert f"_LEPTONC_COMPLETE={name}_complete" in script


@pytest.mark.parametrize("program", ["leptonc", "runtime_edge"])
@pytest.mark.parametrize("name", SHELLS)
def test_the_command_prints_it(program: str, name: str) -> None:
    variable = {"leptonc": "_LEPTONC_COMPLETE", "runtime_edge": "_LEPTON_EDGE_COMPLETE"}[program]
    environment = {**os.environ, variable: f"{name}_source"}
    done = subprocess.run(
        [sys.executable, "-m", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{variable}={name}_complete" in done.stdout


# What bash has in COMP_WORDS: it splits words at colons and equals signs too. The last word is the one it completes.
IN_BASH = [
    (["build", "--target", "cpu-"], ["cpu-arm64"]),
    (["build", "--target", "=", "cpu-"], ["cpu-arm64"]),
    (["build", "--target", "jetson-orin,jetpack", "=", "7"], ["7.2"]),
    (["build", "--target", "=", "jetson-orin,jetpack", "=", "7"], ["7.2"]),
    (["build", "sample", ":", "tiny-qwen"], ["tiny-qwen2", "tiny-qwen3"]),
    (["build", "sample", ":"], list(sample_names())),
    (["build", "sample", ":", "tiny-llama", "--target", "cpu-"], ["cpu-arm64"]),
    (["build", "sample:tiny-qwen"], ["sample:tiny-qwen2", "sample:tiny-qwen3"]),  # where COMP_WORDBREAKS has no colon
    (["doc"], ["doctor"]),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(("words", "expected"), IN_BASH, ids=lambda value: " ".join(value))
def test_bash_completes_words_as_it_splits_them(words: list[str], expected: list[str], tmp_path: Path) -> None:
    program = tmp_path / "leptonc"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m leptonc "$@"\n')
    program.chmod(0o755)
    script = f"""
        eval "$(_LEPTONC_COMPLETE=bash_source leptonc)"
        COMP_WORDS=(leptonc {" ".join(words)}) COMP_CWORD={len(words)}
        _leptonc_completion leptonc
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.split() == expected


@pytest.mark.parametrize("words", ["leptonc build --target c", "leptonc build sample", "leptonc sweep x --recipe i"])
def test_nothing_heavy_is_imported(words: str) -> None:
    program = (
        "import sys\nfrom leptonc.cli import main\ntry:\n    main([])\nfinally:\n"
        "    print(*sys.modules, file=sys.stderr)\n"
    )
    asked = {"_LEPTONC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout
    heavy = {"numpy", "torch", "transformers", "onnx", "onnxruntime", "tokenizers", "rich", "jinja2"}
    assert {name.partition(".")[0] for name in done.stderr.split()} & heavy == set()
