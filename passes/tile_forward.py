"""The forward tile function: one pass over keys, the normaliser's step in each tile, nothing of size N*M."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from aatc.ir.aggregations import SUM
from aatc.ir.core import Func, Value
from aatc.ir.geo import whole_attention_of
from aatc.ir.normalizers import SCORE, WEIGHT, Normalizer, Statistic
from aatc.ir.normalizers.base import MASS
from aatc.ir.schedule import Schedule
from aatc.ir.score.expr import ZERO, Expr, add, call, const, mul, param, params, postorder, substitute
from aatc.ir.score.program import Program
from aatc.ir.types import TensorType, compute_name
from aatc.passes.captured import absorbed
from aatc.passes.differences import DELTA, slope
from aatc.passes.factor import CarryTerm, ChannelSum, Factored, Lookup, Refined, carry_terms, split_epilogue, used_by
from aatc.passes.key_parts import in_parts, starts
from aatc.passes.lowering import LOG2E, Attention, Builder, compute_tokens, new_func, numbers_of, pack_tokens
from aatc.passes.normal_form import Normaliser, Terms
from aatc.passes.rounding import Check, digits, grouped
from aatc.passes.score_forms import SINGULAR
from aatc.passes.tile_checks import Watch, bound_refined, checks_of, square_terms, tokens_of
from aatc.passes.tile_core import Frame, atom_env, classify, compute_atoms, loops, mask_tile, sweep


def squares_apart(a: Attention) -> Sequence[Program]:
    """The score for a backward in which squares of differences stand apart, and these; empty where it is not to be
    used: where the weight is no exponential of the score, or what was dropped of that enters statistics that do not
    move with it."""
    found: Sequence[Program] = a.op.attrs.get("apart", ())
    weight = a.op.attrs.get("weight")
    if a.whole or not found or (weight is not None and weight.body.fn != "exp"):
        return ()
    moved = all(x.op == "max" and x.of is SCORE for x in a.programs.normalizer.of_scores)
    return found if moved or "dropped" not in a.op.attrs else ()


class Forms:
    """The factored programs of an attention: ``score`` is the score over atoms times ``unit``, ``weight`` the closed
    form of exp(score) if there is one, ``carry`` the carried value's terms, ``epilogue`` the query's map and the
    aggregation's, ``row`` what the log-sum-exp gets added, ``checks`` the conditions for the precision of ``digits``.

    Scores whose exponential is taken are kept in units of log 2, whose exponential is the cheapest, unless numbers near
    the end of the range may be added to them, such as a bias of the least finite number: these would overflow.
    """

    def __init__(self, a: Attention, *, backward: bool = False):
        self.f = Factored(taken=set(a.names) | {"lse", "summed"})
        body = a.programs.score.body
        self.normalizer = a.programs.normalizer
        self.unit = LOG2E if self.normalizer.exponential and not _adds_what_is_given(body) else 1.0
        apart = squares_apart(a) if backward else ()
        score = Normaliser(whole=a.whole).number(mul(const(self.unit), body))
        single = compute_name(a.types[a.names[0]].dtype) == "f32"
        #: The score as the forward has it, which weights are taken by where the backward differentiates another form of
        #: it: weights by the numbers of that one, rounded otherwise, would be off by as much as scores are large.
        self.seen: Expr | None = None
        if single and a.dtype == "f64":
            score = absorbed(score)
        if apart:
            self.seen = self.f.pair(score)
            score = apart[0].body if self.unit == 1 else mul(const(self.unit), apart[0].body)
        self.score = self.f.pair(score)
        weight = None if a.whole else a.op.attrs.get("weight")  # that is a function of what was multiplied out
        self.bounded = weight is not None
        self.floor = float(a.op.attrs.get("floor", float("-inf")))
        self.weight: Expr | None = None
        self.plain_score: Expr | None = None
        if weight is not None and weight.body.fn != "exp":
            self.weight, self.plain_score = self.f.pair(weight.body), self.f.pair(body)
        inner, self.epilogue, self.place = split_epilogue(a.programs.carry.body)
        if not a.programs.aggregation.plain:
            mapped = self.place if self.epilogue is None else self.epilogue
            self.epilogue = substitute(a.programs.aggregation.finish(SUM), {SUM: mapped})
        self.carry: list[CarryTerm] = carry_terms(self.f, inner)
        self.mask = self.f.number(a.programs.mask.body, exact=True) if a.programs.mask is not None else None
        self.row: Expr | None = a.programs.row.body if a.programs.row is not None else None
        self.digits = digits(a.dtype, compute_name(a.types[a.names[0]].dtype))
        found = [] if a.whole else checks_of(a.op.attrs)
        if a.dtype == "f64":  # what only this precision can do is left to it, and so is all if there is nothing behind
            found = [c for c in found if c.kind != "div"] if "whole" in a.op.attrs else []
        self.checks = [(c, tokens_of(c, self.f, self.unit, body)) for c in found]
        self.refined: list[tuple[Refined, list[tuple[Check, Terms]]]] = []
        if a.dtype == "f64" and found:
            for plain, exact in grouped(a.op.attrs.get("refined", ()), 2):
                self._refine(plain.body, exact.body)
        self.squares: list[tuple[Refined, Terms]] = []
        for plain, exact, written in grouped(apart[1:], 3):
            self._refine_square(plain.body, exact.body, written.body)
        #: What scores lack of those in which squares stand apart, a number per query.
        self.dropped: Expr | None = a.op.attrs["dropped"].body if apart and "dropped" in a.op.attrs else None
        if self.dropped is not None:
            whole = whole_attention_of(a.op)
            self.row = whole.row.body if whole.row is not None else None

    def _refine_square(self, plain: Expr, exact: Expr, written: Expr) -> None:
        """Puts a square of a difference, which nearly coinciding pairs have by its own formula, in the score."""
        terms = square_terms(plain, self.f)
        number = self.f.number(plain)
        if number.is_const or number not in postorder(self.score):
            return
        form = slope(written)
        found = self.f.refined(number, exact, True) if form is None else self.f.square(number, exact, form, DELTA)
        if found is not None:
            self.score = substitute(self.score, {number: found.atom}, smart=False)
            self.squares.append((found, terms))

    def _refine(self, argument: Expr, exact: Expr) -> None:
        """Takes the conditions on ``argument`` away by a formula for the pairs that break them, if that can be had."""
        checks = [(c, t) for c, t in self.checks if c.argument is argument and c.kind in SINGULAR]
        plain = self.f.number(argument)
        places = [e for e in (self.score, self.weight, self.plain_score) if e is not None]
        if not checks or plain.is_const or not all(plain in postorder(e) for e in places):
            return
        inside = [e for x in self.f.atoms.values() if isinstance(x, ChannelSum | Lookup) for e in used_by(x)]
        found = None if plain in postorder(*inside) else self.f.refined(plain, exact)
        if found is None:
            return
        table = {plain: found.atom}
        self.score = substitute(self.score, table, smart=False)
        self.weight, self.plain_score = (
            None if e is None else substitute(e, table, smart=False) for e in (self.weight, self.plain_score)
        )
        self.refined.append((found, checks))
        self.checks = [x for x in self.checks if x not in checks]

    @property
    def pair_weight(self) -> Expr:
        """The weight where no statistic of scores enters it, or none has to."""
        return self.weight if self.weight is not None else self.weight_of({s.next: ZERO for s in self.reference})

    def weight_of(self, given: Mapping[Expr, Expr]) -> Expr:
        """The weight over atoms, with expressions in the place of statistics of scores."""
        return substitute(self.normalizer.weight(self.unit), {SCORE: self.seen_score, **given})

    @property
    def seen_score(self) -> Expr:
        """The score that weights are taken by."""
        return self.score if self.seen is None else self.seen

    @property
    def reference(self) -> tuple[Statistic, ...]:
        return self.normalizer.of_scores


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
    bound_refined(fr, forms.refined, forms.digits)
    watch = Watch(fr, forms.checks, forms.unit, a.programs.score.body, forms.digits)
    pack_tokens(b, s, fr.buffers, fr.f.tokens.values())
    fr.tile_map = classify(fr, s.rows, s.heads)
    out = b.op("tile.alloc", [], [TensorType.of(a.dtype, [a.problems, a.rows, a.value_width])], names=["acc_all"])[0]
    titles = [x.heading for x in forms.normalizer.statistics]
    lse, *statistics = (
        b.op("tile.alloc", [], [TensorType.of(a.dtype, [a.problems, a.rows])], names=[f"{n}_all"])[0]
        for n in ("lse", *titles)
    )

    def gathered(inner: Frame) -> list[Value]:
        if forms.bounded:
            return _bounded(inner, forms, watch)
        return (_online if forms.reference else _at_once)(inner, forms, watch)

    def finish(inner: Frame, results: list[Value]) -> None:
        _finish(inner, forms, results, out, [lse, *statistics])

    if s.parts > 1:
        in_parts(fr, forms.normalizer, forms.unit, gathered, finish)
    else:
        loops(fr, lambda inner: finish(inner, gathered(inner)))
    results = finish_output(fr, forms, out, lse, dict(zip(titles, statistics, strict=True)))
    return new_func(name, b, args, results, {"schedule": str(s)})


def finish_output(fr: Frame, forms: Forms, out: Value, lse: Value, statistics: Mapping[str, Value]) -> list[Value]:
    """(o, lse, what the backward takes for o, and the statistics of rows it takes, by name): the query's map, the
    output's dtype and the log-sum-exp with what was dropped of the score, per token."""
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
    itself = Program((inner,), inner)
    kept = [_result(fr, itself, [x], statistic_type(a), n) for n, x in statistics.items()]
    return [o, l, saved, *kept]


