"""Rewrite rules as data: each is a pattern and what it turns into, in the text form of the score language.

A rule is proved once, away from any program, over the whole of its domain; that it may be applied is then a question of
matching its pattern and of its condition. Names of a pattern stand for expressions; what a name may stand for is the
same in every rule, see `NAMES`. `find` is the one engine: it looks up rules by name and head word, so that its time
does not grow with the table.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from aatc.ir.errors import ScoreError
from aatc.ir.score.expr import Expr, call, const, index, params, substitute

#: Names of patterns, as parameters of the score language: the axes are those that an expression may depend on.
NAMES = {
    "u": ("f[bhijd]", "any vector"),
    "v": ("f[bhijd]", "any vector"),
    "w": ("f[bhijd]", "any vector"),
    "x": ("f[bhij]", "any number"),
    "q": ("f[bhid]", "a vector that does not depend on the key"),
    "p": ("f[bhid]", "a vector that does not depend on the key"),
    "k": ("f[bhjd]", "a vector that does not depend on the query"),
    "r": ("f[bhi]", "a number that does not depend on the key"),
    "r2": ("f[bhi]", "a number that does not depend on the key"),
    "s": ("f[bhj]", "a number that does not depend on the query"),
    "m": ("f[bhijde]", "any matrix"),
    "mq": ("f[bhide]", "a matrix that does not depend on the key"),
    "t": ("f[bhijd]", "any vector of angles"),
    "tq": ("f[bhid]", "a vector of angles that does not depend on the key"),
}
#: What a rule may need of the program around the expression. Whoever asks for such a rule has made sure of it.
GIVEN = {
    "causal": "the mask admits only j <= i",
    "invariant": "the normaliser, as softmax, does not see numbers per query; the log-sum-exp gets them back",
    "split": "the difference is formed again before its digits matter",
}

Bound = Mapping[str, Expr]


@dataclass(frozen=True)
class Condition:
    """What the form of the bound expressions must show. ``domain``: what is then true of their values, as truth values
    of the score language; empty for a condition that says where a rule is of use, not where it is right."""

    text: str
    holds: Callable[[Bound], bool]
    domain: tuple[str, ...] = ()


ALWAYS = Condition("", lambda bound: True)


@dataclass(frozen=True)
class Rule:
    """``before`` → ``after``, in the score language over `NAMES`.

    relation: "equal", or "row-constant" where the two differ by what does not depend on the key. given: a word of
    `GIVEN`. domain: where, of all real numbers, the two sides are to be the same; what ``condition`` and ``given``
    ensure, or where ``before`` has a value at all. counted: whether reports tell how often it was applied.
    """

    name: str
    before: str
    after: str
    condition: Condition = ALWAYS
    given: str = ""
    domain: tuple[str, ...] = ()
    relation: str = "equal"
    counted: bool = True

    def __str__(self) -> str:
        return f"{self.before} → {self.after}"

    @cached_property
    def pattern(self) -> Expr:
        return _read(self.before)

    @cached_property
    def result(self) -> Expr:
        return _read(self.after)

    @property
    def head(self) -> str:
        """The word that the pattern begins with; empty for one written with an operator, whatever that is."""
        word = re.match(r"(\w+)[(\[]", self.before)
        return word[1] if word and _closes_at_end(self.before, word.end() - 1) else ""

    @property
    def where(self) -> tuple[str, ...]:
        """The domain: what is true of the values of the names."""
        return (*self.domain, *self.condition.domain)

    def match(self, e: Expr, given: Collection[str] = ()) -> Match | None:
        """What the names stand for in ``e``; None where it is no instance, or the condition does not hold."""
        bound: dict[str, Expr] = {}
        if (self.given and self.given not in given) or not _matches(self.pattern, e, bound):
            return None
        return Match(self, bound) if self.condition.holds(bound) else None


@dataclass(frozen=True)
class Match:
    """An instance of a rule's pattern."""

    rule: Rule
    bound: dict[str, Expr]

    def result(self, part: Expr | None = None, known: Mapping[Expr, Expr] = {}) -> Expr:
        """The rewritten expression, or a ``part`` of it (a node of the rule's result); ``known`` parts are given."""
        table = {_name(n): e for n, e in self.bound.items()}
        return substitute(self.rule.result if part is None else part, {**table, **known})


