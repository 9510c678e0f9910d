"""Chat templates answer as transformers' own environment does: to the character, and with a refusal where it "
"has one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime_edge.chat import ChatTemplate
from runtime_edge.errors import ChatTemplateError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather “now”",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "City"}, "n": {"type": ["integer", "null"]}},
                "required": ["city"],
            },
        },
    }
]
SYSTEM = {"role": "system", "content": "Be brief — “ok”."}
USER = {"role": "user", "content": " Hi <b>&</b> 'x'\n"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image"}]}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "a1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}],
}
RESULT = {"role": "tool", "name": "weather", "content": '{"t": 3}', "tool_call_id": "a1"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes 日本 "}
CHATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "a question": ([USER], {}),
    "a system's message": ([SYSTEM, USER], {}),
    "several turns": ([SYSTEM, USER, THOUGHT, USER], {"enable_thinking": False}),
    "parts": ([SYSTEM, PARTS], {}),
    "tools": ([SYSTEM, USER, CALL, RESULT, USER], {"tools": TOOLS}),
    "tools alone": ([USER, CALL, RESULT], {"tools": TOOLS, "enable_thinking": True}),
    "the wrong order": ([THOUGHT, USER], {}),
    "documents": ([USER], {"documents": [{"title": "a", "text": "b"}]}),
}
# Short forms of what the templates of large families do: Llama 3 (headers), Qwen 3 (thoughts), Gemma 3 (alternating),
# Mistral (last_question), gpt-oss and Command R (macros), SmolLM in training (generation), DeepSeek, Phi (table).
FAMILIES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))}
EXPRESSIONS = """
1 + 2 * 3 - 4 / 5 // 2 % 3 ** 2 ;; -7 // 2 ;; -7 % 3 ;; 7.5 // 2 ;; 2 ** -1 ;; 2 ** 10 ;; 10 / 4 ;; 1e3 ;; 1.0
+true ;; -true ;; 1_000 ;; 0x1f
'a' + 'b' ~ 1 ~ none ~ true ~ 1.5 ~ [1, 'x'] ;; 'ab' * 3 ;; 3 * 'ab' ;; [1] * 2 + [3] ;; (1,) + (2,) ;; 'a' + 1
[] + () ;; none + 1
1 < 2 < 3 ;; 1 < 3 < 2 ;; 3 < 2 < x.y.z ;; 0 < messages | length <= 5 ;; 1 == 1.0 ;; '1' == 1 ;; [1] == [1]
{} == [] ;; 'a' < 'b' ;; 'a' < 1
'a' in 'abc' ;; 'x' not in 'abc' ;; 1 in [1, 2] ;; 'role' in messages[0] ;; 1 in {1: 2} ;; 3 in range(5)
'x' in none ;; [1] in [[1]] ;; () in {}
'a' if true else 'b' ;; 'a' if false ;; ('a' if false) is defined ;; not none ;; not [] ;; 1 and 0 or 'x'
none or false ;; [] and 1
messages[0].role ;; messages[0]['nothing'] ;; messages[0].nothing.x ;; messages[99] ;; messages[-1].role
messages.role ;; messages['0']
nothing ;; nothing is defined ;; nothing.x ;; nothing[0] ;; nothing() ;; nothing + 1 ;; nothing ~ 'x'
nothing == nothing ;; nothing in [1] ;; nothing | length
'abcdef'[1:3] ;; 'abcdef'[::-1] ;; 'abcdef'[-2:] ;; [1, 2, 3][::2] ;; 'abc'[0] ;; 'abc'[9]
(1, 2, 3)[1:] ;; range(9)[2:4] ;; 'abc'[::0] ;; messages[:'x']
'%s' % 'a' ;; '%s-%05.2f|%5s|%-5s|' % ('a', 1.5, 'x', 'y') ;; '%(a)s %(b)d' % {'a': 1, 'b': 2} ;; '%d%%' % 5
'%s' % [1, 'x'] ;; '%r' % 'é' ;; '%a' % 'é'
'%x %o %e %g %c' % (255, 8, 1.5, 2.5, 'x') ;; '%s %s' % ('a',) ;; '%d' % 'a' ;; '%*d' % (5, 1) ;; '%q' % 1
'%s' % none ;; '%.2s' % 'abc' ;; '%+d' % 3
'{} {}'.format(1, 'x') ;; '{0}{1}{0}'.format('a', 'b') ;; '{a:>5}|{b!r:5}'.format(a=1, b='x')
'{:.2f}'.format(1.239) ;; '{:,}'.format(1234567)
'{0.x}'.format({'x': 1}) ;; '{0[x]}'.format({'x': 1}) ;; '{:{}}'.format('a', 5) ;; '{a}'.format_map({'a': 1})
'{'.format() ;; '{}'.format() ;; '{x}'.format(y=1)
'a b  c'.split() ;; 'a,b,c'.split(',') ;; 'a,b,c'.split(',', 1) ;; 'a,b,c'.rsplit(',', maxsplit=1)
'a\\nb\\r\\nc'.splitlines() ;; 'a-b'.partition('-') ;; ''.split()
'a-b-c'.rpartition('-') ;; 'a'.split('') ;; ' x '.strip() ;; 'xxaxx'.strip('x') ;; ' x '.lstrip()
'x\\n'.rstrip('\\n') ;; 'abc'.removeprefix('a') ;; 'abc'.removesuffix('c')
'abc'.startswith('a') ;; 'abc'.startswith(('b', 'a')) ;; 'abc'.endswith('c', 1) ;; 'abcabc'.find('c')
'abc'.rfind('z') ;; 'abc'.index('z') ;; 'aXbX'.count('X')
'abc'.replace('b', 'x') ;; 'aaa'.replace('a', 'b', 2) ;; 'abc'.replace('', '-') ;; 'Abc'.lower() ;; 'ß'.upper()
'abC def'.title() ;; 'abc'.capitalize() ;; 'aB'.swapcase()
'İ'.casefold() ;; 'a'.center(5, '*') ;; 'a'.ljust(3) ~ '|' ;; 'a'.rjust(3) ;; '-5'.zfill(4) ;; 'a\\tb'.expandtabs(4)
'abc'.isalpha() ;; '12'.isdigit() ;; 'a1'.isalnum() ;; 'A'.isupper()
'a'.islower() ;; ' '.isspace() ;; 'Ab Cd'.istitle() ;; '½'.isnumeric() ;; 'a'.isidentifier() ;; 'é'.isascii()
','.join(['a', 'b']) ;; ','.join('ab') ;; ','.join([1]) ;; ','.join({'a': 1})
{'a': 1}.items() ;; {'a': 1}.keys() ;; {'a': 1}.values() ;; {'a': 1}.get('a') ;; {'a': 1}.get('b')
{'a': 1}.get('b', 2) ;; {'a': 1}.copy() ;; {'a': 1}.a ;; {'a': 1}['a'] ;; {'items': 1}.items
[1, 2, 1].count(1) ;; [1, 2].index(2) ;; [1, 2].index(3) ;; [1].copy() ;; (1, 2).count(1)
{1: 2, true: 3, none: 4, (1, 2): 5} ;; {[1]: 2} ;; (3).bit_length() ;; 1.5.is_integer() ;; {1: 2}.x
range(3) ;; range(1, 9, 3) | list ;; range(3) | list ;; range(5).stop ;; dict(a=1, b=2) ;; dict([('a', 1)])
dict.fromkeys('ab', 1) ;; namespace(a=1).a ;; namespace(a=1).b ;; cycler('a', 'b').next()
-3 | abs ;; 1.5 | abs ;; 'x' | abs ;; 'a' | attr('upper') is callable ;; {'x': 1} | attr('x')
[1, 2, 3] | batch(2) | list ;; [1, 2, 3] | batch(2, 'x') | list ;; 'aB c' | capitalize
'a' | center(5) ;; 'a' | center(width=3) ;; [1, 2] | count ;; none | d('x') ;; nothing | default('x')
'' | default('x', true) ;; {'b': 1, 'A': 2} | dictsort ;; {'b': 1, 'a': 2} | dictsort(by='value', reverse=true)
'<a&"x">' | e ;; '<' | escape ~ '<' ;; ('<' | e) + '<' ;; ('<' | safe) + '<' ;; '<' | safe | forceescape
('%s' | safe) % '<' ;; ('{}' | safe).format('<') ;; ('<' | safe).join(['<', '>']) ;; ('a' | safe) * 2
('<' | e).upper()
1000 | filesizeformat ;; 123456789 | filesizeformat(true) ;; [3, 1] | first ;; [] | first ;; '1.5' | float
'x' | float ;; 'x' | float(2) ;; '%s-%s' | format(1, 'b') ;; '%(a)s' | format(a=1) ;; '%s' | format
[{'a': 1, 'b': 2}, {'a': 1, 'b': 3}] | groupby('a') ;; [{'a': {'b': 1}}] | groupby('a.b') | list
'a\\nb\\n\\nc' | indent ;; 'a\\nb' | indent(2, true) ;; 'a\\n\\nb' | indent('> ', blank=true) ;; 5 | indent
'12' | int ;; 'x' | int ;; 'ff' | int(base=16) ;; '0x1f' | int(0, 16) ;; 1.9 | int ;; none | int(7) ;; [1] | int
{'a': 1} | items | list ;; [1, 2] | join ;; [1, 'a', none] | join(', ') ;; [{'a': 1}] | join('-', attribute='a')
'abc' | join('-')
[1, 2] | last ;; 'abc' | last ;; 'abc' | length ;; 5 | length ;; 'ab' | list ;; {'a': 1} | list ;; 'ABC' | lower
5 | lower ;; ['a', 'b'] | map('upper') | list ;; [{'a': 1}, {}] | map(attribute='a', default=0) | list
['ab'] | map('replace', 'a', 'x') | list
[1, 3, 2] | max ;; ['b', 'A'] | min ;; [{'a': 2}, {'a': 1}] | max(attribute='a') ;; [] | max
['a', 'B'] | max(case_sensitive=true) ;; {'a': [1, 2]} | pprint ;; [1, 2, 3] | reject('odd') | list
[{'a': 0}, {'a': 1}] | rejectattr('a') | list
'aab' | replace('a', 'x') ;; 'aab' | replace('a', 'x', 1) ;; 5 | replace(5, 6) ;; [1, 2] | reverse | list
'abc' | reverse ;; 42.55 | round ;; 42.55 | round(1, 'floor') ;; 42 | round(-1) ;; 1.5 | round(method='ceil')
'x' | round
[0, 1, 2] | select | list ;; [1, 2, 3] | select('greaterthan', 1) | list
messages | selectattr('role', 'equalto', 'user') | list | length
messages | selectattr('role', 'in', ['user']) | map(attribute='role') | list ;; [1, 2, 3, 4, 5] | slice(2) | list
[1, 2, 3] | slice(2, 0) | list
[3, 1, 2] | sort ;; ['b', 'A', 'c'] | sort ;; [{'a': 2}, {'a': 1}] | sort(attribute='a')
[3, 1] | sort(reverse=true) ;; ['b', 'A'] | sort(case_sensitive=true) ;; [1, 'a'] | sort ;; 5 | string ~ 'x'
[1] | string ;; '<p>a  b</p><!-- c -->' | striptags ;; [1, 2] | sum ;; [{'a': 1}] | sum('a')
[[1], [2]] | sum(start=[]) ;; ['a'] | sum(start='') ;; [1.5, 2] | sum ;; ['a'] | sum ;; 'hello world' | title
"it's" | title ;; [1, 'é<', none, true, {'a': 1.0}] | tojson
{'b': 1, 'a': [1]} | tojson(indent=2, sort_keys=true) ;; 'é' | tojson(ensure_ascii=true)
[1, 2] | tojson(separators=(',', ':')) ;; nothing | tojson ;; {1: 2} | tojson ;; ' a ' | trim ;; 'xax' | trim('x')
5 | trim ;; 'hello big world' | truncate(9) ;; 'hello big world' | truncate(9, true, '…', 0) ;; 'abc' | truncate(2)
'abcdefghij' | truncate(5, leeway=0)
[1, 2, 1, 'A', 'a'] | unique | list ;; [{'a': 1}, {'a': 1}] | unique(attribute='a') | list ;; [[1]] | unique | list
'abc' | upper ;; 'a b/é' | urlencode ;; {'a': 'b c'} | urlencode ;; [('a', 1)] | urlencode
'see http://x.de/a now' | urlize ;; 'a bc d' | wordcount
'a long text that is wrapped' | wordwrap(10) ;; 'abcdefghijkl' | wordwrap(5)
{'class': 'a<', 'id': none} | xmlattr ;; {'a b': 1} | xmlattr ;; [] | random ;; [5] | random
1 is odd ;; 2 is even ;; 9 is divisibleby(3) ;; x is defined ;; x is undefined ;; none is none ;; true is boolean
false is false ;; 1 is integer ;; 1.0 is float ;; 'a' is lower ;; 'A' is upper ;; 'a' is string ;; {} is mapping
1 is number
true is number ;; 'a' is sequence ;; {} is sequence ;; 'a' is iterable ;; 5 is iterable ;; range is callable
1 is sameas(1) ;; ('a' | e) is escaped ;; 1 is in [1] ;; 1 is eq 1 ;; 1 is ne 2 ;; 2 is gt 1 ;; 1 is ge 1
1 is lt 2 ;; 1 is le 0 ;; 'upper' is filter ;; 'odd' is test
'a' is odd ;; none is even ;; 1 is not none ;; 2 is greaterthan(1) ;; 1 is equalto 1 ;; 'x' is sameas 'y'
'' is not defined ;; messages is sequence ;; messages[0] is mapping
"it's \\"x\\" \\u00e9 \\x41 \\t" ;; 'a' 'b' ;; '日本'[1] ;; '日本' | length ;; 'é' | upper ;; '👍' | tojson
'\\n' | string ;; [none, true, 1.0, 'é', "x'y"] ;; ('a', ) ;; () ;; {'k': none}
strftime_now('') ;; strftime_now('%Y') | length ;; raise_exception('no') ;; 'a'.upper | string | length > 5
[''.join] | length ;; messages.append(1) ;; {}.pop('x') ;; ''.__class__ ;; ''.nothing ;; (1).__add__
namespace(_x=1) ;; '' | attr('__class__')
"""
STATEMENTS = [
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}",
    "{% for a, b in {'x': 1, 'y': 2}.items() %}{{ loop.index }}{{ loop.revindex0 }}{{ a }}{{ b }}{% else "
    "%}none{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}{% for i in [1, 2, 3] if i is odd %}{{ i }}{{ loop.length "
    "}}{% endfor %}",
    "{% for n in [[1, [2]], [3]] recursive %}{% if n is iterable %}({{ loop(n) }}){% else %}{{ n }}{{ "
    "loop.depth }}{% endif %}{% endfor %}",
    "{% macro f(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}{{ f(1, "
    "3, 4, 5, k=6) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f.name }}{{ f.arguments }}{{ f() }}",
    "{% set a, b = 1, [2] %}{{ a }}{{ b }}{% set c = (a, b) %}{{ c }}{% set (d, (e, g)) = (1, (2, 3)) %}{{ d }}{{ g }}",
    "{% set x %}a{{ 1 }}b{% endset %}[{{ x }}]{% set y | upper %}c{{ x }}{% endset %}{{ y }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set c = 3 %}{{ c }}{% endwith %}{{ c }}",
    "{% if a is defined and a %}x{% elif 1 %}y{% else %}z{% endif %}{% raw %}{{ a }}{% endraw %}{# c #}",
    "  {% if 1 %}\n  a\n  {% endif %}\n  b {%- if 1 -%}  c  {%- endif +%}\n{%+ if 1 %}d{% endif %}\n",
    "{% set ns = namespace(a=[]) %}{% for i in range(3) %}{% set ns.a = ns.a + [i] %}{% endfor %}{{ ns.a }}{{ ns.b }}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i "
    "}}{% endfor %}",
    "{% call(x, y=2) dict(a=1) %}{% endcall %}{% macro m() %}<{{ caller(1) }}>{% endmacro %}{% call(x, y=2) "
    "m() %}{{ x }}{{ y }}{% endcall %}",
    "{% macro a() %}{% macro b() %}in{% endmacro %}{{ b() }}{% endmacro %}{{ a() }}{{ b }}",
    "{{ self }}",
    "{% set messages = messages[:1] %}{{ messages | length }}{% for m in messages %}{% set messages = [] %}{% "
    "endfor %}{{ messages | length }}",
    "{% set j = joiner(', ') %}{% set c = cycler('a', 'b') %}{% for i in range(3) %}{{ j() }}{{ c.next() }}{{ "
    "c.current }}{% endfor %}",
    "{{ '%s' % messages[0] }}{{ messages[0] }}{{ messages[0].items() | list }}",
    "{% for c in 'añ' %}{{ loop.first }}{{ loop.last }}{{ c }}{{ loop.nextitem }}{% endfor %}{{ loop }}",
    "{{ dict(messages[0], **{'x': 1}).x }}{{ dict(*[[('a', 1)]]) }}{% macro f() %}{{ varargs }}{% endmacro "
    "%}{{ f(*'ab') }}",
]
# Ours refuses in words what transformers renders: methods that templates have no use for.
REFUSED = [
    "(1).to_bytes(2, 'big')",
    "'a'.encode()",
    "'abc'.translate({97: 'x'})",
    "{}.fromkeys('a')",
    "'a'.maketrans('a', 'b')",
]
_NOT_COMPARED = ("random", "lipsum")


@pytest.fixture(scope="module")
def reference() -> Callable[..., str]:
    utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="the reference is transformers")

    def render(source: str, messages: list[dict[str, Any]], answer: bool, variables: dict[str, Any]) -> str:
        given = {"tools": None, "documents": None, **variables, **SPECIAL}
        made = utils.render_jinja_template([messages], chat_template=source, add_generation_prompt=answer, **given)
        return str(made[0][0])

    return render


def both(
    reference: Callable[..., str], source: str, messages: list[dict[str, Any]], answer: bool, variables: dict[str, Any]
) -> tuple[str | None, str | None]:
    """What transformers and this runtime render; None where it is refused."""
    from jinja2 import TemplateError

    expected: str | None
    try:
        expected = reference(source, messages, answer, variables)
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, AssertionError):
        expected = None
    try:
        made = ChatTemplate(source, SPECIAL).render(messages, answer=answer, variables=variables)
    except ChatTemplateError:
        return expected, None
    return expected, made


@pytest.mark.parametrize("name", FAMILIES)
def test_families_render_as_in_transformers(name: str, reference: Callable[..., str]) -> None:
    rendered = set()
    for chat, (messages, variables) in CHATS.items():
        for answer in (True, False):
            expected, made = both(reference, FAMILIES[name], messages, answer, variables)
            assert made == expected, chat
            rendered.add(made)
    assert len(rendered - {None}) >= 4  # it renders most of them, each to another text


def _expressions() -> list[str]:
    return [expression for line in EXPRESSIONS.strip().splitlines() for expression in line.split(" ;; ")]


def test_expressions_are_as_in_transformers(reference: Callable[..., str]) -> None:
    different = {}
    rendered = 0
    for expression in _expressions():
        if any(word in expression for word in _NOT_COMPARED):
            continue
        expected, made = both(reference, "{{ " + expression + " }}", [SYSTEM, USER], True, {})
        rendered += made is not None
        if made != expected and " at 0x" not in str(expected):
            different[expression] = (expected, made)
    assert not different
    assert rendered > 250


@pytest.mark.parametrize("source", STATEMENTS)
def test_statements_are_as_in_transformers(source: str, reference: Callable[..., str]) -> None:
    expected, made = both(reference, source, [SYSTEM, USER], True, {})
    assert made == expected or " at 0x" in str(expected)


@pytest.mark.parametrize("expression", REFUSED)
def test_other_methods_are_refused_in_words(expression: str) -> None:
    with pytest.raises(ChatTemplateError, match="methods that chat templates have") as caught:
        ChatTemplate("{{ " + expression + " }}", {}).render([USER])
    assert "transformers may render it" in str(caught.value.hint)
