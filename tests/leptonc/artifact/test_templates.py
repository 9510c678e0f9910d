"""A chat template is compared with transformers before it goes into an artifact."""

from __future__ import annotations

from typing import Any

import pytest

from leptonc.artifact.templates import PROBES, check_templates
from leptonc.errors import InputError
from leptonc.sources.base import Source
from runtime_edge.chat import ChatTemplate
from tests.runtime_edge.test_template_fidelity import FAMILIES, SPECIAL


def source(template: str | None, **others: str) -> Source:
    return Source("m", {}, {}, {}, b"", chat_template=template, chat_templates=others)


def test_templates_that_render_as_in_transformers_pass() -> None:
    for template in FAMILIES.values():
        check_templates(source(template), SPECIAL)
    check_templates(source(None), SPECIAL)
    check_templates(source("{{ strftime_now('%S') }}", rag="{{ documents }}"), SPECIAL)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if %}", "chat_template: chat template: expected a Jinja template"),
        ("{% break %}", "within a loop"),
        ("{% block a %}{% endblock %}", "{% block %} in line 1"),
        (
            "{{ 'a' * 10**8 }}",
            "expected what transformers renders of a question, 'aaaa.*found chat template: expected to end within",
        ),
        ("{{ messages[0].content.encode() }}", "of a question, 'b.*found chat template: .*str.encode"),
    ],
)
def test_template_that_the_runtime_refuses(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_templates(source(template), SPECIAL)
    assert caught.value.hint
    with pytest.raises(InputError, match=r"^tool_use: "):
        check_templates(source("", tool_use=template), SPECIAL)


def test_difference_is_shown_where_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    render = ChatTemplate.render

    def other(*args: Any, **kwargs: Any) -> str:
        return render(*args, **kwargs).replace("brief", "long")

    monkeypatch.setattr(ChatTemplate, "render", other)
    with pytest.raises(InputError, match=r"of a system's message, .Be brief — .*, found .Be long — "):
        check_templates(source("{% for m in messages %}{{ m.content }}{% endfor %}"), SPECIAL)


def test_what_both_refuse_is_no_difference() -> None:
    check_templates(source("{{ raise_exception('never') }}"), SPECIAL)
    assert {"a question", "tools", "parts"} <= PROBES.keys()
