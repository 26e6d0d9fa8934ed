"""The forward tile function: one pass over keys, softmax on line, nothing of size N*M."""

from __future__ import annotations

import torch

from aatc.ir.core import Func, Value
from aatc.ir.score.expr import ZERO, Expr, add, call, const, mul, param, params, postorder
from aatc.ir.score.program import Program
from aatc.ir.types import TensorType, compute_name, torch_dtype
from aatc.passes.factor import CarryTerm, Factored, carry_terms, split_epilogue
from aatc.passes.lowering import LOG2E, Attention, Builder, Schedule, compute_tokens, new_func
from aatc.passes.rounding import digits
from aatc.passes.score_rules import Normaliser
from aatc.passes.tile_checks import Watch, checks_of, tokens_of
from aatc.passes.tile_core import Frame, atom_env, classify, compute_atoms, loops, mask_tile, sweep


class Forms:
    """The factored programs of an attention: ``score`` is the score over atoms times ``unit``, ``weight`` the closed
    form of exp(score) if there is one, ``carry`` the carried value's terms, ``epilogue`` the query's map, ``row`` what
    the log-sum-exp gets added, ``checks`` the conditions for the precision of ``digits``.

    Scores are kept in units of log 2, whose exponential is the cheapest, unless numbers near the end of the range may
    be added to them, such as a bias of the least finite number: these would overflow.
    """

    def __init__(self, a: Attention):
        self.f = Factored(taken=set(a.names) | {"lse", "summed"})
        body = a.programs.score.body
        self.unit = 1.0 if _adds_what_is_given(body) else LOG2E
        self.score = self.f.pair(Normaliser(whole=a.whole).number(mul(const(self.unit), body)))
        weight = None if a.whole else a.op.attrs.get("weight")  # that is a function of what was multiplied out
        self.bounded = weight is not None
        self.floor = float(a.op.attrs.get("floor", float("-inf")))
        self.weight: Expr | None = None
        self.plain_score: Expr | None = None
        if weight is not None and weight.body.fn != "exp":
            self.weight, self.plain_score = self.f.pair(weight.body), self.f.pair(body)
        inner, self.epilogue, self.place = split_epilogue(a.programs.carry.body)
        self.carry: list[CarryTerm] = carry_terms(self.f, inner)
        self.mask = self.f.number(a.programs.mask.body, exact=True) if a.programs.mask is not None else None
        self.row: Expr | None = a.programs.row.body if a.programs.row is not None else None
        self.digits = digits(a.dtype, compute_name(a.types[a.names[0]].dtype))
        found = [] if a.whole else checks_of(a.op.attrs)
        if a.dtype == "f64":  # what only this precision can do is left to it, and so is all if there is nothing behind
            found = [c for c in found if c.kind != "div"] if "whole" in a.op.attrs else []
        self.checks = [(c, tokens_of(c, self.f, self.unit, body)) for c in found]

    def exp(self, e: Expr) -> Expr:
        """exp of a score in these units."""
        return call("exp2" if self.unit != 1 else "exp", e)

    def log(self, e: Expr) -> Expr:
        return call("log2" if self.unit != 1 else "log", e)

    @property
    def pair_weight(self) -> Expr:
        """The weight without a running maximum."""
        return self.weight if self.weight is not None else self.exp(self.score)


def _adds_what_is_given(body: Expr) -> bool:
    """Whether the score adds captured numbers, which may be of any size."""
    if any(e.fn == "lookup" or (e.fn == "param" and e.is_pair) for e in postorder(body)):
        return True
    terms = Normaliser().terms(body)
    if terms.col is not ZERO or any(p.rank == 0 for p in params(add(terms.row, terms.flat))):
        return True
    todo = [e for _, e in terms.others]  # sums of a query's and a key's number are among these as they are written
    while todo:
        e = todo.pop()
        if e.fn == "param" and e.dtype == "f":
            return True
        if e.fn in ("add", "sub", "neg", "where"):
            todo += e.args
    return False