def _result(fr: Frame, program: Program, operands: list[Value], t: TensorType, name: str) -> Value:
    """A result of the function: per query, contiguous."""
    return whole_token(fr, program, operands, t, name, program.params[0].attrs[1], "contiguous")


def whole_token(
    fr: Frame, program: Program, operands: list[Value], t: TensorType, name: str, axes: str, layout: str
) -> Value:
    """A per-token program over whole buffers, b and h apart; ``layout`` is that of its result."""
    return fr.b.op(
        "tile.token",
        operands,
        [replace(t, layout=layout)],
        names=[name],
        program=program,
        axes=axes,
        sizes=fr.a.sizes,
        flat=False,
        numbers=numbers_of(fr.a, program.body, operands),
    )[0]


def saved_type(a: Attention) -> TensorType:
    """Type of what the backward is given as the output: the sum before the query's map, in the scores' own dtype."""
    return TensorType(a.dtype, (a.batch, a.heads, a.rows, a.types[a.names[2]].shape[3]))


def statistic_type(a: Attention) -> TensorType:
    return TensorType(a.dtype, (a.batch, a.heads, a.rows))


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
    """Weights that statistics of scores enter, which change from tile to tile: softmax with a running maximum. Returns
    the statistics and acc."""
    b, s, n = fr.b, fr.s, forms.normalizer
    pair, row = b.tile(s.heads, s.rows, s.cols), b.tile(s.heads, s.rows, 1)
    shrunk, acc_ = param("w_", "bhi"), param("acc_", "bhid")
    shrinking = n.shrink(forms.unit)
    assert shrinking is not None

    def body(inner: Frame, partial: Value | None, carried: list[Value]) -> list[Value]:
        old, acc, near = _parted(n, carried)
        compute_atoms(inner, [forms.score])
        expression = watch.prepare(inner, forms.score) if watch else forms.score
        if watch and partial is None:  # before the scores, which then take the place of what was watched
            near = watch.update(inner, forms, None, near)
        score = scores(inner, expression)
        score = mask_tile(inner, forms.mask, score, partial, float("-inf"), "masked")
        seen = {SCORE.name: score}
        news = [_gathered(inner, x, seen, old[x.name], x.heading) for x in n.of_scores]
        seen |= {x.next.name: v for x, v in zip(n.of_scores, news, strict=True)}
        (p,) = b.map([("p", n.weight(forms.unit), pair)], seen)
        seen |= {x.value.name: old[x.name] for x in n.of_scores} | {WEIGHT.name: p}
        (shrink,) = b.map([("shrink", shrinking, row)], seen)
        for x in n.of_weights:
            env = {x.value.name: old[x.name], shrunk.name: shrink}
            (less,) = b.map([(f"{x.name}_s", call("mul", x.value, shrunk), row)], env)
            news.append(_gathered(inner, x, seen, less, x.name))
        (acc,) = b.map(
            [("acc_s", call("mul", acc_, shrunk), b.tile(s.heads, s.rows, fr.a.value_width))],
            {"acc_": acc, shrunk.name: shrink},
        )
        acc = add_carried(inner, forms, p, acc)
        if watch and partial is not None:
            near = watch.update(inner, forms, partial, near)
        return [*news, acc, *near]

    names = [*(x.name for x in n.statistics), "acc", *(watch.names() if watch else [])]
    inits = [*starts(fr, n.statistics), *(watch.inits(fr) if watch else [])]
    found = sweep(fr, inits, names, "seq", body)
    statistics, acc, near = _parted(n, found)
    if watch:
        watch.require(fr, near)
    return [*statistics.values(), acc]


