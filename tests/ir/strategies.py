"""Random well-typed score expressions, programs and modules, for hypothesis.

`expressions` draws anything the language can say and evaluate. `smooth_expressions` draws expressions whose
derivatives exist and whose values stay moderate, for comparison with autograd.
"""

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from aatc.ir.core import Block, Func, Loc, Module, Op, Value
from aatc.ir.dims import Dim
from aatc.ir.registry import Operand, Symbol, TorchConst
from aatc.ir.score import Expr, Program, call, const, index, param, params
from aatc.ir.types import BOOL, FLOAT, INDEX, INT, LAYOUTS, ListType, OpaqueType, TensorType

SIZES = (2, 2, 3, 4)  # B, H, I, J
WIDTH, HALF, TABLE = 4, 2, 5

#: (parameter, width of its features); rank and element type are the parameter's own.
POOL = [
    (param("q", "bhid"), WIDTH),
    (param("k", "bhjd"), WIDTH),
    (param("c", "d"), WIDTH),
    (param("angles", "bhid"), HALF),
    (param("phases", "jd"), HALF),
    (param("beta", "h"), 0),
    (param("bias", "bhij"), 0),
    (param("row", "bi"), 0),
    (param("scale", ""), 0),
    (param("m", "hde"), WIDTH),
    (param("ids", "bj", "i"), 0),
    (param("seed", "", "i"), 0),
    (param("open", "bij", "b"), 0),
    (param("flag", "i", "b"), 0),
    (param("table", "ht"), 0),
    (param("grid", "tu"), 0),
]


def leaves(rank: int, dtype: str, width: int = 0) -> list[Expr]:
    return [p for p, w in POOL if p.rank == rank and p.dtype == dtype and (rank == 0 or w == width)]


numbers = st.one_of(
    st.floats(allow_nan=False, width=64),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e16, math.inf, -math.inf, math.nan]),
    st.integers(-(10**6), 10**6),
)


# --- anything ----------------------------------------------------------------------------------------------
_NUMERIC = [
    "neg",
    "abs",
    "square",
    "sign",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "exp",
    "exp2",
    "log",
    "log2",
    "log1p",
    "sin",
    "cos",
    "tanh",
    "sigmoid",
    "softplus",
    "relu",
    "floor",
    "acosh",
    "expacosh",
    "acos",
]
_BINARY = ["add", "sub", "mul", "div", "maximum", "minimum", "floordiv", "remainder", "power"]
_COMPARE = ["lt", "le", "gt", "ge", "eq", "ne"]


