"""The pages of docs/measured: made of benchmarks/results, by commands that parse, with each figure in one place."""

from __future__ import annotations

import argparse
import importlib
import itertools
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from benchmarks import tables
from tests.docs.pages import words as words_of

ROOT = Path(__file__).parents[2]
MOST_WORDS = 720  # of all pages, outside of tables and blocks
RESULTS = tables.results()
OPERATORS = {"|", ">", "<", "&&", ";"}
PLACEHOLDER = re.compile(r"\b(?:COMMAND|FILE|PEER|TEXT|DIR|ART|OPTIONS)\b")


class Parsed(Exception):
    """Ends a benchmark behind its parser."""


def lines(commands: list[str]) -> list[str]:
    """Returns the lines of a block, with continued ones joined and what a loop calls in a line of its own."""
    joined = "\n".join(commands).replace("\\\n", " ")
    return [part.strip() for line in joined.splitlines() for part in re.split(r";\s*(?:do\b)?", line) if part.strip()]


def calls(program: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the words behind `program` of every result's and text's commands, and of the peers inside of them."""
    listed = {text.file: [text.command] for text in tables.listing().texts if text.command}
    for name, commands in [*((name, result.commands) for name, result in RESULTS.items()), *listed.items()]:
        for line in lines(commands):
            words = shlex.split(line)
            for inner in (words, *(shlex.split(word) for word in words if " " in word and "/" in word)):
                if inner and (inner[0] == program or inner[0].endswith(f"/{program}")):
                    yield name, list(itertools.takewhile(lambda word: word not in OPERATORS, inner[1:]))


BENCHMARKS = [(name, words) for name, words in calls("python") if words[0].startswith("benchmarks/")]


def benchmark(path: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{Path(path).stem}")


def test_pages_are_what_the_results_say() -> None:
    made = tables.pages()
    stored = {path.stem: path.read_text(encoding="utf-8") for path in tables.PAGES.glob("*.md")}
    assert sorted(made) == sorted(stored)
    assert [name for name in made if made[name] != stored[name]] == []  # python benchmarks/tables.py


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_whole(name: str) -> None:
    result, shared = RESULTS[name], tables.listing()
    assert result.page in shared.pages
    assert result.machine in shared.machines
    assert result.title.endswith("?")
    assert re.fullmatch(r"[0-9a-f]{7,40}", result.commit)
    assert result.commands
    assert tables.cells(result)
    sentences = [result.answers, *result.notes]
    assert [text for text in sentences if not text.endswith(".") or re.search(r"\.\s+[A-Z]", text)] == []
    assert [line for line in result.commands if PLACEHOLDER.search(re.sub(r"\$\w+|\w+=", "", line))] == []


def test_results_of_a_page_have_places_and_titles_of_their_own() -> None:
    for field in ("place", "title"):
        seen = [(result.page, getattr(result, field)) for result in RESULTS.values()]
        assert len(set(seen)) == len(seen)


def test_no_two_results_have_a_figure_of_one_name() -> None:
    names = [
        (result.subject, row[0], column.name)
        for result in RESULTS.values()
        for row in tables.cells(result)
        for column in result.columns[1:]
    ]
    assert [name for name in set(names) if names.count(name) > 1] == []


def test_all_data_is_shown() -> None:
    stored = {path.name for path in (tables.RESULTS / "data").iterdir()}
    assert stored == {result.data for result in RESULTS.values() if result.data}


@pytest.mark.parametrize(("name", "words"), BENCHMARKS)
def test_a_benchmarks_arguments_parse(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ROOT / words[0]).is_file()
    if find_spec("torch") is None:
        pytest.skip("needs the extra compiler")
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, *given)
        raise Parsed

    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # benchmarks import each other as they do when they are run
    try:
        module = benchmark(words[0])
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(Parsed):
        module.main()


@pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra compiler")
def test_arguments_that_a_benchmark_lacks_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        test_a_benchmarks_arguments_parse("", ["benchmarks/texts.py", "code", "--many", "3"], monkeypatch)


@pytest.mark.parametrize(("name", "words"), list(calls("leptonc")))
def test_command_lines_parse(name: str, words: list[str]) -> None:
    from tests.test_docs import command

    command(words[0]).make_context(words[0], [re.sub(r"\$\w+", "x", word) for word in words[1:]])


def test_builds_inside_of_benchmarks_parse() -> None:
    from tests.test_docs import command

    for _, words in BENCHMARKS:
        inside = [word for word in words if word.startswith("--") and " " in word]
        inside += [shlex.join(words[words.index("--") + 1 :])] if "--" in words else []
        for options in inside:
            command("build").make_context("build", ["model", *shlex.split(options)])


def test_the_pages_are_short() -> None:
    counted = {name: words_of(tables.PAGES / f"{name}.md") for name in tables.listing().pages}
    assert sum(counted.values()) <= MOST_WORDS, counted


def test_every_benchmark_is_named() -> None:
    """By a result, a page, a test or another benchmark: what nothing names measures nothing."""
    own = sorted((ROOT / "benchmarks").glob("*.py"))
    places = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.py"), *own]
    texts = {path: path.read_text(encoding="utf-8") for path in places}

    def named(path: Path) -> bool:
        names = re.compile(rf"\b{path.stem}\.py\b|^(?:from|import) (?:benchmarks\.)?{path.stem}\b", re.M)
        return any(names.search(text) for other, text in texts.items() if other != path)

    assert [path.name for path in own if not named(path)] == []


def test_records_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "d.jsonl").write_text('{"n": "b", "v": [2000, 5]}\n{"n": "a", "v": [1000, 8]}\n')
    columns = [
        {"name": "build", "field": "n"},
        {"name": "size", "unit": "kB", "field": "v.0", "scale": 1e-3, "format": ".1f"},
        {"name": "loss", "unit": "%", "field": "v.1", "against": 4, "format": "+.1f"},
    ]
    fields = {
        "page": "p", "place": 1, "title": "Why?", "answers": "So.", "subject": "s", "machine": "m",
        "date": "2026-01-02", "commit": "abcdef0", "commands": ["python x.py"], "columns": columns,
        "rows": [["c", 0.5, ""]], "data": "d.jsonl", "names": {"a": "A", "b": "B"},
    }  # fmt: skip
    result = msgspec.convert(fields, tables.Result)
    assert tables.cells(result) == [["c", "0.5", ""], ["A", "1.0", "+100.0"], ["B", "2.0", "+25.0"]]
    assert tables.cells(msgspec.convert({**fields, "sort": "size"}, tables.Result))[-1][0] == "B"
    assert tables.cells(msgspec.convert({**fields, "sort": "-size"}, tables.Result))[0][0] == "B"
    text = tables.section(result)
    assert "| build | size, kB | loss, % |\n| --- | ---: | ---: |\n| c | 0.5 | |\n" in text
    assert "```bash\n# machine m, 2026-01-02, commit abcdef0\npython x.py\n```" in text
    with pytest.raises(ValueError, match=r"expected a record z in d\.jsonl, found b, a"):
        tables.cells(msgspec.convert({**fields, "names": {"z": "Z"}}, tables.Result))
    with pytest.raises(ValueError, match="expected 3 cells in each row"):
        tables.cells(msgspec.convert({**fields, "rows": [["c", 1]]}, tables.Result))
    with pytest.raises(msgspec.ValidationError, match="contains unknown field `notices`"):
        msgspec.convert({**fields, "notices": []}, tables.Result)
