"""No template takes more time or memory than its budget, whatever it does, and none ends in another error than ours."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from runtime_edge.chat import ChatTemplate
from runtime_edge.errors import ChatTemplateError
from runtime_edge.template import budget
from tests.runtime_edge.hostile_templates import TEMPLATES

MESSAGES = [{"role": "user", "content": "Hi"}]
SCALE = 32  # quick tests run in a smaller budget: what is not counted takes as long as ever
# The longest of all, or the largest; run in the budget as it is, all in the slow test.
LONGEST = (
    "syntax: a long list",
    "text: doubled by callers",
    "text: loops over text",
    "lists: counted in a list",
    "lists: deep, in JSON",
    "lists: mapped over maps",
    "lists: kept lists",
    "lists: slice",
)


def _run(source: str) -> None:
    """Renders a template; a refusal is short and has a hint."""
    fault: ChatTemplateError | None = None
    try:
        ChatTemplate(source, {}).render(MESSAGES)
    except ChatTemplateError as error:
        fault = error
    assert fault is None or (fault.hint and len(fault.message) < 1200)


def _check(source: str) -> None:
    began = time.process_time()
    _run(source)
    assert time.process_time() - began < 1  # seconds


def test_there_are_many() -> None:
    assert len(TEMPLATES) > 300


@pytest.mark.parametrize("name", TEMPLATES)
def test_hostile_template_ends_soon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "UNITS", budget.UNITS // SCALE)
    _check(TEMPLATES[name])


@pytest.mark.parametrize("name", LONGEST)
def test_longest_templates_in_the_whole_budget(name: str) -> None:
    _check(TEMPLATES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_hostile_template_in_the_whole_budget(name: str) -> None:
    _check(TEMPLATES[name])
    tracemalloc.start()
    try:
        _run(TEMPLATES[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * 2**20


def test_memory_is_bounded_by_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "UNITS", budget.UNITS // SCALE)
    tracemalloc.start()
    try:
        for name in ("lists: kept lists", "lists: slice", "text: doubled by a block of text"):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            _run(TEMPLATES[name])
            assert tracemalloc.get_traced_memory()[1] - before < 100 * 2**20 / SCALE + 2 * 2**20, name
    finally:
        tracemalloc.stop()


def test_a_loop_of_nothing_is_counted() -> None:
    source = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ChatTemplateError, match="expected to end within 8"):
        ChatTemplate(source, {}).render(MESSAGES)


def test_budget_grows_with_what_is_given() -> None:
    """What a template may do for long messages it may not do for short ones: it copies each character 25 times."""
    source = "{% for i in range(25) %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfor %}"
    long = [{"role": "user", "content": "x" * 1_000_000}]
    assert len(ChatTemplate(source, {}).render(long)) == 25_000_000
    with pytest.raises(ChatTemplateError, match="units of work"):
        ChatTemplate(source.replace("25", "99999"), {}).render(long)


def test_very_long_conversation_is_within_the_budget() -> None:
    """2,000 short messages in a template that does a hundred operations for each."""
    body = "{% set n = n ~ m.role if m.content == 'x' and m.role in ['user', 'tool'] else (n | trim) %}" * 9
    source = "{% for m in messages %}{% set n = '' %}" + body + "{{ m.role ~ m.content ~ n }}{% endfor %}"
    assert ChatTemplate(source, {}).render(MESSAGES * 2000) == "userHi" * 2000


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([[]], id="a list that contains itself"),
        pytest.param({}, id="a dictionary that contains itself"),
    ],
)
def test_messages_that_contain_themselves(value: list[object] | dict[str, object]) -> None:
    if isinstance(value, dict):
        value["x"] = value
    else:
        value.append(value)
    with pytest.raises(ChatTemplateError, match="at most 100 lists within lists"):
        ChatTemplate("{{ messages }}", {}).render([{"role": "user", "content": value}])


def test_objects_are_names_of_their_types() -> None:
    class Image:
        def save(self) -> None:
            raise AssertionError("a template called it")

    template = ChatTemplate("{{ messages[0].image }}{{ messages[0].image.save is defined }}", {})
    assert template.render([{"role": "user", "image": Image()}]) == "<Image>False"