@st.composite
def expressions(draw, rank: int = 0, dtype: str = "f", depth: int = 4, width: int = WIDTH) -> Expr:
    """Any expression of this rank and element type; a vector has ``width`` features. All can be evaluated."""

    def sub(rank=0, dtype="f", width=width):
        return draw(expressions(rank, dtype, depth - 1, width))

    def pick(items):
        return draw(st.sampled_from(items))

    if depth == 0 or draw(st.integers(0, 7)) == 0:
        if rank == 0 and dtype == "i":
            return draw(
                st.one_of(
                    st.sampled_from("bhij").map(index),
                    st.integers(-9, 9).map(const),
                    st.sampled_from(leaves(0, "i")),
                )
            )
        if rank == 0 and dtype == "b":
            return draw(st.one_of(st.booleans().map(const), st.sampled_from(leaves(0, "b"))))
        if rank == 0:
            return draw(st.one_of(numbers.map(const).filter(lambda e: e.dtype == "f"), st.sampled_from(leaves(0, "f"))))
        if dtype == "b":
            return call("lt", pick(leaves(rank, "f", width)), pick(leaves(0, "f")))
        return pick(leaves(rank, dtype, width))
    if dtype == "b":
        word = pick([*_COMPARE, "and", "or", "not", "where"])
        if word in _COMPARE:
            kind = pick("fi") if rank == 0 else "f"
            return call(word, sub(rank, kind), sub(0, pick("fi")))
        if word == "where":
            return call("where", sub(0, "b"), sub(rank, "b"), sub(rank, "b"))
        return call(word, *(sub(rank, "b") for _ in range(1 if word == "not" else 2)))
    if dtype == "i":
        word = pick(
            [
                "add",
                "sub",
                "mul",
                "maximum",
                "minimum",
                "neg",
                "abs",
                "sign",
                "floor",
                "floordiv",
                "remainder",
                "where",
                "row_key",
                "column_key",
            ]
        )
        if word == "where":
            return call("where", sub(0, "b"), sub(0, "i"), sub(0, "i"))
        if word in ("floordiv", "remainder"):
            return call(word, sub(0, "i"), const(pick([-7, -2, -1, 1, 3, 49])))
        if word == "row_key":
            return call("row_key", pick(leaves(0, "i")))
        if word == "column_key":
            return call("column_key")
        return call(word, *(sub(0, "i") for _ in range(1 if word in ("neg", "abs", "sign", "floor") else 2)))
    if rank == 2:
        word = pick(["outer", "param", "add", "mul", "exp", "neg"])
        if word == "outer":
            return call("outer", sub(1), sub(1))
        if word in ("add", "mul"):
            return call(word, sub(2), sub(pick([0, 2])))
        return pick(leaves(2, "f", width)) if word == "param" else call(word, sub(2))
    choices = ["numeric", "numeric", "binary", "binary", "binary", "pow", "where"]
    if rank == 1:
        choices += (
            ["eta", "embed", "init"]
            if width == HALF
            else ["eta", "rotate", "rotate", "matvec", "tmatvec", "embed", "init"]
        )
    else:
        choices += ["dot", "dot", "sum", "extreme", "width", "item", "lookup", "grid", "uniform", "mixed"]
    word = pick(choices)
    if word == "numeric":
        return call(pick(_NUMERIC), sub(rank))
    if word == "binary":
        other = sub(pick([0, rank]))
        return call(pick(_BINARY), *((sub(rank), other) if draw(st.booleans()) else (other, sub(rank))))
    if word == "mixed":
        return call(pick(_BINARY), sub(), sub(0, "i"))
    if word == "pow":
        return call("pow", sub(rank), attrs=(draw(st.floats(-3, 3, allow_nan=False)),))
    if word == "where":
        return call("where", sub(0, "b"), sub(rank), sub(pick([0, rank])))
    if word == "dot":
        w = pick([WIDTH, HALF])
        return call("dot", sub(1, width=w), sub(1, width=w))
    if word == "sum":
        return call("sum", sub(1, width=WIDTH))
    if word == "extreme":
        return call(pick(["amax", "amin"]), sub(1, width=WIDTH))
    if word == "width":
        return call("width", sub(1, width=WIDTH))
    if word == "item":
        return call("item", sub(1, width=WIDTH), attrs=(draw(st.integers(-WIDTH, WIDTH - 1)),))
    if word == "lookup":
        return call("lookup", param("table", "ht"), sub(0, pick("fi")))
    if word == "grid":
        return call("lookup", param("grid", "tu"), sub(0, pick("fi")), sub(0, pick("fi")))
    if word == "uniform":
        return call("pair_uniform", call("row_key", sub(0, "i")), call("column_key"))
    if word == "eta":
        return call("eta", sub(1))
    if word == "embed":
        return call("embed", sub(), sub(1), attrs=(draw(st.integers(0, width - 1)),))
    if word == "init":
        return call("init", call("append", sub(1), sub()))
    if word == "rotate":
        attrs = (pick(["half", "pairs"]),)
        return call("rotate", sub(1), sub(1, width=HALF), attrs=attrs)
    return call(word, sub(2), sub(1))


@st.composite
def programs(draw, rank: int = 0, dtype: str = "f", depth: int = 4) -> Program:
    """A program over what its body uses and sometimes more, parameters in any order."""
    body = draw(expressions(rank, dtype, depth))
    spare = draw(st.lists(st.sampled_from(["t0", "t1", "t0_", "x", "lse"]), unique=True, max_size=3))
    extra = [p for p in (param(n, "h") for n in spare) if p not in params(body)]
    return Program(tuple(draw(st.permutations([*params(body), *extra]))), body)