def most_negative(dtype: str) -> float:
    """Where a running maximum starts: finite, so that a row without open keys makes no inf - inf."""
    return float(torch.finfo(torch_dtype(dtype)).min)


def arguments(a: Attention) -> list[Value]:
    return [Value(a.types[n], n) for n in a.names]


def open_frame(a: Attention, forms: Forms, s: Schedule, args: list[Value]) -> Frame:
    b = Builder(a.op.loc, a.dtype)
    return Frame(a, forms.f, s, b, dict(zip(a.names, args[-len(a.names) :], strict=True)))


def lower_forward(a: Attention, forms: Forms, s: Schedule, name: str) -> Func:
    """``(q, k, v, captures) -> (o, lse)``, and the sum before the query's map when there is one."""
    args = arguments(a)
    fr = open_frame(a, forms, s, args)
    b = fr.b
    fr.buffers = compute_tokens(b, a, fr.f, fr.operands, fr.f.tokens.values())
    watch = Watch(fr, forms.checks, forms.unit, a.programs.score.body, forms.digits)
    fr.tile_map = classify(fr, s.rows, s.heads)
    out = b.op("tile.alloc", [], [TensorType.of(a.dtype, [a.problems, a.rows, a.value_width])], names=["acc_all"])[0]
    lse, top, mass = (
        b.op("tile.alloc", [], [TensorType.of(a.dtype, [a.problems, a.rows])], names=[f"{n}_all"])[0]
        for n in ("lse", "top", "mass")
    )

    def block(inner: Frame) -> None:
        results = _bounded(inner, forms, watch) if forms.bounded else _online(inner, forms, watch)
        _finish(inner, forms, results, out, (lse, top, mass))

    loops(fr, block)
    return new_func(name, b, args, finish_output(fr, forms, out, lse, [top, mass]), {"schedule": str(s)})


def finish_output(fr: Frame, forms: Forms, out: Value, lse: Value, statistics: list[Value]) -> list[Value]:
    """(o, lse, what the backward takes for o, and the statistics of rows it takes): the query's map, the output's
    dtype and the log-sum-exp with what was dropped of the score, per token."""
    a = fr.a
    o_type = TensorType(a.types[a.names[2]].dtype, (a.batch, a.heads, a.rows, a.types[a.names[2]].shape[3]))
    body = forms.epilogue if forms.epilogue is not None else forms.place
    program = Program.of(body, [forms.place])
    operands = [out, *(fr.operands[n] for n in program.names[1:])]
    o = _result(fr, program, operands, o_type, "o")
    inner = param("lse", "bhi")
    total = inner if forms.row is None else call("add", inner, forms.row)
    program = Program.of(total, [inner])
    lse_type = TensorType(compute_name(a.types[a.names[0]].dtype), (a.batch, a.heads, a.rows))
    l = _result(fr, program, [lse, *(fr.operands[n] for n in program.names[1:])], lse_type, "lse")
    plain = forms.epilogue is None and a.dtype == o_type.dtype
    saved = o if plain else _result(fr, Program((forms.place,), forms.place), [out], saved_type(a), "summed")
    names = ("top", "mass") if len(statistics) == 2 else ("log_sum",)
    itself = Program((inner,), inner)
    kept = [_result(fr, itself, [x], statistic_type(a), n) for n, x in zip(names, statistics, strict=True)]
    return [o, l, saved, *kept]


def _result(fr: Frame, program: Program, operands: list[Value], t: TensorType, name: str) -> Value:
    """A result of the function: per query, contiguous."""
    return whole_token(fr, program, operands, t, name, program.params[0].attrs[1], "contiguous")


def whole_token(
    fr: Frame, program: Program, operands: list[Value], t: TensorType, name: str, axes: str, layout: str | None
) -> Value:
    """A per-token program over whole buffers, b and h apart."""
    return fr.b.op(
        "tile.token",
        operands,
        [t],
        names=[name],
        program=program,
        axes=axes,
        sizes=fr.a.sizes,
        flat=False,
        layout=layout,
    )[0]


