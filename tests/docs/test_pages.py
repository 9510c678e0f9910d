"""How pages are read: blocks with their marks, words of prose, and which blocks run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.generate import marked
from tests.docs import pages
from tests.docs.stand_ins import provide, with_stand_ins
from tests.docs.test_blocks import own_calls, run_bash, run_python

PAGE = """# A title

Two words, and `code`. <!-- no words -->

<!-- file: a.toml -->
<!-- not run: it is an example -->

```toml
x = 1
```

| a table | is not prose |
| --- | --- |

1. In a list:

   ```bash
   echo one
     echo two
   ```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_blocks_have_marks_and_lose_their_indentation(page: Path) -> None:
    first, second = pages.blocks(page)
    assert (first.language, first.text, first.place) == ("toml", "x = 1\n", "page.md:8")
    assert first.marks == {"file": "a.toml", "not run": "it is an example"}
    assert (second.language, second.text, second.marks) == ("bash", "echo one\n  echo two\n", {})


def test_words_are_those_of_prose(page: Path) -> None:
    assert pages.words(page) == len(["A", "title", "Two", "words,", "and", "`code`.", "1.", "In", "a", "list:"])
    page.write_text(pages.MADE + "`x` -->\n" + PAGE)
    assert pages.words(page) == 0


def test_plain_calls_run_here_and_all_else_in_a_shell() -> None:
    assert own_calls('leptonc run a.lepton "a & b" \\\n  --raw  # why\n\nlepton-edge doctor\n') == [
        ["leptonc", "run", "a.lepton", "a & b", "--raw"],
        ["lepton-edge", "doctor"],
    ]
    assert own_calls("leptonc targets | head\n") == []
    assert own_calls("leptonc targets\nls\n") == []


def test_a_block_that_fails_is_told_with_its_place() -> None:
    failing = pages.Block("page.md", 3, "bash", "", {})
    with pytest.raises(AssertionError, match=r"page\.md:3: leptonc targets nope: expected exit code 0, found 1"):
        run_bash(failing, "leptonc targets nope\n", {})
    with pytest.raises(AssertionError, match=r"page\.md:3: expected 0, found 1"):
        run_bash(failing, "false\ntrue\n", {})
    run_bash(failing._replace(marks={"exit": "1"}), "leptonc targets nope\n", {})
    with pytest.raises(AssertionError, match="expected exit code 1, found 0"):
        run_bash(failing._replace(marks={"exit": "1"}), "leptonc targets cpu\n", {})
    with pytest.raises(NameError):
        run_python(failing, "print(nothing)", {})


def test_stand_ins_are_small_and_there_when_named(tmp_path: Path) -> None:
    assert (
        with_stand_ins("leptonc build sample:smollm2-135m --heal 10min")
        == "leptonc build sample:tiny-llama --heal 2steps"
    )
    provide("leptonc eval x.lepton --text text.txt", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    provide("cat < messages.json > tools.json", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "messages.json"}


def test_options_become_code_once() -> None:
    assert marked("--fast, or `build --target`, or `--emit`") == "`--fast`, or `build --target`, or `--emit`"