# --- differentiable ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Smooth:
    draw: object

    def number(self, depth: int) -> Expr:
        pick = lambda items: self.draw(st.sampled_from(items))  # noqa: E731
        if depth == 0:
            return pick([*leaves(0, "f"), const(0.7), const(-1.3)])
        word = pick(["dot", "dot", "sum", "item", "extreme", "width", "pointwise", "pointwise", "binary", "binary"])
        if word == "dot":
            w = pick([WIDTH, HALF])
            return call("mul", const(0.25), call("dot", self.vector(depth - 1, w), self.vector(depth - 1, w)))
        if word == "sum":
            return call("sum", self.vector(depth - 1, WIDTH))
        if word == "item":
            return call("item", self.vector(depth - 1, WIDTH), attrs=(pick([0, 1, -1, 2]),))
        if word == "extreme":
            return call(pick(["amax", "amin"]), self.vector(depth - 1, WIDTH))
        if word == "width":
            return call("mul", call("width", self.vector(depth - 1, WIDTH)), self.number(depth - 1))
        if word == "pointwise":
            return self.pointwise(self.number(depth - 1), lambda: self.number(depth - 1))
        return self.binary(self.number(depth - 1), self.number(depth - 1))

    def vector(self, depth: int, width: int) -> Expr:
        pick = lambda items: self.draw(st.sampled_from(items))  # noqa: E731
        if depth == 0:
            return pick(leaves(1, "f", width))
        words = ["pointwise", "binary", "scaled", "eta", "embed", "append"]
        word = pick(words if width == HALF else [*words, "rotate", "matvec", "tmatvec"])
        if word == "pointwise":
            return self.pointwise(self.vector(depth - 1, width), lambda: self.vector(depth - 1, width))
        if word == "binary":
            return self.binary(self.vector(depth - 1, width), self.vector(depth - 1, width))
        if word == "scaled":
            return self.binary(self.number(depth - 1), self.vector(depth - 1, width))
        if word == "eta":
            return call("eta", self.vector(depth - 1, width))
        if word == "embed":
            x = self.vector(depth - 1, width)
            return call("add", x, call("embed", self.number(depth - 1), x, attrs=(pick([0, 1]),)))
        if word == "append":
            longer = call("append", self.vector(depth - 1, width), self.number(depth - 1))
            return call("init", self.pointwise(longer, lambda: longer))
        if word == "rotate":
            attrs = (pick(["half", "pairs"]),)
            return call("rotate", self.vector(depth - 1, width), self.vector(depth - 1, HALF), attrs=attrs)
        matrix = pick([param("m", "hde"), call("outer", self.vector(0, width), self.vector(depth - 1, width))])
        return call("mul", const(0.5), call(word, matrix, self.vector(depth - 1, width)))

    def binary(self, x: Expr, y: Expr) -> Expr:
        words = ["add", "sub", "mul", "div", "power", "remainder", "maximum", "minimum", "where"]
        word = self.draw(st.sampled_from(words))
        if word == "div":
            return call("div", x, call("add", call("square", y), const(0.8)))
        if word == "power":
            return call("power", call("add", call("tanh", x), const(1.7)), call("tanh", y))
        if word == "remainder":
            return call("remainder", call("add", x, const(0.0371)), call("add", call("square", y), const(0.8)))
        if word in (
            "maximum",
            "minimum",
        ):  # the shift keeps equal arguments, whose derivative is a choice, apart
            return call(word, x, call("add", y, const(0.0371)))
        if word == "where":
            condition = call("lt", call("add", x, const(0.0123)), y)
            return call("where", condition, call("sin", x), y)
        return call(word, x, y)

    def pointwise(self, x: Expr, other) -> Expr:
        positive = call("add", call("square", x), const(0.6))
        inside = call("mul", const(0.9), call("tanh", x))
        shifted = call("add", x, const(0.0213))
        return self.draw(
            st.sampled_from(
                [
                    call("neg", x),
                    call("abs", shifted),
                    call("square", call("sin", x)),
                    call("sqrt", positive),
                    call("rsqrt", positive),
                    call("reciprocal", positive),
                    call("exp", call("tanh", x)),
                    call("exp2", call("sin", x)),
                    call("log", positive),
                    call("log2", positive),
                    call("log1p", call("square", x)),
                    call("sin", x),
                    call("cos", x),
                    call("tanh", x),
                    call("sigmoid", x),
                    call("softplus", x),
                    call("relu", shifted),
                    call("acosh", call("add", positive, const(0.7))),
                    call("expacosh", call("add", positive, const(0.7))),
                    call("acos", inside),
                    call("pow", positive, attrs=(1.7,)),
                    call("pow", positive, attrs=(-0.5,)),
                    call("mul", x, call("sign", shifted)),
                    call("add", x, call("floor", shifted)),
                ]
            )
        )


@st.composite
def smooth_expressions(draw, rank: int = 0, depth: int = 4) -> Expr:
    """A number (rank 0) or a vector of `WIDTH` features (rank 1) with moderate values and derivatives."""
    build = _Smooth(draw)
    return build.number(depth) if rank == 0 else build.vector(depth, WIDTH)