def saved_type(a: Attention) -> TensorType:
    """Type of what the backward is given as the output: the sum before the query's map, in the scores' own dtype."""
    return TensorType(a.dtype, (a.batch, a.heads, a.rows, a.types[a.names[2]].shape[3]))


def statistic_type(a: Attention) -> TensorType:
    return TensorType(a.dtype, (a.batch, a.heads, a.rows))


def _zeros(fr: Frame, first: float | None) -> list[Value]:
    b, s = fr.b, fr.s
    out = [] if first is None else [b.fill(first, "gi", fr.at, s.heads, s.rows, 1, name="m0")]
    return [
        *out,
        b.fill(0.0, "gi", fr.at, s.heads, s.rows, 1, name="l0"),
        b.fill(0.0, "gid", fr.at, s.heads, s.rows, fr.a.value_width, name="acc0"),
    ]


def add_carried(fr: Frame, forms: Forms, p: Value, acc: Value) -> Value:
    """acc + sum over the tile's keys of weight times carried value."""
    b, s = fr.b, fr.s
    weight = param("p_", "bhij")
    for n, term in enumerate(forms.carry):
        scaled = p
        if not (term.coef.is_const and term.coef.value == 1):
            compute_atoms(fr, [term.coef])
            env = {**atom_env(fr, [term.coef]), "p_": p}
            (scaled,) = b.map([(f"pc{n}", mul(weight, term.coef), p.type)], env)  # type: ignore[list-item]
            scaled = mask_tile(fr, forms.mask, scaled, fr.partial, 0.0, f"pc{n}_masked")
        if term.col:
            acc = b.dot("nn", scaled, fr.tile(term.vector), acc, name="acc")
        else:
            mass = b.reduce("sum", "j", scaled, name=f"mass{n}")
            acc_, row, m = param("acc_", "bhid"), param("row_", "bhid"), param("mass_", "bhi")
            (acc,) = b.map(
                [("acc", call("add", acc_, call("mul", m, row)), b.tile(s.heads, s.rows, fr.a.value_width))],
                {"acc_": acc, "row_": fr.tile(term.vector), "mass_": mass},
            )
    return acc


def _online(fr: Frame, forms: Forms, watch: Watch | None) -> list[Value]:
    """Softmax with a running maximum m: returns m, l, acc."""
    b, s = fr.b, fr.s
    pair, row = b.tile(s.heads, s.rows, s.cols), b.tile(s.heads, s.rows, 1)
    x, m_, n_, l_, w_ = (
        param(n, axes) for n, axes in (("x_", "bhij"), ("m_", "bhi"), ("n_", "bhi"), ("l_", "bhi"), ("w_", "bhi"))
    )
    acc_ = param("acc_", "bhid")

    def body(inner: Frame, partial: Value | None, carried: list[Value]) -> list[Value]:
        m, l, acc, *near = carried
        compute_atoms(inner, [forms.score])
        expression = watch.prepare(inner, forms.score) if watch else forms.score
        if watch and partial is None:  # before the scores, which then take the place of what was watched
            near = watch.update(inner, forms, None, near)
        score = scores(inner, expression)
        score = mask_tile(inner, forms.mask, score, partial, float("-inf"), "masked")
        top = b.reduce("max", "j", score, m, name="top")
        (p,) = b.map([("p", forms.exp(call("sub", x, n_)), pair)], {"x_": score, "n_": top})
        (shrink,) = b.map([("shrink", forms.exp(call("sub", m_, n_)), row)], {"m_": m, "n_": top})
        (l,) = b.map([("l_s", call("mul", l_, w_), row)], {"l_": l, "w_": shrink})
        l = b.reduce("sum", "j", p, l, name="l")
        (acc,) = b.map(
            [("acc_s", call("mul", acc_, w_), b.tile(s.heads, s.rows, fr.a.value_width))], {"acc_": acc, "w_": shrink}
        )
        acc = add_carried(inner, forms, p, acc)
        if watch and partial is not None:
            near = watch.update(inner, forms, partial, near)
        return [top, l, acc, *near]

    names = ["m", "l", "acc", *(watch.names() if watch else [])]
    inits = [*_zeros(fr, most_negative(fr.a.dtype)), *(watch.inits(fr) if watch else [])]
    m, l, acc, *near = sweep(fr, inits, names, "seq", body)
    if watch:
        watch.require(fr, near)
    return [m, l, acc]


