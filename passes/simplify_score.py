"""Brings every score to contractions and per-token terms, with a certificate for each rewrite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aatc.ir.core import Func, Module, Op
from aatc.ir.score.expr import Expr, add, index, param, params, postorder, substitute
from aatc.ir.score.program import Program
from aatc.passes.base import Context, Pass, register
from aatc.passes.score_rules import Normaliser, Terms
from aatc.passes.snapshots import snapshot_operands


@register
@dataclass(frozen=True)
class SimplifyScore(Pass):
    """``score(q_i, k_j)`` → ``dot(f(q_i), g(k_j)) + c(k_j)``, or a function of such sums.

    Terms that depend on the query alone are dropped where a softmax follows; the log-sum-exp gets them back
    by a `geo.map` if anything reads it.
    """

    name: ClassVar[str] = "simplify-score"
    requires: ClassVar[tuple[str, ...]] = ("staged",)

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            snapshot_operands(func, module)
            for op in [o for o in func.body.ops if o.name == "geo.metric"]:
                self._simplify(func, op, ctx)
            for op in [o for o in func.body.ops if o.name == "geo.transport"]:
                _simplify_carry(op, ctx)
        return module

    def _simplify(self, func: Func, op: Op, ctx: Context) -> None:
        program: Program = op.attrs["score"]
        # a transport takes the scores only for the shape of the pairs
        users = [u for u in func.body.ops if op.result in u.operands and u.name != "geo.transport"]
        softmax = bool(users) and all(u.name == "geo.normalize" for u in users)
        masks = [u.attrs.get("mask") for u in users if u.name == "geo.normalize"]
        causal = softmax and all(m is not None and implies_causal(m.body) for m in masks)
        rules = Normaliser(causal=causal)
        terms = rules.terms(program.body)
        full = rules.assemble(terms)
        if full is program.body:
            return
        witness: tuple = ("equal", program.body, full)
        assumptions: tuple[str, ...] = ()
        if rules.count["causal-distance"]:
            witness = ("equal-where", masks[0].body, program.body, full)  # type: ignore[union-attr]
            assumptions = ("the mask admits only keys j <= i",)
        if rules.count["root-of-product"]:
            assumptions = (*assumptions, "entries under the root are >= 0")
        ctx.certify(op, "normal-form", f"the score equals {full}", witness, assumptions=assumptions)
        body = full
        if softmax:
            body = self._drop_row_terms(func, op, users, rules, terms, full, ctx)
        op.attrs["score"] = Program(program.params, body)
        for rule, n in rules.count.items():
            if n:
                ctx.count(rule, n)

    def _drop_row_terms(self, func, op, users, rules: Normaliser, terms: Terms, full: Expr, ctx: Context) -> Expr:
        row = add(terms.row, terms.flat)
        if not params(row) and not postorder(row)[0].axes and (row.is_const and row.value == 0):
            return full
        kept = rules.assemble(Terms(terms.contractions, terms.separable, terms.others, col=terms.col))
        if not kept.is_pair:
            return full  # nothing but numbers per query or key: leave it whole
        rules.count["drop-row-constant"] += 1
        ctx.certify(op, "drop-row-constant", f"softmax does not see {row}", ("row-constant", full, kept))
        for user in users:
            _restore_lse(func, user, op, row)
        return kept


def _restore_lse(func: Func, normalize: Op, metric: Op, row: Expr) -> None:
    """Adds the dropped term to the log-sum-exp where that is read."""
    lse = normalize.results[1]
    if not any(lse in u.operands for u in func.body.ops):
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
    for u in func.body.ops:
        u.operands = [fixed.result if v is lse else v for v in u.operands]
    func.body.ops.insert(func.body.ops.index(normalize) + 1, fixed)


def _simplify_carry(op: Op, ctx: Context) -> None:
    """Numbers inside a carried value are brought to normal form: ``dot(x, y)`` of a transport, say."""
    program: Program = op.attrs["carry"]
    rules = Normaliser()
    table = {
        e: rules.number(e) for e in postorder(program.body) if e.rank == 0 and e.is_pair and e.fn in ("dot", "sum")
    }
    table = {e: n for e, n in table.items() if n is not e}
    if not table:
        return
    body = substitute(program.body, table)
    ctx.certify(op, "normal-form", f"the carried value equals {body}", ("equal", program.body, body))
    op.attrs["carry"] = Program(program.params, body)
    ctx.count("normalised-carry")


def implies_causal(mask: Expr) -> bool:
    """Whether the mask holds only for j <= i, judged from its conjuncts."""
    if mask.fn == "and":
        return any(implies_causal(a) for a in mask.args)
    return is_causal(mask) or (mask.fn == "lt" and mask.args == (index("j"), index("i")))


def is_causal(mask: Expr) -> bool:
    """Whether the mask is exactly j <= i."""
    i, j = index("i"), index("j")
    return (mask.fn == "le" and mask.args == (j, i)) or (mask.fn == "ge" and mask.args == (i, j))
