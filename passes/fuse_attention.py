"""Fuses metric, mask, normaliser, connection and aggregation into one operation without n*n values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from aatc.ir.core import Func, Module, Op, Value, replace_uses
from aatc.ir.effects import Memory
from aatc.ir.normalizers import normalizer_named
from aatc.ir.registry import lookup_op
from aatc.ir.score.expr import Expr, call, neg, param, params, postorder, substitute
from aatc.ir.score.program import Program
from aatc.ir.stages import REFINED
from aatc.ir.types import PairType
from aatc.passes.base import Context, Pass, register
from aatc.passes.plain_sizes import plain_sizes
from aatc.passes.score_bounds import EVERYTHING, static_bound
from aatc.passes.score_rules import SCORE_RULES
from aatc.passes.snapshots import STAGES, snapshot_operands


@register
@dataclass(frozen=True)
class FuseAttention(Pass):
    """``aggregate(normalize(metric(q, k)), transport(v))`` → ``attend(q, k, v)``."""

    name: ClassVar[str] = "fuse-attention"
    requires: ClassVar[tuple[str, ...]] = ("staged",)
    ensures: ClassVar[tuple[str, ...]] = ("fused",)

    def run(self, module: Module, ctx: Context) -> Module:
        for func in module.funcs.values():
            ctx.count("copied-operand", snapshot_operands(func, module))
            _aggregate_keys(func, module)
            ctx.count("fused", _fuse(func))
            ctx.count("plain-size", plain_sizes(func, module))
        return module


def _aggregate_keys(func: Func, module: Module) -> None:
    """Where a log-sum-exp is used and no aggregate is there to give it in time, the keys are carried in the place of
    values: nothing carries any, or the log-sum-exp is read before the values can be."""
    order = _Order(func)
    added: dict[Op, list[Op]] = {}
    for op in [o for o in func.body.ops if o.name == "geo.normalize" and o.results[1] in order.first_read]:
        if order.place(op, module) is not None:
            continue
        metric = op.operands[0].owner
        assert isinstance(metric, Op)
        v = param("v", "bhjd")
        given = [metric.operands[1], metric.result]
        carry = _typed(Op("geo.transport", given, {"carry": Program((v,), v)}, loc=op.loc), "t")
        total = _typed(Op("geo.aggregate", [op.results[0], carry.result], {"kind": "mean"}, loc=op.loc), "o")
        added[op] = [carry, total]
    if added:
        func.body.ops = [x for op in func.body.ops for x in (op, *added.get(op, ()))]


class _Order:
    """Where operations of a function stand, and which aggregates end an attention."""

    def __init__(self, func: Func):
        self.func = func
        self.at = {op: n for n, op in enumerate(func.body.ops)}
        self.first_read: dict[Value, int] = {}
        self.ends: dict[Op, list[Op]] = {}
        self._memory: Memory | None = None
        for n, op in enumerate(func.body.ops):
            for v in op.operands:
                self.first_read.setdefault(v, n)
            if op.name == "geo.aggregate" and isinstance(op.operands[0].owner, Op):
                self.ends.setdefault(op.operands[0].owner, []).append(op)

    def place(self, normalize: Op, module: Module | None = None) -> int | None:
        """The position before which the first attention of ``normalize`` can stand: its aggregate's, or the earlier one
        of whoever reads its log-sum-exp first. None when there is no such place."""
        ends = self.ends.get(normalize)
        if not ends:
            return None
        end = self.at[ends[0]]
        read = self.first_read.get(normalize.results[1], end)
        if read >= end:
            return end
        transport = ends[0].operands[1].owner
        assert isinstance(transport, Op)
        stages = [normalize.operands[0].owner, normalize, transport]
        operands = [v for op in stages for v in op.operands if not isinstance(v.type, PairType)]  # type: ignore[union-attr]
        if any(self.at.get(v.owner, -1) >= read for v in operands):  # type: ignore[arg-type]
            return None
        if module is not None and self.at[transport] > read:
            self._memory = self._memory or Memory(self.func, module)
            reads = [v for v in transport.operands if not isinstance(v.type, PairType)]
            if any(self._memory.written_between(v, read - 1, self.at[transport]) for v in reads):
                return None
        return read


def _typed(op: Op, name: str) -> Op:
    infer = lookup_op(op.name).infer
    assert infer is not None
    op.results = [Value(t, name, op) for t in infer(op)]
    return op


class _Names:
    """Names for operands in one space, q, k, v first. Equal operands that are declared alike share a name."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.declared: dict[tuple[Value, tuple[Any, ...]], str] = {}

    def bind(self, p: Expr, value: Value) -> str:
        key = (value, p.attrs[1:])
        if key not in self.declared:
            name, n = p.name, 2
            while name in self.values:
                name, n = f"{p.name}{n}", n + 1
            self.values[name] = value
            self.declared[key] = name
        return self.declared[key]