# --- values ------------------------------------------------------------------------------------------------
def tensor_for(p: Expr, generator: torch.Generator, sizes=SIZES) -> torch.Tensor:
    """A float64 (or integer, or truth) tensor laid out as the axes of ``p`` say."""
    extent = dict(zip("bhij", sizes, strict=True)) | {
        "t": TABLE,
        "u": TABLE,
        "d": dict(POOL).get(p, WIDTH),
        "e": WIDTH,
    }
    shape = [extent[c] for c in p.attrs[1]]
    if p.dtype == "i":
        return torch.randint(0, 7, shape, generator=generator)
    if p.dtype == "b":
        return torch.rand(shape, generator=generator) < 0.5
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def environment(exprs, seed: int = 0, sizes=SIZES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {p.name: tensor_for(p, generator, sizes) for p in params(*exprs)}


# --- attributes and modules --------------------------------------------------------------------------------
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
dims = st.builds(
    lambda c, terms: Dim(c, tuple(sorted((n, k) for n, k in terms.items() if k))),
    st.integers(0, 9),
    st.dictionaries(st.sampled_from(["N", "M", "batch_2"]), st.integers(-3, 3), max_size=2),
).filter(lambda d: not d.is_static or int(d) >= 0)  # fmt: skip
tensor_types = st.builds(
    lambda dtype, shape: TensorType(dtype, tuple(shape)),
    st.sampled_from(["f32", "f64", "bf16", "i64", "bool", "c64"]), st.lists(dims, max_size=4),
)  # fmt: skip
buffer_types = st.builds(
    lambda t, layout: TensorType(t.dtype, t.shape, layout),
    tensor_types,
    st.one_of(
        st.sampled_from(["", *LAYOUTS]),
        st.integers(1, 2**40).map("panels({})".format),
        st.integers(1, 9).map("panels(16, {})".format),
    ),
)
types = st.recursive(
    st.one_of(tensor_types, st.sampled_from([INT, FLOAT, BOOL, INDEX, OpaqueType()])),
    lambda inner: st.builds(ListType, inner), max_leaves=2,
)  # fmt: skip
plain_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    types,
    dims.filter(lambda d: not d.is_static),
    st.sampled_from([TorchConst("torch", "float32"), TorchConst("torch", "strided"), TorchConst("device", "cuda:1")]),
    programs(depth=2),
)
values = st.recursive(plain_values, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
locations = st.one_of(
    st.none(), st.builds(Loc, st.text(max_size=8), st.integers(0, 10**6), st.text(max_size=12)),
)  # fmt: skip


@st.composite
def modules(draw) -> Module:
    """A sound module: geo functions of random operations, later ones calling earlier ones."""
    module = Module(dims={"N": (1, None), "M": (2, 4096), "batch_2": (0, 7)})
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        args = [Value(draw(types), draw(st.text(max_size=4))) for _ in range(draw(st.integers(0, 3)))]
        visible, block = list(args), Block(args)
        for _ in range(draw(st.integers(0, 4))):
            op = draw(_operations(visible, [f for f in module.funcs.values() if f.level == "geo"]))
            visible += op.results
            block.add(op)
        returned = draw(st.lists(st.sampled_from(visible), max_size=3)) if visible else []
        block.add(Op("geo.return", returned, loc=draw(locations)))
        module.add(Func(name, "geo", block, draw(st.dictionaries(names, values, max_size=2))))
    return module


@st.composite
def _operations(draw, visible: list[Value], callees: list[Func]) -> Op:
    loc = draw(locations)
    possible = [f for f in callees if all(any(v.type == a.type for v in visible) for a in f.args)]
    if possible and draw(st.booleans()):
        f = draw(st.sampled_from(possible))
        operands = [draw(st.sampled_from([v for v in visible if v.type == a.type])) for a in f.args]
        return Op("geo.checkpoint", operands, {"body": Symbol(f.name)}, f.result_types, loc=loc)
    operands = draw(st.lists(st.sampled_from(visible), max_size=3)) if visible else []
    slots = st.integers(0, len(operands) - 1).map(Operand) if operands else st.nothing()
    args = tuple(draw(st.lists(st.one_of(values, slots), max_size=4)))
    attrs = {"target": draw(st.text(max_size=10)), "args": args}
    if draw(st.booleans()):
        attrs["kwargs"] = tuple(draw(st.lists(names, max_size=len(args), unique=True)))
    if draw(st.booleans()):
        attrs["effect"] = draw(st.booleans())
    if draw(st.booleans()):
        attrs["no_grad"] = draw(st.booleans())
    results = draw(st.lists(types, max_size=2))
    hints = [draw(st.text(max_size=5)) for _ in results]
    return Op("torch.call", operands, attrs, results, loc=loc, result_names=hints)