def _parted(n: Normalizer, carried: list[Value]) -> tuple[dict[str, Value], Value, list[Value]]:
    """What a loop carries: statistics by name, acc, and what is watched."""
    count = len(n.statistics)
    return {x.name: v for x, v in zip(n.statistics, carried, strict=False)}, carried[count], carried[count + 1 :]


def _gathered(fr: Frame, x: Statistic, seen: dict[str, Value], into: Value, name: str) -> Value:
    """A statistic with the keys of the tile; ``seen``: the tile's score or weight by name."""
    if x.of.fn == "param":
        tile = seen[x.of.name]
    else:
        (tile,) = fr.b.map([(f"of_{x.name}", x.of, fr.b.tile(fr.s.heads, fr.s.rows, fr.s.cols))], seen)
    return fr.b.reduce(x.op, "j", tile, into, name=name)


def scores(fr: Frame, score: Expr) -> Value:
    """The score tile; a bare contraction is used as it is."""
    env = atom_env(fr, [score])
    if score.fn == "param":
        return env[score.name]
    s = fr.s
    return fr.b.map([("score", score, fr.b.tile(s.heads, s.rows, s.cols))], env)[0]


def _at_once(fr: Frame, forms: Forms, watch: Watch) -> list[Value]:
    """Weights that nothing of their row enters: returns statistics of weights and acc."""
    b, s, n = fr.b, fr.s, forms.normalizer
    pair, count = b.tile(s.heads, s.rows, s.cols), len(n.of_weights)

    def body(inner: Frame, partial: Value | None, carried: list[Value]) -> list[Value]:
        sums, acc, near = carried[:count], carried[count], carried[count + 1 :]
        compute_atoms(inner, [forms.pair_weight])
        weight = watch.prepare(inner, forms.pair_weight)
        if partial is None:  # before the weights, which then take the place of what was watched
            near = watch.update(inner, forms, None, near)
        (p,) = b.map([("p", weight, pair)], atom_env(inner, [weight]))
        p = mask_tile(inner, forms.mask, p, partial, 0.0, "masked")
        seen = {WEIGHT.name: p}
        sums = [_gathered(inner, x, seen, v, x.name) for x, v in zip(n.of_weights, sums, strict=True)]
        acc = add_carried(inner, forms, p, acc)
        return [*sums, acc, *(near if partial is None else watch.update(inner, forms, partial, near))]

    inits = [*starts(fr, n.of_weights), *watch.inits(fr)]
    names = [*(x.name for x in n.of_weights), "acc", *watch.names()]
    found = sweep(fr, inits, names, "red", body)
    watch.require(fr, found[count + 1 :])
    return found[: count + 1]


