"""Splits an attention's programs into per-token features and a core of numbers per pair.

After `Factored` nothing per pair has a feature axis: contractions of token vectors, tables, stored pair
tensors and sums over channels become *atoms*, and score, carried value and mask are functions of atoms.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from aatc.ir.errors import UnsupportedError
from aatc.ir.score.derivative import gradients
from aatc.ir.score.expr import (
    ONE,
    ZERO,
    Expr,
    add,
    call,
    div,
    index,
    mul,
    neg,
    param,
    params,
    postorder,
    rebuild,
    substitute,
)
from aatc.ir.tile_pairs import by_channel
from aatc.passes.score_forms import is_col, is_row


@dataclass(frozen=True)
class Token:
    """A per-token buffer: ``expr`` computes it, ``axes`` are bhid, bhjd, bhi, bhj, bh or empty. ``exact``: numbers
    as f64 and positions as integers, for masks."""

    name: str
    expr: Expr
    axes: str
    exact: bool = False

    @property
    def dtype(self) -> str:
        """f, i or b. Positions count as numbers; hashes and captured integers stay exact."""
        if self.expr.dtype != "i" or self.exact:
            return self.expr.dtype
        exact = any(e.fn in ("row_key", "column_key", "param") for e in postorder(self.expr))
        return "i" if exact else "f"

    @property
    def atom(self) -> Expr:
        return param(self.name, self.axes, self.dtype)


@dataclass(frozen=True)
class Contraction:
    atom: Expr
    row: Token
    col: Token


@dataclass(frozen=True)
class Lookup:
    """An entry of ``table`` at positions that are functions of atoms."""

    atom: Expr
    table: Expr
    positions: tuple[Expr, ...]
    exact: bool = False


@dataclass(frozen=True)
class Stored:
    """A pair tensor the user holds: a dense bias or mask."""

    atom: Expr
    source: Expr
    exact: bool = False


@dataclass(frozen=True)
class ChannelSum:
    """A sum over channels of ``body``, a function of one channel of each row and column vector and of atoms."""

    atom: Expr
    body: Expr
    rows: tuple[tuple[Expr, Token], ...]
    cols: tuple[tuple[Expr, Token], ...]


def used_by(x: Lookup | ChannelSum) -> tuple[Expr, ...]:
    """The functions of atoms that an atom is made of."""
    return x.positions if isinstance(x, Lookup) else (x.body,)


#: The cotangent of a number that is refined, per pair.
COTANGENT = param("ct_", "bhij")


@dataclass(frozen=True)
class Refined:
    """``plain``, a function of contractions and tokens; where that has lost its digits ``body``, a function of
    ``tokens``, pair by pair. ``grads``: per token what `COTANGENT` sends to it there. ``inside``: it has lost them
    between two bounds, not beyond them."""

    atom: Expr
    plain: Expr
    body: Expr
    tokens: tuple[Token, ...]
    grads: tuple[Expr, ...]
    inside: bool = False


@dataclass(frozen=True, kw_only=True)
class Square(Refined):
    """A refined quadratic form of one difference, of vectors ``row`` and ``col``: ``grads`` are what `COTANGENT` times
    the difference sends to these, ``slope`` is the linear map, over ``delta``, that takes such sums to gradients."""

    row: Token
    col: Token
    slope: Expr
    delta: Expr


@dataclass(frozen=True)
class CarryTerm:
    """``coef`` (a function of atoms) times a token vector of the key (``col``) or the query."""

    coef: Expr
    vector: Token
    col: bool


@dataclass
class Factored:
    """Atoms in the order they can be computed, and the programs over them."""

    tokens: dict[tuple[Any, ...], Token] = field(default_factory=dict)
    atoms: dict[tuple[Expr, bool], Contraction | Lookup | Stored | ChannelSum | Refined] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    _names: int = 0

    def fresh(self, stem: str) -> str:
        """A name no parameter of the attention has."""
        while True:
            self._names += 1
            name = f"{stem}{self._names}"
            if name not in self.taken:
                return name

    def token(self, e: Expr, axes: str | None = None, exact: bool = False) -> Token:
        """The buffer of a non-pair expression."""
        if axes is None:
            vector = "d" if e.rank == 1 else ""
            if "i" in e.axes:
                axes = "bhi" + vector
            elif "j" in e.axes:
                axes = "bhj" + vector
            else:
                axes = "bh" if e.axes else ""
        found = self.tokens.get((e, axes, exact))
        if found is None:
            stem = {"bhid": "a", "bhjd": "b", "bhi": "r", "bhj": "c", "bh": "p", "": "u"}[axes]
            found = self.tokens[e, axes, exact] = Token(self.fresh(stem), e, axes, exact)
        return found

    def pair(self, e: Expr) -> Expr:
        """`number`, of a tile's full extents even where ``e`` depends on the query or the key alone, or on neither."""
        for c in "ij":
            if c not in e.axes:
                e = add(e, mul(ZERO, index(c)))
        return self.number(e)

    def number(self, e: Expr, exact: bool = False) -> Expr:
        """A number per pair as a function of atoms. ``exact``, for masks: of tokens that hold numbers as f64 and
        positions as integers."""
        if e.rank:
            raise UnsupportedError(f"{e} is a vector where a number per pair is needed")
        done: dict[Expr, Expr] = {}
        stack = [e]  # formulas may be deeper than Python's stack
        while stack:
            x = stack[-1]
            if x in done:
                stack.pop()
                continue
            arguments = self._arguments(x)
            missing = [a for a in arguments if a not in done]
            if missing:
                stack += reversed(missing)
            else:
                done[x] = self._atom(x, [done[a] for a in arguments], exact)
                stack.pop()
        return done[e]

    def _arguments(self, e: Expr) -> tuple[Expr, ...]:
        """The numbers per pair that ``e`` is put together from, when it is no atom itself."""
        if e.is_const or not e.is_pair or e.fn in ("param", "dot", "sum"):
            return ()
        return e.args[1:] if e.fn == "lookup" else e.args

    def _atom(self, e: Expr, args: list[Expr], exact: bool) -> Expr:
        if e.is_const:
            return e
        if e.rank:
            raise UnsupportedError(f"{e} is a vector where a number per pair is needed")
        if not e.is_pair:
            return self.token(e, exact=exact).atom
        if e.fn in ("dot", "sum"):
            if (e, False) not in self.atoms:
                self._reduction(e)
            return self.atoms[e, False].atom
        if e.fn not in ("param", "lookup"):
            return rebuild(e, tuple(args))
        if (e, exact) not in self.atoms:
            if e.fn == "param":
                atom: Stored | Lookup = Stored(param(self.fresh("s"), "bhij", e.dtype), e, exact)
            else:
                if e.args[0].axes & {"i", "j"}:
                    raise UnsupportedError(
                        f"table {e.args[0].name} has an axis of tokens and is read at positions of the pair",
                        hint="give the numbers as a capture per pair, axes ij",
                    )
                atom = Lookup(param(self.fresh("t"), "bhij", e.dtype), e.args[0], tuple(args), exact)
            self.atoms[e, exact] = atom
        return self.atoms[e, exact].atom

    def refined(self, plain: Expr, exact: Expr, inside: bool = False) -> Refined | None:
        """The number ``plain`` by the formula ``exact`` where it must be, to be put in its place; None unless the one
        is a function of contractions and the other of channels of the query's and the key's vectors."""
        given = {x.atom: x for x in self.atoms.values()}
        if not all(isinstance(given.get(p), Contraction) for p in params(plain) if p in given):
            return None
        table: dict[Expr, Expr] = {}
        tokens: dict[Expr, Token] = {}
        stack = [exact]
        while stack:
            e = stack[-1]
            missing = [a for a in e.args if a not in table] if e.is_pair else []
            if missing:
                stack += missing
                continue
            stack.pop()
            if e in table or e.is_const:
                table.setdefault(e, e)
            elif not e.is_pair:
                token = self.token(e, ("bhid" if is_row(e) else "bhjd") if e.rank else None)
                if e.rank > 1 or token.dtype != "f":
                    return None
                table[e] = token.atom
                tokens[token.atom] = token
            elif by_channel(e):
                table[e] = rebuild(e, tuple(table[a] for a in e.args))
            else:
                return None
        body = table[exact]
        read = params(body)
        sent = gradients([(body, COTANGENT)], read)
        grads = tuple(add(sent.get(p, ZERO), call("mul", ZERO, p)) if _needs_width(sent, p) else sent[p] for p in read)
        if not all(map(by_channel, postorder(*grads))):
            return None
        found = Refined(param(self.fresh("y"), "bhij"), plain, body, tuple(tokens[p] for p in read), grads, inside)
        self.atoms[found.atom, False] = found
        return found

    def square(self, plain: Expr, exact: Expr, slope: tuple[Expr, Expr, Expr], delta: Expr) -> Refined | None:
        """`refined`, near the bounds' middle, for a quadratic form of the difference of two vectors: (x, y, gradient
        over ``delta``)."""
        found = self.refined(plain, exact, inside=True)
        if found is None:
            return None
        x, y, g = slope
        row, col = self.token(x, "bhid"), self.token(y, "bhjd")
        grads = tuple(call("mul", COTANGENT, call("sub", *e)) for e in ((row.atom, col.atom), (col.atom, row.atom)))
        given = {f.name: getattr(found, f.name) for f in fields(Refined)} | {"grads": grads}
        square = Square(**given, row=row, col=col, slope=g, delta=delta)
        self.atoms[found.atom, False] = square
        return square

    def _reduction(self, e: Expr) -> None:
        if e.fn == "dot":
            x, y = e.args
            for a, b in ((x, y), (y, x)):
                if is_row(a) and is_col(b) and not b.is_pair and not a.is_pair:
                    atom = param(self.fresh("x"), "bhij")
                    self.atoms[e, False] = Contraction(atom, self.token(a, "bhid"), self.token(b, "bhjd"))
                    return
            body = self._channel(call("mul", x, y))
        else:
            body = self._channel(e.args[0])
        expr, rows, cols = body
        if any(isinstance(self.atoms.get((x, False)), ChannelSum) for x in postorder(e)):
            raise UnsupportedError(
                f"{e} sums over channels inside a sum over channels, per pair",
                hint="combine q and k by contractions, or in one sum",
            )
        self.atoms[e, False] = ChannelSum(param(self.fresh("z"), "bhij"), expr, rows, cols)

    def _channel(self, v: Expr) -> Any:
        """A pair vector as a function of single channels; UnsupportedError when it mixes channels."""
        table: dict[Expr, Expr] = {}
        rows: dict[Expr, Token] = {}
        cols: dict[Expr, Token] = {}

        def visit(e: Expr) -> Expr:
            if e in table:
                return table[e]
            if e.rank == 0:
                out = self.number(e)
            elif not e.is_pair:
                row = is_row(e)
                token = self.token(e, "bhid" if row else "bhjd")
                out = param(f"{token.name}_ch", "bhi" if row else "bhj")
                (rows if row else cols)[out] = token
            elif e.fn == "param":
                raise UnsupportedError(
                    f"{e.name} is a vector per pair, n*m*d numbers", hint="give vectors per token, or a number per pair"
                )
            elif e.fn in _MIXING:
                raise UnsupportedError(
                    f"{e.fn} of a vector that depends on query and key mixes channels per pair",
                    hint="apply linear maps to q and k before they are combined",
                )
            else:
                out = rebuild(e, tuple(visit(a) for a in e.args))
            table[e] = out
            return out

        return visit(v), tuple(rows.items()), tuple(cols.items())


