"""Small programs of kernels written by hand."""

from aatc.backends.vulkan.assemble import Assembly
from aatc.backends.vulkan.kernels import Buffer, Dispatch, Extent, Offset, Rounds, Template
from aatc.ir.dims import Dim
from tests.vulkan.kernels_by_hand import AXPY, EXP, TIMES, TURN

N = Dim.of("n")
_ONE = Rounds((Dim.of(1),))


def step(kernel, reads, writes, **more):
    """A dispatch over n elements; buffers by the kernel's words."""
    push = {"n": Extent((N,)), **{word: Offset(name) for word, name in more.items() if isinstance(name, str)}}
    push |= {word: value for word, value in more.items() if isinstance(value, float)}
    return Dispatch(kernel, (Rounds((N,), 64), _ONE, _ONE), push, reads, writes)


def buffer(name, role, dtype="f32"):
    return Buffer(name, role, dtype, (N,))


#: y = exp(x) * turned(x) + 0.5 w
FORMULA = Template(
    "formula",
    (buffer("x", "argument"), buffer("w", "argument"), buffer("e", "scratch"), buffer("t", "scratch"),
     buffer("y", "result"), Buffer("refused", "refused", "i32", (Dim.of(1),))),
    (
        step(EXP, ("x",), ("e",), x="x", y="e"),
        step(TURN, ("x",), ("t",), x="x", y="t"),
        step(TIMES, ("e", "t"), ("y",), x="e", y="t", z="y"),
        step(AXPY, ("w", "y"), ("y",), x="w", y="y", A=0.5),
    ),
    ("n",),
    returns=("y",),
)  # fmt: skip


def formula(x, w):
    return x.exp() * x.flip(0) + 0.5 * w


def twice(n, dtype="f32", parameter=True):
    """A program that applies the formula to what it gave: an input, a parameter, two outputs."""
    a = Assembly()
    x = a.input(dtype, [n], "x")
    w = a.parameter(dtype, [n], "w") if parameter else a.input(dtype, [n], "w")
    first = a.run(FORMULA, {"n": n}, {"x": x, "w": w})
    second = a.run(FORMULA, {"n": n}, {"x": first["y"], "w": w})
    a.output(second["y"], dtype)
    a.output(first["refused"], "i64")
    return a.finish(), a.kernels
