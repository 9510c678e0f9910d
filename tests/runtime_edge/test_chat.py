"""Chat templates: the same text as transformers gives, and nothing that a hostile one could do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import runtime_edge
from runtime_edge.chat import ChatTemplate
from runtime_edge.errors import ChatTemplateError
from tests.runtime_edge import tiny
from tests.runtime_edge.test_verify import edit, relist

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "system", "content": "Be brief — “ok”."},
    {"role": "user", "content": "Hi <b>&</b>\n"},
    {"role": "assistant", "content": " Hello "},
    {"role": "user", "content": "日本"},
]
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n"
        "    {%- set first = messages[0]['content'] + '\n\n' -%}\n    {%- set rest = messages[1:] -%}\n"
        "{%- else -%}\n    {%- set first = '' -%}\n    {%- set rest = messages -%}\n{%- endif -%}\n"
        "{%- for message in rest -%}\n"
        "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}\n"
        "        {{ raise_exception('Roles must alternate') }}\n    {%- endif -%}\n"
        "    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}\n"
        "    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}\n"
        "    {{ message['content'] | trim }}\n    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}\n    {{'<start_of_turn>model\n'}}\n{%- endif -%}\n"
    ),
    "tools and json": (
        "{% if tools is not none %}tools{% endif %}{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}"
        "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ m.content ~ eos_token }}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ messages | map(attribute='role') | join(', ') }}"
        "{{ messages[3].content.replace('日', 'x').split('x') | length }}{{ 'a\nb' | indent(2) }}{{ '%s' % 'x' }}"
    ),
    "macros and namespaces": (
        "{% macro show(m, depth=0) -%}[{{ m.role | upper }}{{ depth }}]{%- endmacro %}\n"
        "{% set ns = namespace(count=0, text='') %}\n"
        "{% for m in messages %}\n  {% set ns.count = ns.count + 1 %}\n  {% set ns.text = ns.text ~ m.role %}\n"
        "{{ show(m, depth=ns.count) }}\n  {% if m.role == 'user' %}{% continue %}{% endif %}x\n{% endfor %}\n"
        "{{ ns.count }}{{ ns.text }}{{ undefined_name }}{{ messages[-1:][0]['content'] }}{{ 'é' | tojson }}"
    ),
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers(name: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="the reference is transformers")
    compiled = utils._compile_jinja_template(TEMPLATES[name])
    expected = compiled.render(messages=MESSAGES, tools=None, documents=None, add_generation_prompt=True, **SPECIAL)
    found = ChatTemplate(TEMPLATES[name], SPECIAL).render(MESSAGES)
    assert found == expected
    assert "Hi <b>&</b>" in found or name == "macros and namespaces"  # not escaped


def test_strftime_now() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}", {}).render(MESSAGES) == time.strftime("%Y")


HOSTILE = {
    "attributes": ("{{ ''.__class__.__mro__ }}", "__class__"),
    "subclasses": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "__class__"),
    "globals": ("{{ cycler.__init__.__globals__.os }}", "__init__"),
    "attr filter": ("{{ (messages|attr('__class__')).x }}", "__class__"),
    "format": ("{{ '{0.__class__.__mro__}'.format(messages) }}", "__class__"),
    "change the messages": ("{{ messages.append(1) }}", "append"),
    "include": ("{% include 'x' %}", "include"),
    "a long range": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "nested ranges": ("{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}", "units of work"),
    "loops over text": ("{% for i in 'x'*9**6 %}{% for j in 'x'*9**6 %}{% endfor %}{% endfor %}", "units of work"),
    "long output": ("{% for i in range(10**5) %}{{ 'x' * 100 }}{% endfor %}", "units of work"),
    "multiplied text": ("{{ 'a'*10**10 }}", "units of work"),
    "multiplied list": ("{{ 10**10 * [1] }}", "units of work"),
    "doubled by +": (
        "{% set ns=namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "units of work",
    ),
    "doubled by ~": (
        "{% set ns=namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "units of work",
    ),
    "a large power": ("{{ 10**(10**8) }}", "bits"),
    "padded": ("{{ 'a'.center(10**9) }}", "units of work"),
    "padded by a filter": ("{{ 'a'|center(10**9) }}", "units of work"),
    "padded by %": ("{{ '%999999999d' % 1 }}", "units of work"),
    "padded by format": ("{{ '{:999999999}'.format(1) }}", "short widths"),
    "padded by a field": ("{{ '{:{}}'.format(1, 999999999) }}", "short widths"),
    "replaced": ("{{ ('x'*1000).replace('x', 'y'*10**6) }}", "units of work"),
    "replaced by a filter": ("{{ ('x'*1000)|replace('x', 'y'*10**6) }}", "units of work"),
    "joined": ("{{ (['x'*10**4]*10**4)|join }}", "units of work"),
    "indented": ("{{ 'x\ny'|indent(10**9) }}", "units of work"),
    "indented json": ("{{ messages|tojson(indent=10**9) }}", "units of work"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "division": ("{{ 1/0 }}", "division by zero"),
    "refusal": ("{{ raise_exception('no system role') }}", "^chat template: no system role$"),
    "syntax": ("{% if %}", "expected a Jinja template"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_refused_soon(name: str) -> None:
    source, message = HOSTILE[name]
    began = time.perf_counter()
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate(source, SPECIAL).render(MESSAGES)
    assert time.perf_counter() - began < 2  # seconds; unbounded ones take minutes


def test_the_budget_is_of_one_rendering_and_suffices_for_a_long_chat() -> None:
    template = ChatTemplate(TEMPLATES["chatml"], SPECIAL)
    long = [{"role": "user", "content": "word " * 100}] * 2000  # a million characters
    assert len(template.render(long)) > 10**6
    assert template.render(long) == template.render(long)


def test_messages_without_a_template_say_so(artifact: Path) -> None:
    def drop(data: dict[str, Any]) -> None:
        data["tokenizer"]["chat_template"] = None
        data["files"] = [file for file in data["files"] if file["path"] != "chat_template.jinja"]

    edit(artifact, drop)
    (artifact / "chat_template.jinja").unlink()
    with (
        runtime_edge.load(artifact, threads=1) as model,
        pytest.raises(ChatTemplateError, match="expected a model with a chat template, found none") as caught,
    ):
        model.generate(MESSAGES)
    assert "prompt as text" in str(caught.value.hint)


def test_template_of_an_artifact_is_compiled_only_for_messages(artifact: Path) -> None:
    (artifact / "chat_template.jinja").write_text("{% if %}")
    relist(artifact, "chat_template.jinja")
    with runtime_edge.load(artifact, threads=1) as model:
        assert model.generate("a", max_new_tokens=1).token_ids
        with pytest.raises(ChatTemplateError, match="expected a Jinja template"):
            model.generate(MESSAGES)


def test_template_has_the_special_tokens(model: runtime_edge.Model) -> None:
    assert model.tokenize(MESSAGES)[:2] == [tiny.BOS, tiny.TURN]