def _needs_width(sent: dict[Expr, Expr], p: Expr) -> bool:
    """Whether a gradient does not show how many channels it has."""
    return p not in sent or sent[p].rank != p.rank


_MIXING = ("rotate", "rotate_angle", "matvec", "tmatvec", "turn", "unturn", "eta", "append", "init", "embed", "outer")


def carry_terms(f: Factored, carry: Expr) -> list[CarryTerm]:
    """The carried value as a sum of (number per pair) times (vector per token), equal vectors merged."""
    merged: dict[tuple[Expr, bool], Expr] = {}
    for coef, vector in _linear(carry):
        col = is_col(vector)
        key = (vector, col)
        merged[key] = add(merged[key], coef) if key in merged else coef
    return [
        CarryTerm(f.number(coef), f.token(vector, "bhjd" if col else "bhid"), col)
        for (vector, col), coef in merged.items()
    ]


def _linear(v: Expr) -> list[tuple[Expr, Expr]]:
    if not v.is_pair:
        return [(ONE, v)]
    if v.fn in ("add", "sub"):
        right = _linear(v.args[1])
        return _linear(v.args[0]) + (right if v.fn == "add" else [(neg(c), x) for c, x in right])
    if v.fn == "neg":
        return [(neg(c), x) for c, x in _linear(v.args[0])]
    if v.fn == "mul":
        for s, x in (v.args, v.args[::-1]):
            if s.rank == 0:
                return [(mul(s, c), y) for c, y in _linear(x)]
    if v.fn == "div" and v.args[1].rank == 0:
        return [(div(c, v.args[1]), x) for c, x in _linear(v.args[0])]
    raise UnsupportedError(
        f"the carried value {v} is not a sum of numbers per pair times vectors per token",
        hint="write it as such, or run this attention eagerly",
    )


def split_epilogue(carry: Expr) -> tuple[Expr, Expr | None, Expr]:
    """``c T_i(inner)`` → (c inner, T over the placeholder, placeholder): linear maps of the query commute with numbers
    c per pair and with the sum over keys, and are applied to the result once."""
    place = param("summed", "bhid")
    chain: Expr | None = None
    inner = carry
    while True:
        number, vector = _peeled(inner)
        if not (vector.is_pair and vector.fn in ("rotate", "matvec", "tmatvec", "turn", "unturn")):
            break
        at = 0 if vector.fn == "rotate" else 1
        if any("j" in a.axes for n, a in enumerate(vector.args) if n != at):
            break
        mapped = call(vector.fn, *(place if n == at else a for n, a in enumerate(vector.args)), attrs=vector.attrs)
        chain = mapped if chain is None else substitute(chain, {place: mapped}, smart=False)
        inner = vector.args[at] if number is None else mul(number, vector.args[at])
    return inner, chain, place


def _peeled(v: Expr) -> tuple[Expr | None, Expr]:
    """A vector as (number, vector) when it is such a product, as (None, itself) otherwise."""
    if v.fn == "mul":
        for s, x in (v.args, v.args[::-1]):
            if s.rank == 0:
                return s, x
    return None, v
