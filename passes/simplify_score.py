"""Brings every score to contractions and per-token terms, with a certificate for each rewrite."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from aatc.ir.core import Func, Module, Op, Value
from aatc.ir.normalizers import normalizer_named
from aatc.ir.score.expr import Expr, add, index, param, params, postorder, substitute
from aatc.ir.score.program import Program
from aatc.passes.base import Context, Pass, register
from aatc.passes.differences import apart
from aatc.passes.normal_form import Normaliser, Terms
from aatc.passes.rounding import Check, carry_checks, checks_of, grouped
from aatc.passes.score_forms import SINGULAR, jumps
from aatc.passes.snapshots import snapshot_operands


@register
@dataclass(frozen=True)
class SimplifyScore(Pass):
    """``score(q_i, k_j)`` → ``dot(f(q_i), g(k_j)) + c(k_j)``, or a function of such sums.

    Terms that depend on the query alone are dropped where the normaliser does not see them, as softmax does not; the
    log-sum-exp gets them back by a `geo.map` if anything reads it.
    """

    name: ClassVar[str] = "simplify-score"
    requires: ClassVar[tuple[str, ...]] = ("staged",)

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            snapshot_operands(func, module)
            if not any(op.name in ("geo.metric", "geo.transport") for op in func.body.ops):
                continue
            edit = _Edit(func)
            for op in list(func.body.ops):
                if op.name == "geo.metric":
                    self._simplify(edit, op, ctx)
                elif op.name == "geo.transport":
                    _simplify_carry(op, ctx)
            edit.finish()
        return module

    def _simplify(self, edit: _Edit, op: Op, ctx: Context) -> None:
        program: Program = op.attrs["score"]
        # a transport takes the scores only for the shape of the pairs
        users = [u for u in edit.users.get(op.result, ()) if u.name != "geo.transport"]
        normalized = bool(users) and all(u.name == "geo.normalize" for u in users)
        invariant = normalized and all("row" in normalizer_named(u.attrs["kind"]).invariant for u in users)
        masks = [u.attrs.get("mask") for u in users if u.name == "geo.normalize"]
        causal = normalized and all(m is not None and implies_causal(m.body) for m in masks)
        rules = Normaliser(causal=causal)
        terms = rules.terms(program.body)
        full = rules.assemble(terms)
        widths = tuple((p.name, _tail(p, v)) for p, v in zip(program.params, op.operands, strict=True) if p.rank)
        witness: tuple[Any, ...] = ("equal", program.body, full)
        assumptions: tuple[str, ...] = ()
        if full is not program.body:
            if rules.count["causal-distance"]:
                mask = _renamed(masks[0].body, program)  # type: ignore[union-attr]
                witness = ("equal-where", mask, index("j") <= index("i"), program.body, full)
                assumptions = ("the mask admits only keys j <= i",)
            assumptions = (*assumptions, *_orthogonal(program, rules))
            ctx.certify(op, "normal-form", f"the score equals {full}", witness, assumptions=assumptions, widths=widths)
        body = full
        if invariant and full is not program.body:
            body = self._drop_row_terms(edit, op, users, rules, terms, full, ctx, widths)
        op.attrs["score"] = Program(program.params, body)
        exact = Normaliser(causal=causal, whole=True)
        if _needs_whole(op, rules):
            whole = _whole(op, program, exact, ctx, witness, assumptions, widths)
            op.attrs["whole"] = Program(program.params, whole)
        _add_checks(op, program, body, rules)
        if rules.count["expand"]:
            _add_refined(op, program, rules, exact)
            _add_apart(op, program, causal, ctx, witness, widths)
        for rule, n in rules.count.items():
            if n:
                ctx.count(rule, n)

    def _drop_row_terms(
        self,
        edit: _Edit,
        op: Op,
        users: list[Op],
        rules: Normaliser,
        terms: Terms,
        full: Expr,
        ctx: Context,
        widths: Any,
    ) -> Expr:
        row = add(terms.row, terms.flat)
        if not params(row) and not postorder(row)[0].axes and (row.is_const and row.value == 0):
            return full
        rest = Terms(terms.contractions, terms.separable, terms.others, col=terms.col)
        rest.expanded, rest.scaled = terms.expanded, terms.scaled
        kept = rules.assemble(rest)
        if not kept.is_pair:
            return full  # nothing but numbers per query or key: leave it whole
        if not all(_is_always_finite(e, params(kept)) for e in (terms.row, terms.flat)):
            return full  # a row of -inf is closed, one of NaN is NaN: weights do see these
        rules.count["drop-row-constant"] += 1
        if _needs_whole(op, rules):
            op.attrs["dropped"] = Program(op.attrs["score"].params, row)
        ctx.certify(
            op, "drop-row-constant", f"{_kinds(users)} does not see {row}", ("row-constant", full, kept), widths=widths
        )
        for user in users:
            _restore_lse(edit, user, op, row)
        return kept


def _kinds(users: list[Op]) -> str:
    return ", ".join(dict.fromkeys(u.attrs["kind"] for u in users))


#: Words whose value is finite where their arguments are, but for overflow.
_FINITE = frozenset(
    "add sub mul neg abs square step sign sqrt sin cos tanh sigmoid softplus relu floor acosh expacosh asinsqrt "  # noqa: SIM905
    "arcsinc arcroot arcsquare acos maximum minimum where lt le gt ge eq ne and or not dot sum eta rotate matvec "
    "tmatvec turn unturn centre append init item embed outer".split()
)


def _is_always_finite(e: Expr, kept: Collection[Expr]) -> bool:
    """Whether a number that keys do not enter is finite where what is ``kept`` of the score is. Captured numbers may
    well be infinite, whatever axes they have: an additive mask of queries, of heads, of everything is. Tensors that
    both read, such as a scale, spoil both; but numbers per query are taken for a mask there, too."""
    for x in postorder(e):
        if x.is_const:
            if not math.isfinite(x.value):
                return False
        elif x.fn == "param":
            if x.dtype == "f" and x not in kept:
                return False
            if "i" in x.axes and (x.rank == 0 or x.dtype != "f"):
                return False
        elif x.fn == "div":
            if not (x.args[1].is_const and x.args[1].value):
                return False
        elif x.fn != "index" and x.fn not in _FINITE:
            return False
    return True


class _Edit:
    """A function being changed: who uses a value, and operations to be put behind others when all is done."""

    def __init__(self, func: Func):
        self.func = func
        self.users: dict[Value, list[Op]] = {}
        self.behind: dict[Op, Op] = {}
        for op in func.body.ops:
            for v in dict.fromkeys(op.operands):
                self.users.setdefault(v, []).append(op)

    def finish(self) -> None:
        ops = self.func.body.ops
        self.func.body.ops = [x for op in ops for x in (op, self.behind.get(op)) if x is not None]


def _tail(p: Expr, value: Value) -> tuple[int, ...]:
    """Extents of a parameter's feature or table axes, 0 for those known at run time only."""
    shape = value.type.shape  # type: ignore[attr-defined]
    axes = p.attrs[1]
    tail = shape[len(axes.rstrip("detu")) :]
    return tuple(int(d) if d.is_static else 0 for d in tail)


