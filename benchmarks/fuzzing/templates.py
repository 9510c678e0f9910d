"""Chat templates: those of models, changed, and others that are grown from a grammar of what templates can do."""

from __future__ import annotations

import random

REAL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% endfor %}",
    "{%- if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}{% set ns = namespace(system='') %}"
    "{%- for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}"
    "{{- ns.system }}{% for m in messages | rejectattr('role', 'equalto', 'system') %}{{ m.role ~ ': ' ~ m.content }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}",
    "{% macro turn(m) %}{{ m.role }}{% generation %}{{ m.content | trim }}{% endgeneration %}{% endmacro %}"
    "{{ strftime_now('%d %b %Y') }}{% for m in messages[::-1] %}{{ turn(m) }}{% if m.tool_calls is defined %}"
    "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endif %}{% endfor %}",
)
_NAMES = ("a", "b", "c", "messages", "loop", "ns", "tools", "bos_token", "self", "range", "namespace", "dict", "cycler")
_FILTERS = (
    "abs", "attr('a')", "batch(3)", "batch(10**9)", "capitalize", "center(10**9)", "default('x')", "dictsort", "escape",
    "filesizeformat", "first", "float", "forceescape", "format(1)", "groupby('role')", "indent(10**6)", "int", "items",
    "join", "join(a)", "last", "length", "list", "lower", "map('upper')", "map('list')", "max", "min", "pprint",
    "random",
    "reject", "rejectattr('role')", "replace('a', a)", "replace('', a)", "reverse", "round(10**6)", "safe", "select",
    "selectattr('content')", "slice(10**9)", "sort", "string", "striptags", "sum", "sum(start=[])", "title", "tojson",
    "tojson(indent=10**9)", "trim", "truncate(9)", "unique", "upper", "urlencode", "urlize", "wordcount", "wordwrap(1)",
    "xmlattr", "nothing",
)  # fmt: skip
_METHODS = (
    "join(messages)", "join(a)", "replace('a', a)", "replace('', a)", "ljust(10**9)", "zfill(10**8)",
    "expandtabs(10**9)",
    "translate({97: 'a' * 9999})", "format(a)", "format_map({})", "split()", "split('')", "splitlines()", "strip()",
    "encode()", "upper()", "center(10**9)", "items()", "keys()", "get('a')", "copy()", "count('')", "__class__",
    "mro()",
    "__init__.__globals__", "append(a)", "update(a)", "pop()", "startswith('a')", "title()", "casefold()", "index('a')",
)  # fmt: skip
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or", "is", "not in")
_TESTS = (
    "defined",
    "none",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "number",
    "odd",
    "divisibleby(0)",
    "sameas(a)",
    "in(a)",
)


def expression(rng: random.Random, depth: int) -> str:
    """Returns an expression."""
    kind = rng.randrange(12) if depth > 0 else rng.randrange(3)
    if kind == 0:
        return rng.choice(_NAMES)
    if kind == 1:
        numbers = ("0", "1", "-1", "2", "99", "10**9", "10**30", "2**63", "1.5", "1e308", "9" * 50)
        return rng.choice(("'a'", "''", "'%s'", "'%99999999d'", "'{:>99999999}'", "'{0.__class__}'", *numbers))
    if kind == 2:
        return rng.choice(
            ("[]", "{}", "[1, 2]", "{'a': 1}", "(1,)", "none", "true", "range(9)", "range(10**9)", "messages[0]")
        )
    deeper = lambda: expression(rng, depth - 1)  # noqa: E731
    if kind in (3, 4):
        return f"({deeper()} {rng.choice(_OPERATORS)} {deeper()})"
    if kind in (5, 6):
        return f"({deeper()}) | {rng.choice(_FILTERS)}"
    if kind == 7:
        return f"({deeper()}).{rng.choice(_METHODS)}"
    if kind == 8:
        return f"({deeper()})[{rng.choice((deeper(), ':', '::-1', '0', '-1', ':10**9', '::0'))}]"
    if kind == 9:
        return f"({deeper()} if {deeper()} else {deeper()})"
    if kind == 10:
        calls = (
            "raise_exception",
            "strftime_now",
            "range",
            "namespace",
            "dict",
            "lipsum",
            "cycler",
            "joiner",
            "f",
            "a",
            "loop",
        )
        return f"{rng.choice(calls)}({', '.join(deeper() for _ in range(rng.randrange(3)))})"
    return f"({deeper()}) is {rng.choice(_TESTS)}"


