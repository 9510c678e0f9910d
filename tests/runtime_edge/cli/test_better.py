"""What would be better on a machine: said where it is so, and only there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from runtime_edge import kernels
from runtime_edge.cli import better as module
from runtime_edge.cli.better import RULES, Machine, better
from runtime_edge.installation import install_command

GOOD = Machine(cores=4, threads=4, building=4, memory=16 * 10**9)


def test_where_all_is_well_nothing_is_said() -> None:
    assert better(GOOD) == []
    assert better(dataclasses.replace(GOOD, threads=8, building=8)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"may_compile": "no compiler: install one"}, "kernels are faster, and not there: no compiler: install one"),
        ({"threads": 1}, "models run on 1 of 4 cores: leave LEPTON_THREADS unset"),
        ({"building": 2}, "builds compute on 2 of 4 cores: leave OMP_NUM_THREADS unset"),
        ({"memory": 10**9}, "little memory"),
    ],
)
def test_each_rule_alone(change: dict[str, Any], said: str) -> None:
    (line,) = better(dataclasses.replace(GOOD, **change))
    assert said in line


def test_every_rule_has_a_test_above() -> None:
    bad = Machine(cores=4, threads=1, building=1, memory=1, may_compile="no compiler")
    assert len(better(bad)) == len(RULES) == 4


def test_the_facts_are_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: 64)
    monkeypatch.setenv("LEPTON_THREADS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    machine = Machine.here()
    assert (machine.cores, machine.threads, machine.building) == (64, 3, 2)
    monkeypatch.setenv("LEPTON_THREADS", "many")
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    machine = Machine.here()
    assert (machine.threads, machine.building) == (64, 64)


def test_kernels_that_a_compiler_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(kernels, "_path", lambda name: None)
    monkeypatch.setattr(kernels, "_features", lambda: {"avx2", "fma"})
    monkeypatch.setattr(kernels, "_note", lambda: "no C compiler was found at installation (gcc)")
    assert kernels.may_compile() == (
        "no C compiler was found at installation (gcc): install GCC 11 or Clang 12, or later, and run "
        f"`{install_command()}`"
    )
    monkeypatch.setattr(kernels, "checkout", lambda: None)
    assert str(kernels.may_compile()).endswith("or later, and make its wheel anew")
    monkeypatch.setattr(kernels, "_features", lambda: {"avx"})
    assert kernels.may_compile() is None


def test_doctor_says_it(monkeypatch: pytest.MonkeyPatch, lepton_edge: Callable[..., Any]) -> None:
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: dataclasses.replace(GOOD, threads=1)))
    assert "better" in lepton_edge("doctor").out
    assert json.loads(lepton_edge("doctor", "--json").out)["better"] == better(Machine.here())