def _renamed(mask: Expr, program: Program) -> Expr:
    """``mask`` with parameters that do not share a name with those of ``program``: it has operands of its own."""
    taken = set(program.names)
    table = {}
    for p in params(mask):
        name = p.name
        while name in taken:
            name += "_"
        taken.add(name)
        table[p] = param(name, *p.attrs[1:])
    return substitute(mask, table, smart=False)


def _orthogonal(program: Program, rules: Normaliser) -> tuple[str, ...]:
    """What was assumed of frames that went away."""
    frames = any(e.fn in ("turn", "unturn") for e in postorder(program.body))
    return ("frames are orthogonal",) if frames and rules.count["isometry"] else ()


def _whole(
    op: Op,
    program: Program,
    rules: Normaliser,
    ctx: Context,
    witness: tuple[Any, ...],
    assumptions: tuple[str, ...],
    widths: Any,
) -> Expr:
    """The score with no difference multiplied out, certified as its normal form was."""
    whole = rules.number(program.body)
    if whole is not program.body:
        assumptions = tuple(dict.fromkeys((*assumptions, *_orthogonal(program, rules))))
        statement = f"the score equals {whole}"
        ctx.certify(op, "whole-differences", statement, (*witness[:-1], whole), assumptions=assumptions, widths=widths)
    return whole


def _needs_whole(op: Op, rules: Normaliser) -> bool:
    """Whether the score as it is written must stand behind its normal form: where differences were multiplied out, or
    vectors scaled and nothing is wider."""
    scaled = op.result.type.dtype == "f64" and any(t.scaled for t in rules.forms.values())  # type: ignore[attr-defined]
    return bool(rules.count["expand"]) or scaled


def _add_checks(op: Op, program: Program, body: Expr, rules: Normaliser) -> None:
    """What must hold at run time so that the precision of the scores is enough, as attributes. Double precision is
    asked for where a difference was multiplied out: elsewhere nothing has more digits."""
    checks, enough = checks_of(body, rules)
    if op.result.type.dtype != "f32":  # type: ignore[attr-defined]
        checks = [c for c in checks if c.expanded or c.kind == "range"]
    elif not enough:
        op.attrs["double"] = True
        checks = checks if "whole" in op.attrs else []
    _attach(op, program, checks)