def statement(rng: random.Random, depth: int) -> str:
    """Returns a piece of a template."""
    kind = rng.randrange(14) if depth > 0 else 0
    block = lambda: "".join(statement(rng, depth - 1) for _ in range(rng.randint(1, 2)))  # noqa: E731
    name = rng.choice(("a", "b", "c"))
    if kind < 3:
        return f"{{{{ {expression(rng, 3)} }}}}"
    if kind < 5:
        return f"{{% set {name} = {expression(rng, 3)} %}}"
    if kind == 5:
        return f"{{% set {name} %}}{block()}{{% endset %}}"
    if kind < 8:
        more = rng.choice(("", "", " recursive", f" if {expression(rng, 1)}"))
        source = rng.choice(("messages", "range(9)", "range(10**6)", "a", expression(rng, 2)))
        inner = rng.choice(("", "{% break %}", "{% continue %}", "{{ loop(a) }}"))
        return f"{{% for {name} in {source}{more} %}}{block()}{inner}{{% endfor %}}"
    if kind == 8:
        return f"{{% if {expression(rng, 2)} %}}{block()}{{% else %}}{block()}{{% endif %}}"
    if kind == 9:
        call = rng.choice(("f(a)", "f(f(a))", "f(a, a=1, a=2)", "f(*a)", "f(**a)"))
        return f"{{% macro f({name}, b='') %}}{block()}{rng.choice(('', '{{ f(a) }}'))}{{% endmacro %}}{{{{ {call} }}}}"
    if kind == 10:
        return f"{{% filter {rng.choice(_FILTERS)} %}}{block()}{{% endfilter %}}"
    if kind == 11:
        return f"{{% set ns = namespace(a={expression(rng, 2)}) %}}{{% set ns.a = ns.a ~ ns.a %}}{{{{ ns.a }}}}"
    if kind == 12:  # what grows by itself
        grown = rng.choice(
            ("a ~ a", "a + a", "[a, a]", "a * 2", "a * a", "a | tojson", "a | join(a)", "{'a': a, 'b': a}")
        )
        first = rng.choice(("'a'", "2", "[1]", "messages", "'%s'"))
        if rng.random() < 0.5:
            return f"{{% set a = {first} %}}" + f"{{% set a = {grown} %}}" * rng.choice((3, 20, 60)) + "{{ a }}"
        step = f"{{% set ns.a = {grown.replace('a', 'ns.a')} %}}"
        return f"{{% set ns = namespace(a={first}) %}}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ ns.a }}}}"
    depths = rng.choice((2, 5, 21, 100))
    return "{% for i in range(9) %}" * depths + block() + "{% endfor %}" * depths


def template(rng: random.Random) -> str:
    """Returns a template."""
    if rng.random() < 0.7:
        return "".join(statement(rng, 3) for _ in range(rng.randint(1, 4)))
    text = rng.choice(REAL)
    for _ in range(rng.randint(1, 3)):
        at, how = rng.randrange(len(text)), rng.randrange(4)
        if how == 0:
            text = text[:at] + statement(rng, 2) + text[at:]
        elif how == 1:
            text = text[:at] + text[at + rng.randint(1, 9) :]
        elif how == 2:
            text = (
                text[:at]
                + rng.choice(("{{", "}}", "{%", "%}", "{#", "'", "\0", "\ud800", "é", "(", "[" * 99))
                + text[at:]
            )
        else:
            text = text[:at] + expression(rng, 2) + text[at:]
    return text
