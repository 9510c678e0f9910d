"""What of Jinja's syntax a template may use, and where its tree is changed so that every part of it is counted.

Blocks that run more than once, or perhaps not at all, begin with a statement that spends what their own nodes cost.
Expressions whose cost depends on values, and which jinja2 compiles to Python's operators, become calls of hooks:
filters whose names no template can write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar, cast

from jinja2 import nodes

from runtime_edge.template.budget import (
    BLOCK_NODES,
    MAX_BITS,
    MAX_DIGITS,
    MAX_EXPRESSION,
    MAX_LOOPS,
    MAX_NESTING,
    MAX_NODES,
    MAX_SOURCE,
    MAX_VARIABLES,
    NODE,
    refusal,
)

SPEND, TEXT, SLICE, KEY, SPREAD, COMPARE = "#spend", "#text", "#slice", "#key", "#spread", "#compare "
_MIDDLE = 16  # nodes of what stands in the middle of a < b < c: it is evaluated twice

# Statements with blocks: the fields that are blocks of their own.
_BLOCKS: dict[type[nodes.Node], tuple[str, ...]] = {
    nodes.For: ("body", "else_"),
    nodes.If: ("body", "else_"),
    nodes.Macro: ("body",),
    nodes.CallBlock: ("body",),
    nodes.FilterBlock: (),
    nodes.AssignBlock: (),
    nodes.With: (),
}
_ALLOWED = frozenset({
    nodes.Template, nodes.Output, nodes.Assign, nodes.ExprStmt, nodes.Break, nodes.Continue, nodes.Scope, *_BLOCKS,
    nodes.Name, nodes.NSRef, nodes.Const, nodes.TemplateData, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair,
    nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice,
    nodes.Concat, nodes.Compare, nodes.Operand, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Add, nodes.Sub, nodes.Mod,
    nodes.Pow, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.ExtensionAttribute,
})  # fmt: skip
_NAMES: dict[type[nodes.Node], str] = {
    nodes.Include: "{% include %}",
    nodes.Import: "{% import %}",
    nodes.FromImport: "{% from … import %}",
    nodes.Extends: "{% extends %}",
    nodes.Block: "{% block %}",
    nodes.ScopedEvalContextModifier: "{% autoescape %}",
}

N = TypeVar("N", bound=nodes.Node)


def check_source(source: str) -> None:
    """Refuses a template before it is parsed: one that is too long, or has numbers of too many digits."""
    if len(source) > MAX_SOURCE:
        raise refusal(f"at most {MAX_SOURCE} characters", str(len(source)))
    if re.search(rf"\d[\d_]{{{MAX_DIGITS}}}", source):
        raise refusal(f"numbers of at most {MAX_DIGITS} digits", "a longer one")


def counted(template: nodes.Template) -> nodes.Template:
    """Checks a parsed template, and changes it so that all it does is counted.

    Raises:
        ChatTemplateError: It uses syntax that chat templates have no use for, breaks a rule that Python's compiler
            would complain of, or is too large or nested too deeply.
    """
    _check_size(template)
    rewriter = _Rewriter()
    template.body = rewriter.block(template.body, 0, 0)
    return template


def _check_size(template: nodes.Template) -> None:
    """Bounds the tree before anything descends into it recursively."""
    count = 0
    names: set[str] = set()
    pending: list[tuple[nodes.Node, int, int]] = [(template, 0, 0)]
    while pending:
        node, nesting, depth = pending.pop()
        kind = type(node)
        count += BLOCK_NODES if kind in _BLOCKS else 1
        if kind not in _ALLOWED:
            raise refusal("the syntax of chat templates", f"{_NAMES.get(kind, kind.__name__)} in line {node.lineno}")
        if isinstance(node, nodes.Name) and node.ctx != "load":
            names.add(node.name)
        if isinstance(node, nodes.Expr):
            depth += 1
        elif isinstance(node, nodes.Stmt):
            nesting, depth = nesting + (kind in _BLOCKS), 0
        for what, number, most in (
            ("nodes in its syntax tree", count, MAX_NODES),
            ("variables", len(names), MAX_VARIABLES),
            ("statements within statements", nesting, MAX_NESTING),
            ("operations within operations", depth, MAX_EXPRESSION),
        ):
            if number > most:
                raise refusal(f"at most {most} {what}", f"more in line {node.lineno}")
        # `elif` stands beside its `if`, not in it.
        beside = set(map(id, node.elif_)) if isinstance(node, nodes.If) else set()
        pending += [(child, nesting - (id(child) in beside), depth) for child in node.iter_child_nodes()]


class _Rewriter:
    def __init__(self) -> None:
        self.cost = 0

    def block(self, body: Sequence[nodes.Node], loops: int, innermost: int) -> list[nodes.Node]:
        """Returns statements with what they cost together in front; `innermost` loops can be left with `break`."""
        outer, self.cost = self.cost, NODE
        changed = [self.statement(node, loops, innermost) for node in body]
        cost, self.cost = self.cost, outer
        line = body[0].lineno if body else 1
        amount = nodes.Const(cost, lineno=line)
        spend = nodes.Filter(amount, SPEND, [], [], None, None, lineno=line)
        return [nodes.ExprStmt(spend, lineno=line), *changed]

    def statement(self, node: nodes.Node, loops: int, innermost: int) -> nodes.Node:
        if isinstance(node, (nodes.Break, nodes.Continue)) and not innermost:
            word = type(node).__name__.lower()
            raise refusal(f"{{% {word} %}} within a loop", f"one outside, in line {node.lineno}")
        if isinstance(node, (nodes.Macro, nodes.CallBlock)):
            _check_names("parameter", [argument.name for argument in node.args], node.lineno)
            loops = innermost = 0
        outside = innermost
        if isinstance(node, nodes.For):
            loops = 1 if node.recursive else loops + 1
            innermost = loops
            if loops > MAX_LOOPS:
                raise refusal(f"at most {MAX_LOOPS} loops within loops", f"more in line {node.lineno}")
            if node.test is not None:
                node.test = self._step(node.test)
        own = _BLOCKS.get(type(node), ())
        for field in node.fields:
            value = getattr(node, field)
            if field in own:
                inside = outside if field == "else_" else innermost
                if value or field == "body":
                    setattr(node, field, self.block(value, loops, inside))
            elif isinstance(value, list):
                setattr(node, field, [self._any(child, loops, innermost) for child in value])
            elif isinstance(value, nodes.Node) and field != "test":
                setattr(node, field, self._any(value, loops, innermost))
            elif isinstance(value, nodes.Node):
                setattr(node, field, value if isinstance(node, nodes.For) else self.expression(value))
        self.cost += NODE
        return node

    def _any(self, node: N, loops: int, innermost: int) -> N:
        if isinstance(node, nodes.Stmt):
            return self.statement(node, loops, innermost)  # type: ignore[return-value]
        return self.expression(node) if isinstance(node, nodes.Node) else node

    def _step(self, test: nodes.Node) -> nodes.Expr:
        """The condition of a loop: it is evaluated for every element, in a function of its own."""
        outer, self.cost = self.cost, 0
        test = cast(nodes.Expr, self.expression(test))
        cost, self.cost = self.cost + NODE, outer
        amount = nodes.Const(cost, lineno=test.lineno)
        spend = nodes.Filter(amount, SPEND, [], [], None, None, lineno=test.lineno)
        return nodes.And(nodes.Not(spend, lineno=test.lineno), test, lineno=test.lineno)

    def expression(self, node: N) -> N:
        """Returns an expression, or a part of one, with hooks in it."""
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                setattr(node, field, self.expression(value))
            elif isinstance(value, list):
                setattr(node, field, [self.expression(part) for part in value])
        self.cost += NODE + (len(node.data) if isinstance(node, nodes.TemplateData) else 0)
        _check_constant(node)
        line = node.lineno
        if isinstance(node, (nodes.Call, nodes.Filter, nodes.Test)):
            _check_names("keyword", [cast(nodes.Keyword, keyword).key for keyword in node.kwargs], line)
            node.dyn_args = None if node.dyn_args is None else _hook(SPREAD, node.dyn_args, line)
            node.dyn_kwargs = None if node.dyn_kwargs is None else _hook(SPREAD, node.dyn_kwargs, line)
        elif isinstance(node, nodes.Concat):
            node.nodes = [_hook(TEXT, part, line) for part in node.nodes]
        elif isinstance(node, nodes.Pair):
            node.key = _hook(KEY, node.key, line)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            cut = node.arg
            bounds = [bound or nodes.Const(None, lineno=line) for bound in (cut.start, cut.stop, cut.step)]
            return _hook(SLICE, node.node, line, *bounds)  # type: ignore[return-value]
        elif isinstance(node, nodes.Compare):
            return _comparison(node)  # type: ignore[return-value]
        return node


def _hook(name: str, value: nodes.Expr, line: int, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=line)


def _comparison(node: nodes.Compare) -> nodes.Expr:
    """Returns (a < b) and (b < c) for a < b < c: Python ends early too."""
    left, pairs = node.expr, []
    for at, operand in enumerate(node.ops):
        pairs.append(_hook(COMPARE + operand.op, left, node.lineno, operand.expr))
        left = operand.expr
        if at < len(node.ops) - 1 and not _can_be_repeated(left):
            raise refusal("short values in a chain of comparisons", f"others in line {node.lineno}")
    comparison: nodes.Expr = pairs[0]
    for pair in pairs[1:]:
        comparison = nodes.And(comparison, pair, lineno=node.lineno)
    return comparison


def _can_be_repeated(node: nodes.Expr) -> bool:
    """Whether a value is small, and calls nothing that could answer otherwise the second time."""
    every = [node, *_all(node)]
    calls = [part.node for part in every if isinstance(part, nodes.Call)]
    return len(every) <= _MIDDLE and all(isinstance(call, nodes.Getattr) and call.attr != "next" for call in calls)


def _all(node: nodes.Node) -> Iterator[nodes.Node]:
    for child in node.iter_child_nodes():
        yield child
        yield from _all(child)


def _check_names(what: str, names: Sequence[str], line: int) -> None:
    twice = sorted(name for name in set(names) if names.count(name) > 1)
    if twice:
        raise refusal(f"each {what} once", f"{twice[0]!r} twice in line {line}")


def _check_constant(node: nodes.Node) -> None:
    value = node.value if isinstance(node, nodes.Const) else None
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise refusal(f"integers of at most {MAX_BITS} bits", f"a larger one in line {node.lineno}")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise refusal("finite numbers", f"another one in line {node.lineno}")