def _bounded(fr: Frame, forms: Forms, watch: Watch) -> list[Value]:
    """Exponentials with a static bound need no maximum: returns the statistics and acc.

    Where the bound is one-sided, a row of far keys may underflow; the guard then repeats it with a maximum.
    """
    b, s = fr.b, fr.s
    found = _at_once(fr, forms, watch)
    found = [*(b.fill(0.0, "gi", fr.at, s.heads, s.rows, 1, name=x.name) for x in forms.reference), *found]
    if forms.floor > -80:
        return found
    least = 1e-18 if fr.a.dtype == "f32" else 1e-150
    b.open([], [])
    region = b.close(_online(fr.scoped(), forms, None))
    names = [x.name for x in forms.normalizer.statistics]
    at = names.index(MASS.name)  # what is compared stands first
    order = [at, *(n for n in range(len(found)) if n != at)]
    region.ops[-1].operands = [region.ops[-1].operands[n] for n in order]
    first = [found[n] for n in order]
    guarded = b.op(
        "tile.guard",
        first,
        [v.type for v in first],
        regions=[region],
        names=[f"{[*names, 'acc'][n]}_g" for n in order],
        least=least,
    )
    return [guarded[order.index(n)] for n in range(len(found))]


def _finish(fr: Frame, forms: Forms, results: list[Value], out: Value, rows: list[Value]) -> None:
    """The output and the log-sum-exp of a block of rows, and its statistics: the backward takes these rather than the
    log-sum-exp, which has lost log l where m is large. ``rows``: the buffers of log-sum-exp and statistics."""
    b, s, n = fr.b, fr.s, forms.normalizer
    *statistics, acc = results
    factor, lse = n.finish(forms.unit)
    row = b.tile(s.heads, s.rows, 1)
    wanted = [("lse_t", lse, row)] if factor is None else [("inverse", factor, row), ("lse_t", lse, row)]
    *scale, log = b.map(wanted, {x.value.name: v for x, v in zip(n.statistics, statistics, strict=True)})
    if scale:
        product = call("mul", param("acc_", "bhid"), param("inv_", "bhi"))
        (acc,) = b.map([("o_t", product, acc.type)], {"acc_": acc, "inv_": scale[0]})  # type: ignore[list-item]
    b.op("tile.store", [acc, out, fr.at["g"], fr.at["i"]], axes="gid", add=False)
    for value, buffer in zip((log, *statistics), rows, strict=True):
        b.op("tile.store", [value, buffer, fr.at["g"], fr.at["i"]], axes="gi", add=False)