def _rename(program: Program, mapping: dict[str, str]) -> Program:
    table = {p: Expr("param", (), (mapping[p.name], *p.attrs[1:])) for p in program.params}
    fresh = tuple(dict.fromkeys(table[p] for p in program.params))
    return Program(fresh, substitute(program.body, table, smart=False))


def _used(program: Program) -> Program:
    return Program(tuple(p for p in program.params if p in set(params(program.body))), program.body)


def attention_at(aggregate: Op) -> tuple[list[Value], dict[str, Any], Op]:
    """Operands and attributes of the `geo.attend` that ends in ``aggregate``, and its `geo.normalize`."""
    normalize, transport = aggregate.operands[0].owner, aggregate.operands[1].owner
    metric = normalize.operands[0].owner  # type: ignore[union-attr]
    assert isinstance(normalize, Op) and isinstance(transport, Op) and isinstance(metric, Op)
    names = _Names()
    q, k, v = metric.operands[0], metric.operands[1], transport.operands[0]
    checks = metric.attrs.get("checks", ())
    score, carry, mask = metric.attrs["score"], transport.attrs["carry"], normalize.attrs.get("mask")
    names.values = {"q": q, "k": k, "v": v}
    first = dict(zip(score.names[:2], "qk", strict=True))
    names_of_score = first | {
        p.name: names.bind(p, x) for p, x in zip(score.params[2:], metric.operands[2:], strict=True)
    }
    score = _rename(score, names_of_score)
    carry_names = {carry.names[0]: "v"}
    for p, x in zip(carry.params[1:], transport.operands[2:], strict=True):
        # by its axes, too: q and k may be one tensor
        name, own = {"bhid": ("q", q), "bhjd": ("k", k)}.get(p.attrs[1], ("", None))
        carry_names[p.name] = name if x is own else names.bind(p, x)
    carry = _used(_rename(carry, carry_names))
    attrs = {"score": _used(score), "kind": normalize.attrs["kind"], "aggregate": aggregate.attrs["kind"]}
    checks = [x if isinstance(x, str) else _used(_rename(x, names_of_score)) for x in checks]
    of_carry = transport.attrs.get("checks", ())
    checks += [x if isinstance(x, str) else _used(_rename(x, carry_names)) for x in of_carry]
    if checks:
        attrs["checks"] = tuple(checks)
    if metric.attrs.get("double"):
        attrs["double"] = True
    attrs |= {n: _used(_rename(metric.attrs[n], names_of_score)) for n in ("whole", "dropped") if n in metric.attrs}
    for n in (n for n in REFINED if n in metric.attrs):
        attrs[n] = tuple(_used(_rename(x, names_of_score)) for x in metric.attrs[n])
    if carry.body.fn != "param":
        attrs["carry"] = carry
    if mask is not None:
        attrs["mask"] = _used(
            _rename(mask, {p.name: names.bind(p, x) for p, x in zip(mask.params, normalize.operands[1:], strict=True)})
        )
    attrs["names"] = tuple(names.values)
    return list(names.values.values()), attrs, normalize


def _returned_row(users: dict[Value, list[Op]], normalize: Op) -> Op | None:
    """The `geo.map` that gives the log-sum-exp back what the weights do not see, when nothing else reads that."""
    lse = normalize.results[1]
    readers = users.get(lse, [])
    if len(readers) != 1 or readers[0].name != "geo.map" or readers[0].operands.count(lse) != 1:
        return None
    program: Program = readers[0].attrs["program"]
    body, first = program.body, program.params[0]
    alone = body.fn in ("add", "sub") and body.args[0] is first and first not in params(body.args[1])
    return readers[0] if alone and readers[0].operands[0] is lse else None


def _with_row(operands: list[Value], attrs: dict[str, Any], row: Op) -> None:
    """Adds the number per query of ``row``, and what it reads, to an attention."""
    program: Program = row.attrs["program"]
    names = list(attrs["names"])
    declared = {p.name: p.attrs[1:] for p in (param("q", "bhid"), param("k", "bhjd"), param("v", "bhjd"))}
    programs = [attrs[n] for n in ("score", "mask", "carry", "whole", "dropped") if n in attrs]
    declared |= {p.name: p.attrs[1:] for g in programs for p in g.params}
    mapping = {}
    for p, value in zip(program.params[1:], row.operands[1:], strict=True):
        # one tensor may have several names: q and v, say
        own = [n for n, x in zip(names, operands, strict=True) if x is value]
        name = next((n for n in own if declared.get(n, p.attrs[1:]) == p.attrs[1:]), None)
        if name is None:
            name = p.name
            while name in names:
                name += "_"
            names.append(name)
            operands.append(value)
        declared[name] = p.attrs[1:]
        mapping[p.name] = name
    attrs["names"] = tuple(names)
    added = program.body.args[1] if program.body.fn == "add" else neg(program.body.args[1])
    attrs["row"] = _rename(Program(program.params[1:], added), mapping)


