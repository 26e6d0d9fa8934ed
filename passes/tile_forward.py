"""The forward tile function: one pass over keys, softmax on line, nothing of size N*M."""

from __future__ import annotations

from aatc.ir.core import Func, Value
from aatc.ir.score.expr import Expr, call, const, mul, param
from aatc.ir.score.program import Program
from aatc.ir.types import TensorType
from aatc.passes.factor import CarryTerm, Factored, Stored, carry_terms, split_epilogue
from aatc.passes.lowering import LN2, LOG2E, Attention, Builder, Schedule, compute_tokens, new_func
from aatc.passes.score_rules import Normaliser
from aatc.passes.tile_core import Frame, atom_env, classify, compute_atoms, loops, mask_tile, sweep

MOST_NEGATIVE = -1.0e38  # finite, so that a row without open keys makes no inf - inf


class Forms:
    """The factored programs of an attention: ``score2`` is the score times log2(e) over atoms, ``weight`` the
    closed form of exp(score) if there is one, ``carry`` the carried value's terms, ``epilogue`` the query's map."""

    def __init__(self, a: Attention):
        self.f = Factored(taken=set(a.names) | {"lse", "summed"})
        self.score2 = self.f.number(Normaliser().number(mul(const(LOG2E), a.programs.score.body)))
        weight = a.op.attrs.get("weight")
        self.bounded = weight is not None
        self.floor = float(a.op.attrs.get("floor", float("-inf")))
        self.weight: Expr | None = None
        self.score: Expr | None = None
        if weight is not None and weight.body.fn != "exp":
            self.weight, self.score = self.f.number(weight.body), self.f.number(a.programs.score.body)
        inner, self.epilogue, self.place = split_epilogue(a.programs.carry.body)
        self.carry: list[CarryTerm] = carry_terms(self.f, inner)
        self.mask = self.f.number(a.programs.mask.body, exact=True) if a.programs.mask is not None else None

    @property
    def pair_weight(self) -> Expr:
        """The weight without a running maximum."""
        return self.weight if self.weight is not None else call("exp2", self.score2)


def arguments(a: Attention) -> list[Value]:
    return [Value(a.types[n], n) for n in a.names]


def open_frame(a: Attention, forms: Forms, s: Schedule, args: list[Value]) -> Frame:
    b = Builder(a.op.loc, a.dtype)
    return Frame(a, forms.f, s, b, dict(zip(a.names, args[-len(a.names) :], strict=True)))


def stored_buffers(fr: Frame) -> None:
    """Pair tensors as four-axis buffers: missing axes get size 1."""
    for atom in fr.f.atoms.values():
        if isinstance(atom, Stored):
            axes = atom.source.attrs[1]
            t = fr.a.types[atom.source.name]
            shape = iter(t.shape)
            full = [next(shape) if c in axes else 1 for c in "bhij"]
            fr.buffers[f"pair_{atom.source.name}"] = fr.b.op(
                "tile.view",
                [fr.operands[atom.source.name]],
                [TensorType.of(t.dtype, full)],
                names=[atom.source.name],
                axes=axes,
            )[0]


def lower_forward(a: Attention, forms: Forms, s: Schedule, name: str) -> Func:
    """``(q, k, v, captures) -> (o, lse)``, and the sum before the query's map when there is one."""
    args = arguments(a)
    fr = open_frame(a, forms, s, args)
    b = fr.b
    fr.buffers = compute_tokens(b, a, fr.f, fr.operands, fr.f.tokens.values())
    stored_buffers(fr)
    fr.tile_map = classify(fr, s.rows, s.heads)
    out = b.op("tile.alloc", [], [TensorType.of(a.dtype, [a.problems, a.rows, a.value_width])], names=["acc_all"])[0]
    lse = b.op("tile.alloc", [], [TensorType.of(a.dtype, [a.problems, a.rows])], names=["lse_all"])[0]

    def block(inner: Frame) -> None:
        results = _bounded(inner, forms) if forms.bounded else _online(inner, forms)
        _finish(inner, forms, results, out, lse)

    loops(fr, block)
    return new_func(name, b, args, finish_output(fr, forms, out, lse), {"schedule": str(s)})


def finish_output(fr: Frame, forms: Forms, out: Value, lse: Value) -> list[Value]:
    """The query's map, the output's dtype and the log-sum-exp's shape, per token."""
    a = fr.a
    o_type = TensorType(a.types[a.names[2]].dtype, (a.batch, a.heads, a.rows, a.types[a.names[2]].shape[3]))
    body = forms.epilogue if forms.epilogue is not None else forms.place
    program = Program.of(body, [forms.place])
    operands = [out, *(fr.operands[n] for n in program.names[1:])]
    o = _result(fr, program, operands, o_type, "o")
    inner = param("lse", "bhi")
    lse_type = TensorType(a.dtype, (a.batch, a.heads, a.rows))
    l = _result(fr, Program((inner,), inner), [lse], lse_type, "lse")
    if forms.epilogue is None:
        return [o, l]
    return [o, l, _result(fr, Program((forms.place,), forms.place), [out], saved_type(a, forms), "summed")]