class RuleTable:
    """Rules by name. A name may have several, one per form."""

    def __init__(self, rules: Iterable[Rule]):
        self.rules = tuple(rules)
        self.names = dict.fromkeys(r.name for r in self.rules)
        self._candidates: dict[tuple[str, str, str], tuple[Rule, ...]] = {}

    def find(self, e: Expr, *names: str, given: Collection[str] = ()) -> Match | None:
        """The first of the rules called ``names`` whose pattern ``e`` is."""
        for name in names:
            for rule in self._that_may_match(name, e):
                found = rule.match(e, given)
                if found is not None:
                    return found
        return None

    def _that_may_match(self, name: str, e: Expr) -> tuple[Rule, ...]:
        key = (name, e.fn, e.args[0].fn if e.args else "")
        found = self._candidates.get(key)
        if found is None:
            named = (r for r in self.rules if r.name == name and r.head in (e.fn, ""))
            found = tuple(r for r in named if r.pattern.fn == e.fn and _starts_with(r.pattern, key[2]))
            self._candidates[key] = found
        return found

    def match(self, name: str, **bound: Expr) -> Match:
        """An instance of the rule called ``name`` whose names are those of ``bound``, which it must admit."""
        for rule in (r for r in self.rules if r.name == name):
            if {p.name for p in params(rule.pattern)} == bound.keys():
                if all(_admits(_name(n), e) for n, e in bound.items()) and rule.condition.holds(bound):
                    return Match(rule, bound)
        raise ScoreError(f"no rule {name} is about {', '.join(f'{n} = {e}' for n, e in bound.items())}")


def _starts_with(pattern: Expr, word: str) -> bool:
    return not pattern.args or pattern.args[0].fn in ("param", word)


def _admits(name: Expr, e: Expr) -> bool:
    return e.rank == name.rank and e.dtype != "b" and e.axes <= name.axes


def _read(text: str) -> Expr:
    """The expression of a side of a rule. Its syntax is part of the score language and of Python's both; the parser of
    the IR, which every process would have to build for these few words, takes longer than a whole pass."""
    return _expression(ast.parse(text, mode="eval").body)


_INFIX = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}


def _expression(node: ast.expr) -> Expr:
    if isinstance(node, ast.Name):
        return _name(node.id) if node.id in NAMES else index(node.id)
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        return call("neg", _expression(node.operand))
    if isinstance(node, (ast.Constant, ast.UnaryOp)):
        return const(ast.literal_eval(node))
    if isinstance(node, ast.BinOp):
        return call(_INFIX[type(node.op)], _expression(node.left), _expression(node.right))
    assert isinstance(node, ast.Call)
    word, _, constant = ast.unparse(node.func).partition("[")  # as in rotate[half](u, t)
    return call(word, *map(_expression, node.args), attrs=(constant[:-1],) if constant else ())


def _name(name: str) -> Expr:
    dtype, axes = NAMES[name][0].rstrip("]").split("[")
    return Expr("param", (), (name, axes, dtype))


def _closes_at_end(text: str, start: int) -> bool:
    """Whether the bracket that opens at ``start``, and a second one behind it, close with the text."""
    depth = 0
    for n, c in enumerate(text[start:], start):
        depth += (c in "([") - (c in ")]")
        if depth == 0 and text[n + 1 : n + 2] != "(":
            return n == len(text) - 1
    return False


def _matches(pattern: Expr, e: Expr, bound: dict[str, Expr]) -> bool:
    if pattern.fn == "param":
        if not _admits(pattern, e):
            return False
        return bound.setdefault(pattern.name, e) is e
    if pattern.is_const:
        return e.is_const and e.dtype != "b" and e.value == pattern.value
    if pattern.fn != e.fn or pattern.attrs != e.attrs or len(pattern.args) != len(e.args):
        return False
    return all(_matches(p, a, bound) for p, a in zip(pattern.args, e.args, strict=True))


def rules_table(table: RuleTable) -> str:
    """The rules, and what their names stand for, as Markdown tables (docs/rules.md is this text)."""
    lines = ["| rule | before | after | where | given |", "| --- | --- | --- | --- | --- |"]
    for r in table.rules:
        where = "; ".join(filter(None, [r.condition.text, *(f"`{d}`" for d in r.domain)]))
        name = r.name if r.counted else f"({r.name})"
        lines.append(f"| {name} | `{r.before}` | `{r.after}` | {where} | {r.given} |")
    lines += ["", "| name | stands for |", "| --- | --- |"]
    lines += [f"| `{n}` | {meaning} |" for n, (_, meaning) in NAMES.items()]
    lines += ["", "| given | means |", "| --- | --- |", *(f"| {n} | {meaning} |" for n, meaning in GIVEN.items())]
    return "\n".join(lines) + "\n"
