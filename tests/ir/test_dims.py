"""Products of dimensions: no two that differ share a name, and what is proved with them holds."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc import backends
from aatc.errors import ShapeError, UnsupportedError, VerifyError
from aatc.ir.dims import Dim, factors, product
from aatc.ir.interpreter import Interpreter, run
from aatc.ir.parser import parse
from aatc.ir.printer import module_text
from aatc.passes import Pipeline

NAMES = ("A", "B", "B_1", "H", "x", "x_", "_x_", "n_x", "A_x", "x_B")
SYMBOLS = tuple(n for n in NAMES if len(factors(n)) == 1)


@st.composite
def dims(draw):
    found = Dim(draw(st.integers(-3, 3)))
    for name in draw(st.lists(st.sampled_from(SYMBOLS), max_size=2)):
        found += Dim.of(name) * draw(st.integers(-2, 3))
    return found


def size(d, values):
    """Of a dimension whose symbols may be products."""
    for name in d.symbols - values.keys():
        number = 1
        for part in factors(name):
            number *= values[part]
        values = {**values, name: number}
    return d.evaluate(values)


@given(st.lists(dims(), min_size=2, max_size=4), st.lists(st.integers(0, 50), min_size=9, max_size=9))
def test_a_product_is_the_product_of_the_sizes(parts, sizes):
    values = dict(zip(SYMBOLS, sizes, strict=False))
    found, want = parts[0], size(parts[0], values)
    try:
        for d in parts[1:]:
            found, want = product(found, d), want * size(d, values)
    except UnsupportedError as e:
        assert "has no name" in str(e)
        return
    assert size(found, values) == want


def test_no_two_products_share_a_name():
    """Of all offsets: those that were spelled alike once, B-1, B+1 and B_1, among them."""
    seen = {}
    for a, b in itertools.product(
        [Dim.of(n) * c + k for n in ("B", "B_1", "H") for c in (1, 2, -1) for k in (-1, 0, 1)], repeat=2
    ):
        found = product(a, b)
        if {*a.symbols} != {*b.symbols} or a.symbols == b.symbols:
            assert seen.setdefault(found, (a, b)) in ((a, b), (b, a)) or _same(seen[found], (a, b)), (a, b)
    assert str(product(Dim.of("B") - 1, Dim.of("H"))) == "B_x_H-H"
    assert str(product(Dim.of("B_1"), Dim.of("H"))) == "B_1_x_H"
    assert product(product(Dim.of("A"), Dim.of("B")), Dim.of("H")) == Dim.of("A_x_B_x_H")


def _same(x, y):
    values = {"B": 7, "B_1": 11, "H": 13}
    a, b = (p[0].evaluate(values) * p[1].evaluate(values) for p in (x, y))
    return a == b


@pytest.mark.parametrize("names", [("n_x", "H"), ("A_x", "x_B"), ("_x", "B")])
def test_a_product_without_a_name_is_refused(names):
    with pytest.raises(UnsupportedError, match="has no name"):
        product(*map(Dim.of, names))


TEXT = """aatc 2

dims {{B in [2, inf], H in [1, inf], B_1 in [1, inf], B_x_H in [0, inf], B_1_x_H in [1, inf]}}

tile.func @t(%x: f32[{b},H,4], %y: f32[B_1,4], %z: f32[B]) {{
  %o = tile.alloc() {{fill = 0.0}} : f32[{b},H,4]
  tile.for() {{axis = "g", upper = dim({upper}), step = 1, kind = "par"}} (%g: index) {{
    %t = tile.load(%x, %g) {{axes = "bhd", sizes = [dim({b}), dim(H), 1, 1]}} : tile<f32[1,1,4]>
    tile.store(%t, %o, %g) {{axes = "bhd", add = false, sizes = [dim({b}), dim(H), 1, 1]}}
    tile.yield()
  }}
  tile.return(%o)
}}
"""


@pytest.mark.parametrize("b, upper", [("B-1", "B_1_x_H"), ("B+1", "B_1_x_H"), ("B_1", "B_x_H"), ("B+1", "B_x_H+2*H")])
def test_a_loop_over_other_problems_is_refused(b, upper):
    with pytest.raises(VerifyError, match="runs past"):
        parse(TEXT.format(b=b, upper=upper))


@pytest.mark.parametrize(
    "b, upper, n", [("B-1", "B_x_H-H", 2), ("B+1", "B_x_H+H", 4), ("B_1", "B_1_x_H", 3), ("2*B-1", "2*B_x_H-H", 5)]
)
def test_a_loop_over_all_problems_is_accepted_and_goes_over_them(b, upper, n):
    module = parse(TEXT.format(b=b, upper=upper))
    assert module_text(parse(module_text(module))) == module_text(module)
    x, y, z = torch.randn(n, 2, 4), torch.randn(3, 4), torch.randn(3)
    torch.testing.assert_close(Interpreter(module).call("t", [x, y, z])[0], x)
    for name, made in (("native", module), ("cpu", Pipeline.parse("plan-memory").run(module).module)):
        torch.testing.assert_close(backends.get(name).compile(made.funcs["t"])[0](x, y, z)[0], x)


def test_products_of_three_are_declared_and_have_sizes():
    text = """aatc 2

dims {A in [1, inf], B in [1, inf], C in [1, inf], A_x_B_x_C in [%s, inf]}

geo.func @main(%%x: f32[A,B,C]) {
  %%y = torch.call(%%x) {target = "aten.reshape.default", args = [#0, [dim(A_x_B_x_C)]]} : f32[A_x_B_x_C]
  geo.return(%%y)
}
"""
    assert run(parse(text % 0), torch.ones(2, 3, 4)).shape == (24,)
    with pytest.raises(VerifyError, match="its range does not hold"):
        parse(text % 2)
    with pytest.raises(VerifyError, match="C is not declared"):
        parse((text % 0).replace(" C in [1, inf],", ""))


def test_an_argument_of_another_size_than_the_product_is_refused():
    """Code walks A times B entries of it."""
    text = """aatc 2

dims {A in [1, inf], B in [1, inf], A_x_B in [0, inf]}

tile.func @f(%flat: f32[A_x_B], %x: f32[A,B]) {
  %o = tile.alloc() : f32[A_x_B]
  tile.for() {axis = "i", upper = dim(A_x_B), step = 8, kind = "par"} (%i: index) {
    %t = tile.load(%flat, %i) {axes = "i"} : tile<f32[1,8,1]>
    tile.store(%t, %o, %i) {axes = "i", add = false}
    tile.yield()
  }
  tile.return(%o)
}
"""
    module = parse(text)
    native = backends.get("native").compile(module.funcs["f"])[0]
    x = torch.randn(3, 5)
    torch.testing.assert_close(native(x.reshape(15), x)[0], x.reshape(15))
    for call in (native, lambda *given: Interpreter(module).call("f", list(given))):
        with pytest.raises(ShapeError):
            call(torch.randn(7), x)