def _result(fr: Frame, program: Program, operands: list[Value], t: TensorType, name: str) -> Value:
    """A result of the function: per query, contiguous."""
    axes = program.params[0].attrs[1]
    return fr.b.op(
        "tile.token",
        operands,
        [t],
        names=[name],
        program=program,
        axes=axes,
        sizes=fr.a.sizes,
        flat=False,
        layout="contiguous",
    )[0]


def saved_type(a: Attention, forms: Forms) -> TensorType:
    """Type of what the backward is given as the output: the sum before the query's map, else the output."""
    v = a.types[a.names[2]]
    return TensorType(v.dtype if forms.epilogue is None else a.dtype, (a.batch, a.heads, a.rows, v.shape[3]))


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


def _online(fr: Frame, forms: Forms) -> list[Value]:
    """Softmax with a running maximum m, in base 2: returns m, l, acc."""
    b, s = fr.b, fr.s
    pair, row = b.tile(s.heads, s.rows, s.cols), b.tile(s.heads, s.rows, 1)
    x, m_, n_, l_, w_ = (
        param(n, axes) for n, axes in (("x_", "bhij"), ("m_", "bhi"), ("n_", "bhi"), ("l_", "bhi"), ("w_", "bhi"))
    )
    acc_ = param("acc_", "bhid")

    def body(inner: Frame, partial: Value | None, carried: list[Value]) -> list[Value]:
        m, l, acc = carried
        compute_atoms(inner, [forms.score2])
        score = scores(inner, forms.score2)
        score = mask_tile(inner, forms.mask, score, partial, float("-inf"), "masked")
        top = b.reduce("max", "j", score, m, name="top")
        (p,) = b.map([("p", call("exp2", call("sub", x, n_)), pair)], {"x_": score, "n_": top})
        (shrink,) = b.map([("shrink", call("exp2", call("sub", m_, n_)), row)], {"m_": m, "n_": top})
        (l,) = b.map([("l_s", call("mul", l_, w_), row)], {"l_": l, "w_": shrink})
        l = b.reduce("sum", "j", p, l, name="l")
        (acc,) = b.map(
            [("acc_s", call("mul", acc_, w_), b.tile(s.heads, s.rows, fr.a.value_width))], {"acc_": acc, "w_": shrink}
        )
        return [top, l, add_carried(inner, forms, p, acc)]

    return sweep(fr, _zeros(fr, MOST_NEGATIVE), ["m", "l", "acc"], "seq", body)


def scores(fr: Frame, score: Expr) -> Value:
    """The score tile; a bare contraction is used as it is."""
    env = atom_env(fr, [score])
    if score.fn == "param":
        return env[score.name]
    s = fr.s
    return fr.b.map([("score", score, fr.b.tile(s.heads, s.rows, s.cols))], env)[0]


def _bounded(fr: Frame, forms: Forms) -> list[Value]:
    """Weights with a static bound need no maximum: returns l, acc, or after a guard m, l, acc.

    Where the bound is one-sided, a row of far keys may underflow; the guard then repeats it with a maximum.
    """
    b, s = fr.b, fr.s
    pair = b.tile(s.heads, s.rows, s.cols)

    def body(inner: Frame, partial: Value | None, carried: list[Value]) -> list[Value]:
        l, acc = carried
        compute_atoms(inner, [forms.pair_weight])
        (p,) = b.map([("p", forms.pair_weight, pair)], atom_env(inner, [forms.pair_weight]))
        p = mask_tile(inner, forms.mask, p, partial, 0.0, "masked")
        return [b.reduce("sum", "j", p, l, name="l"), add_carried(inner, forms, p, acc)]

    l, acc = sweep(fr, _zeros(fr, None), ["l", "acc"], "red", body)
    m = b.fill(0.0, "gi", fr.at, s.heads, s.rows, 1, name="m")
    if forms.floor > -80:
        return [m, l, acc]
    least = 1e-18 if fr.a.dtype == "f32" else 1e-150
    b.open([], [])
    fallback = fr.scoped()
    m2, l2, acc2 = _online(fallback, forms)
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


def _finish(fr: Frame, forms: Forms, results: list[Value], out: Value, lse: Value) -> None:
    """o = acc / l and lse = ln 2 * (m + log2 l); rows without open keys give 0 and -inf."""
    b, s = fr.b, fr.s
    m, l, acc = results
    m_, l_, acc_ = param("m_", "bhi"), param("l_", "bhi"), param("acc_", "bhid")
    row = b.tile(s.heads, s.rows, 1)
    safe = call("where", call("eq", l_, const(0.0)), const(1.0), l_)
    inverse, log = b.map(
        [
            ("inverse", call("reciprocal", safe), row),
            ("lse_t", mul(const(LN2), call("add", m_, call("log2", l_))), row),
        ],
        {"m_": m, "l_": l},
    )
    (o,) = b.map([("o_t", call("mul", acc_, param("inv_", "bhi")), acc.type)], {"acc_": acc, "inv_": inverse})  # type: ignore[list-item]
    b.op("tile.store", [o, out, fr.at["g"], fr.at["i"]], axes="gid", add=False)
    b.op("tile.store", [log, lse, fr.at["g"], fr.at["i"]], axes="gi", add=False)