def _add_refined(op: Op, program: Program, rules: Normaliser, exact: Normaliser) -> None:
    """Linear forms under words of infinite slope, and the same with no difference multiplied out: what `_whole` has in
    the place of the first, by the same rules."""
    found: dict[Expr, Expr] = {}
    for kind, argument, _ in grouped(op.attrs.get("checks", ()), 3):
        source = rules.source(argument.body) if kind in SINGULAR else None
        if source is not None:
            found[argument.body] = exact.number(source)
    pairs = [(x, y) for x, y in found.items() if x is not y]
    if pairs:
        op.attrs["refined"] = tuple(Program(program.params, e) for pair in pairs for e in pair)


def _add_apart(op: Op, program: Program, causal: bool, ctx: Context, witness: tuple[Any, ...], widths: Any) -> None:
    """The score for the backward, in which squares of differences stand apart, certified as the normal form was."""
    found = apart(program.body, causal)
    if found is None:
        return
    if found.score is not program.body:
        ctx.certify(op, "squares-apart", f"the score equals {found.score}", (*witness[:-1], found.score), widths=widths)
    squares = (e for pair in found.squares for e in pair)
    op.attrs["apart"] = tuple(Program(program.params, e) for e in (found.score, *squares))


def _attach(op: Op, program: Program, checks: list[Check]) -> None:
    if checks:
        op.attrs["checks"] = tuple(
            x for c in checks for x in (c.kind, Program(program.params, c.argument), Program(program.params, c.gain))
        )


def _restore_lse(edit: _Edit, normalize: Op, metric: Op, row: Expr) -> None:
    """Adds the dropped term to the log-sum-exp where that is read."""
    lse = normalize.results[1]
    if lse not in edit.users:
        return
    bound = dict(zip(metric.attrs["score"].params, metric.operands, strict=True))
    name = "lse"
    while name in {p.name for p in bound}:
        name += "_"
    inner = param(name, "bhi")
    program = Program.of(add(inner, row), [inner])
    fixed = Op(
        "geo.map",
        [lse, *(bound[p] for p in program.params[1:])],
        {"program": program},
        [lse.type],
        loc=normalize.loc,
        result_names=["lse"],
    )
    for u in edit.users[lse]:
        u.operands = [fixed.result if v is lse else v for v in u.operands]
    edit.behind[normalize] = fixed


def _simplify_carry(op: Op, ctx: Context) -> None:
    """Numbers inside a carried value are brought to normal form: ``dot(x, y)`` of a transport, say."""
    program: Program = op.attrs["carry"]
    rules = Normaliser()
    kept = {e: e for e in postorder(program.body) if jumps(e)}
    table = {e: rules.number(e) for e in postorder(program.body) if _is_linear_form(e)}
    body = substitute(program.body, {e: n for e, n in table.items() if n is not e} | kept)
    if body is not program.body:
        bound = zip(program.params, (op.operands[0], *op.operands[2:]), strict=True)
        widths = tuple((p.name, _tail(p, v)) for p, v in bound if p.rank)
        ctx.certify(op, "normal-form", f"the carried value equals {body}", ("equal", program.body, body), widths=widths)
        op.attrs["carry"] = Program(program.params, body)
        ctx.count("normalised-carry")
    if op.result.type.dtype != "f64":  # type: ignore[attr-defined]
        _attach(op, program, carry_checks(body, rules))


def _is_linear_form(e: Expr) -> bool:
    """A contraction, or a sum with one."""
    if e.rank or not e.is_pair:
        return False
    return e.fn in ("dot", "sum") or (e.fn in ("add", "sub") and any(a.fn in ("dot", "sum") for a in e.args))


def implies_causal(mask: Expr) -> bool:
    """Whether the mask holds only for j <= i, judged from its conjuncts."""
    conjuncts, i, j = [mask], index("i"), index("j")
    while conjuncts:
        x = conjuncts.pop()
        if is_causal(x) or (x.fn == "lt" and x.args == (j, i)) or (x.fn == "gt" and x.args == (i, j)):
            return True
        if x.fn == "and":
            conjuncts += x.args
    return False


def is_causal(mask: Expr) -> bool:
    """Whether the mask is exactly j <= i."""
    i, j = index("i"), index("j")
    return (mask.fn == "le" and mask.args == (j, i)) or (mask.fn == "ge" and mask.args == (i, j))
