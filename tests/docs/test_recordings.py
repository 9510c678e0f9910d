"""What a recording holds: what a person would see, and nothing of the machine that made it."""

from __future__ import annotations

from docs.recordings.record import record


def test_a_shell_in_a_home_of_its_own() -> None:
    keys = "# a comment\nfile notes.txt one\\ntwo\ntype cat notes.txt; pwd\ntype sleep 60\npause 0.2\nkey ctrl-c\n"
    assert record(keys, []) == "$ cat notes.txt; pwd\none\ntwo\n~/models\n$ sleep 60\n^C\n"