def scores(fr: Frame, score: Expr) -> Value:
    """The score tile; a bare contraction is used as it is."""
    env = atom_env(fr, [score])
    if score.fn == "param":
        return env[score.name]
    s = fr.s
    return fr.b.map([("score", score, fr.b.tile(s.heads, s.rows, s.cols))], env)[0]


def _bounded(fr: Frame, forms: Forms, watch: Watch) -> list[Value]:
    """Weights with a static bound need no maximum: returns l, acc, or after a guard m, l, acc.

    Where the bound is one-sided, a row of far keys may underflow; the guard then repeats it with a maximum.
    """
    b, s = fr.b, fr.s
    pair = b.tile(s.heads, s.rows, s.cols)

    def body(inner: Frame, partial: Value | None, carried: list[Value]) -> list[Value]:
        l, acc, *near = carried
        compute_atoms(inner, [forms.pair_weight])
        weight = watch.prepare(inner, forms.pair_weight)
        if partial is None:  # before the weights, which then take the place of what was watched
            near = watch.update(inner, forms, None, near)
        (p,) = b.map([("p", weight, pair)], atom_env(inner, [weight]))
        p = mask_tile(inner, forms.mask, p, partial, 0.0, "masked")
        l, acc = b.reduce("sum", "j", p, l, name="l"), add_carried(inner, forms, p, acc)
        return [l, acc, *(near if partial is None else watch.update(inner, forms, partial, near))]

    inits, names = [*_zeros(fr, None), *watch.inits(fr)], ["l", "acc", *watch.names()]
    l, acc, *near = sweep(fr, inits, names, "red", body)
    watch.require(fr, near)
    m = b.fill(0.0, "gi", fr.at, s.heads, s.rows, 1, name="m")
    if forms.floor > -80:
        return [m, l, acc]
    least = 1e-18 if fr.a.dtype == "f32" else 1e-150
    b.open([], [])
    fallback = fr.scoped()
    m2, l2, acc2 = _online(fallback, forms, None)
    region = b.close([l2, m2, acc2])
    l, m, acc = b.op(
        "tile.guard",
        [l, m, acc],
        [l.type, m.type, acc.type],
        regions=[region],
        names=["l_g", "m_g", "acc_g"],
        least=least,
    )
    return [m, l, acc]


def _finish(fr: Frame, forms: Forms, results: list[Value], out: Value, rows: tuple[Value, Value, Value]) -> None:
    """o = acc / l and lse = (m + log l) / unit; rows without open keys give 0 and -inf. The backward takes m and l
    rather than the log-sum-exp, which has lost log l where m is large."""
    b, s = fr.b, fr.s
    m, l, acc = results
    m_, l_, acc_ = param("m_", "bhi"), param("l_", "bhi"), param("acc_", "bhid")
    row = b.tile(s.heads, s.rows, 1)
    safe = call("where", call("eq", l_, const(0.0)), const(1.0), l_)
    inverse, log = b.map(
        [
            ("inverse", call("reciprocal", safe), row),
            ("lse_t", mul(const(1 / forms.unit), call("add", m_, forms.log(l_))), row),
        ],
        {"m_": m, "l_": l},
    )
    (o,) = b.map([("o_t", call("mul", acc_, param("inv_", "bhi")), acc.type)], {"acc_": acc, "inv_": inverse})  # type: ignore[list-item]
    b.op("tile.store", [o, out, fr.at["g"], fr.at["i"]], axes="gid", add=False)
    for value, buffer in zip((log, m, l), rows, strict=True):
        b.op("tile.store", [value, buffer, fr.at["g"], fr.at["i"]], axes="gi", add=False)