def _fuse(func: Func) -> int:
    """Every attention in one operation, where its aggregate stood or where its log-sum-exp is read first."""
    order = _Order(func)
    placed: dict[int, list[Op]] = {}
    table: dict[Value, Value] = {}
    users: dict[Value, list[Op]] = {}
    for op in func.body.ops:
        for v in dict.fromkeys(op.operands):
            users.setdefault(v, []).append(op)
    aggregates = [op for op in func.body.ops if op.name == "geo.aggregate"]
    gone = set(aggregates)
    for aggregate in aggregates:
        operands, attrs, normalize = attention_at(aggregate)
        first = normalize.results[1] not in table
        row = _returned_row(users, normalize) if first else None
        if row is not None:
            _with_row(operands, attrs, row)
            gone.add(row)
        fused = Op(
            "geo.attend",
            operands,
            attrs,
            [aggregate.result.type, normalize.results[1].type],
            loc=normalize.loc or aggregate.loc,
            result_names=[aggregate.result.name or "o", "lse"],
        )
        at = order.place(normalize) if first else None
        placed.setdefault(order.at[aggregate] if at is None else at, []).append(fused)
        table[aggregate.result] = fused.results[0]
        table.setdefault(normalize.results[1], fused.results[1])
        if row is not None:
            table[row.result] = fused.results[1]
    if aggregates:
        ops = [x for n, op in enumerate(func.body.ops) for x in (*placed.get(n, ()), op) if x not in gone]
        func.body.ops = ops
        replace_uses(func.body, table)
    _drop_unused_stages(func)
    return len(aggregates)


def _drop_unused_stages(func: Func) -> None:
    used: set[Value] = set()
    kept = []
    for op in reversed(func.body.ops):
        if op.name in STAGES and not any(r in used for r in op.results):
            continue
        kept.append(op)
        used.update(op.operands)
    func.body.ops = kept[::-1]


# --- the normaliser meets the metric -----------------------------------------------------------------------
@register
@dataclass(frozen=True)
class FuseNormalizer(Pass):
    """``exp(-acosh(x))`` → ``1/(x + sqrt(x*x - 1))``, and no running maximum where scores have a static bound.

    The attribute ``weight`` it adds is exp(score), up to a factor, in closed form. ``floor`` is a static lower bound of
    the score: weights cannot underflow above -80, else the kernel guards its sums.
    """

    limit: float = 60.0
    name: ClassVar[str] = "fuse-normalizer"
    requires: ClassVar[tuple[str, ...]] = ("fused",)

    def run(self, module: Module, ctx: Context) -> Module:
        for op in [o for o in module.walk() if o.name == "geo.attend" and "weight" not in o.attrs]:
            if not normalizer_named(op.attrs["kind"]).exponential:
                continue
            score: Program = op.attrs["score"]
            # a sum over channels grows with their number: its weights underflow at ordinary distances
            sums = {e: EVERYTHING for e in postorder(score.body) if e.fn == "sum" and e.is_pair}
            low, high = static_bound(score.body, sums)
            if not high <= self.limit:
                continue
            weight, rule = exp_of(score.body)
            if low > -80 or rule != "bounded-score":
                ctx.certify(op, rule, f"exp({score.body}) = {weight}", ("equal", call("exp", score.body), weight))
            statement = f"{low:.4g} <= score <= {high:.4g}: no running maximum"
            ctx.certify(op, "static-bound", statement, ("bound", score.body, low, high))
            op.attrs["weight"] = Program(score.params, weight)
            op.attrs["floor"] = float(low)
            ctx.count(rule)
        return module


def exp_of(score: Expr) -> tuple[Expr, str]:
    """exp(score) in its cheapest closed form, and the rule that gave it."""
    whole = call("exp", neg(score.args[0]) if score.fn == "neg" else score)  # -(2 x) as -2 x
    found = SCORE_RULES.find(whole, "exp-acosh")
    return (call("exp", score), "bounded-score") if found is None else (found.result(), found.rule.name)
