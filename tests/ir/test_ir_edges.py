"""Edges of the IR where a small slip changes a number or lets an unsound module through."""
# ruff: noqa: E501  (IR texts keep their lines)

import itertools

import numpy as np
import pytest
import torch

import aatc
from aatc import passes
from aatc.backends.cpu.masks import hull
from aatc.ir import Dim
from aatc.ir.core import Func
from aatc.ir.errors import AatcError, ScoreError, ShapeError, VerifyError
from aatc.ir.interpreter import run
from aatc.ir.normalizers.base import MASS, WEIGHT, Statistic
from aatc.ir.normalizers.softmax import TOP, Softmax
from aatc.ir.parser import parse
from aatc.ir.score.derivative import gradients
from aatc.ir.score.evaluate import evaluate, lookup
from aatc.ir.score.expr import add, call, const, div, index, mul, neg, param, sub
from aatc.ir.score.functions import FUNCTIONS
from aatc.ir.score.program import Program
from aatc.ir.score.random import row_keys
from aatc.ir.specialize import hoist_loads, keep_results
from aatc.ir.tilemap import EMPTY, FULL, PARTIAL, TileMap
from tests.ir.samples import TILE

F64 = torch.float64
X, Y = param("x", "bhi"), param("y", "bhi")


def slopes(word: str, x: float, y: float | None = None) -> list[float]:
    """Derivatives of a word at a point, by its arguments."""
    leaves = [X] if y is None else [X, Y]
    found = gradients([(call(word, *leaves), const(1.0))], leaves)
    env = {"x": torch.full((1, 1, 1), x, dtype=F64), "y": torch.full((1, 1, 1), y or 0.0, dtype=F64)}
    return [float(evaluate(found[e], env, (1, 1, 1, 1), dtype=F64)) for e in leaves]


# --- derivatives -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("word", ["maximum", "minimum"])
@pytest.mark.parametrize("tie", [0.0, -3.0, 2.5])
def test_at_a_tie_the_first_argument_takes_the_whole_gradient(word, tie):
    assert slopes(word, tie, tie) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("word", "at"),
    [
        ("acosh", 1.0),
        ("expacosh", 1.0),
        ("acos", 1.0),
        ("acos", -1.0),
        ("asinsqrt", 0.0),
        ("asinsqrt", 1.0),
        ("sqrt", 0.0),
        ("relu", 0.0),
        ("abs", 0.0),
    ],
)
def test_where_a_word_is_clamped_or_kinks_its_derivative_is_zero(word, at):
    assert slopes(word, at) == [0.0]


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("base", [0.0, 0.5, 2.0])
def test_slopes_of_powers_are_numbers_also_where_base_and_power_are_zero(base, power):
    x, y = (torch.tensor(value, dtype=F64, requires_grad=True) for value in (base, power))
    want = [float(g) for g in torch.autograd.grad(x**y, [x, y])]
    assert slopes("power", base, power) == pytest.approx(want, rel=1e-14) and not np.isnan(want).any()


# --- random numbers ------------------------------------------------------------------------------------------------
def test_every_bit_of_a_seed_counts():
    zero = torch.zeros((), dtype=torch.int64)
    at = torch.arange(8)

    def keys(seed: int):
        return row_keys(torch.tensor(seed, dtype=torch.int64), zero, zero, at).tolist()

    seeds = [0, *(1 << bit for bit in range(63)), -(2**63)]
    assert len({tuple(keys(s)) for s in seeds}) == 65


# --- tables ----------------------------------------------------------------------------------------------------------
def test_positions_are_rounded_to_the_nearest_entry_halves_to_the_even_one_and_clamped():
    table = torch.arange(5.0, dtype=F64)
    at = torch.tensor([-3.0, -0.4, 0.49, 0.5, 0.51, 1.5, 2.5, 3.7, 99.0], dtype=F64).reshape(1, 1, 1, -1, 1)
    assert lookup(table, "t", [at], (1, 1, 1, 9)).flatten().tolist() == [0, 0, 0, 0, 1, 2, 2, 4, 4]


# --- bounds --------------------------------------------------------------------------------------------------------
INTERVALS = [(a, b) for a, b in itertools.product((-1.0, 0.0, 1.0, 2.0), repeat=2) if a <= b]


@pytest.mark.parametrize("word", ["lt", "le", "gt", "ge", "eq", "ne", "add", "sub", "mul", "div", "maximum", "minimum"])
def test_bounds_hold_where_intervals_touch(word):
    f = FUNCTIONS[word]
    grid = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0], dtype=F64)
    for a, b in itertools.product(INTERVALS, repeat=2):
        x, y = (grid[(grid >= low) & (grid <= high)] for low, high in (a, b))
        got = f.evaluate(x.reshape(-1, 1), y.reshape(1, -1)).double().numpy()
        low, high = (np.asarray(v, dtype=float) for v in f.bound(tuple(map(np.asarray, a)), tuple(map(np.asarray, b))))
        inside = np.isnan(got) if np.isinf(low) and np.isinf(high) else np.zeros_like(got, dtype=bool)
        assert (inside | ((got >= low) & (got <= high))).all(), (word, a, b, low, high)
        if f.result == "b" and len(x) > 1 and len(y) > 1:  # a truth that is decided is decided by its bounds
            assert (low == high) == (got.min() == got.max()) or word in ("eq", "ne")


@pytest.mark.parametrize("word", ["abs", "square", "sqrt", "reciprocal", "relu", "neg"])
def test_bounds_of_one_argument_hold_around_zero(word):
    f = FUNCTIONS[word]
    grid = torch.linspace(-1, 2, 13, dtype=F64)
    for a in INTERVALS:
        got = f.evaluate(grid[(grid >= a[0]) & (grid <= a[1])]).numpy()
        low, high = (np.asarray(v, dtype=float) for v in f.bound(tuple(map(np.asarray, a))))
        assert ((got >= low) & (got <= high)).all(), (word, a, low, high)


def test_a_dimension_with_a_negative_coefficient_is_largest_where_its_symbol_is_smallest():
    assert (Dim(10) - Dim.of("n") * 2).bounds({"n": (1, 3)}) == (4, 8)
    assert (Dim.of("m") - Dim.of("n")).bounds({"n": (1, 3), "m": (0, None)}) == (-3, None)


# --- folding and text ----------------------------------------------------------------------------------------------
def test_folding_constructors_mean_what_plain_calls_mean():
    x, y = param("x", "bhi"), param("y", "bhj")
    terms = [x, y, neg(x), neg(y), const(0.0), const(-2.0), mul(const(3.0), x), sub(x, y), neg(sub(y, x))]
    env = {"x": torch.tensor([[[1.5]]], dtype=F64), "y": torch.tensor([[[-0.7]]], dtype=F64)}

    def value(e):
        return float(evaluate(e, env, (1, 1, 1, 1), dtype=F64))

    for a, b in itertools.product(terms, repeat=2):
        for smart, word in ((add, "add"), (sub, "sub"), (mul, "mul")):
            assert value(smart(a, b)) == pytest.approx(value(call(word, a, b)), abs=1e-14), (word, a, b)
        if value(b):
            assert value(div(a, b)) == pytest.approx(value(call("div", a, b)), rel=1e-14), (a, b)
        assert value(neg(a)) == -value(a)


# --- tile maps -----------------------------------------------------------------------------------------------------
def test_a_run_of_full_tiles_with_a_hole_is_partial():
    for row, partial in (
        ([FULL, EMPTY, FULL], True), ([FULL, PARTIAL, FULL], True), ([EMPTY, FULL, FULL], False),
        ([FULL, FULL, FULL], False), ([FULL, FULL, PARTIAL], True), ([PARTIAL, FULL, EMPTY], True),
    ):  # fmt: skip
        tiles = TileMap(np.array([[row]], dtype=np.int8), 2, 4, 1, (2, 12))
        runs = [(first, last, kind == PARTIAL) for first, last, kind in tiles.runs()[0, 0].tolist() if kind]
        assert hull(runs)[2] is partial, row
        covered = np.zeros(12, dtype=int)
        for first, last, kind in runs:
            covered[first:last] = PARTIAL if kind else FULL
        assert covered.reshape(3, 4).tolist() == [[k] * 4 for k in row]


@pytest.mark.parametrize("body", [
    lambda b, h, i, j: j <= i, lambda b, h, i, j: j < i, lambda b, h, i, j: j >= i + 1, lambda b, h, i, j: j > i - 3,
    lambda b, h, i, j: call("eq", i + j, const(5)), lambda b, h, i, j: call("ne", i - j, const(2)), lambda b, h, i, j: (j <= 2) | (j >= 6),
])  # fmt: skip
def test_tiles_are_called_what_they_are_at_every_edge(body):
    mask = Program.of(body(*map(index, "bhij")))
    for n, m, rows, cols in itertools.product((5, 8), (7, 8), (1, 3, 4), (1, 2, 4)):
        keep = evaluate(mask.body, {}, (1, 1, n, m), dtype=F64)[0, 0, ..., 0].expand(n, m)
        kinds = TileMap.of(mask, [], (1, 1, n, m), rows, cols, 1).kinds[0]
        for r, c in itertools.product(range(kinds.shape[0]), range(kinds.shape[1])):
            tile = keep[r * rows : (r + 1) * rows, c * cols : (c + 1) * cols]
            assert kinds[r, c] != FULL or bool(tile.all())
            assert kinds[r, c] != EMPTY or not bool(tile.any())
            if mask.body.fn not in ("eq", "ne", "or"):  # one comparison of a sum is decided exactly
                assert kinds[r, c] == (FULL if tile.all() else PARTIAL if tile.any() else EMPTY)


@pytest.mark.parametrize("body", [
    lambda x: call("ge", call("abs", x), const(0.0)), lambda x: call("gt", call("maximum", x, const(2.0)), const(1.0)),
    lambda x: call("gt", call("square", x), const(-1.0)), lambda x: call("le", call("sin", x), const(2.0)),
    lambda x: call("or", call("lt", call("relu", x), const(0.0)), call("ge", call("relu", x), const(0.0))),
])  # fmt: skip
def test_what_holds_for_every_number_does_not_hold_for_nan(body):
    """Bounds decide such a comparison whatever the operand is, unless that may be NaN, which compares as false."""
    x = param("x", "bhij")
    mask = Program.of(body(x))
    value = torch.ones(1, 1, 4, 6, dtype=F64)
    value[0, 0, 1, 2] = torch.nan
    keep = evaluate(mask.body, {"x": value}, (1, 1, 4, 6), dtype=F64)[0, 0, ..., 0]
    assert not keep[1, 2] and keep.sum() == 23
    kinds = TileMap.of(mask, [value], (1, 1, 4, 6), 2, 3, 1).kinds[0]
    assert kinds[0, 0] == PARTIAL and kinds[1, 1] == FULL


@pytest.mark.parametrize("body", [
    lambda e, zero: call("le", mul(e, zero), const(1.0)), lambda e, zero: call("ge", mul(zero, e), const(-1.0)),
    lambda e, zero: call("lt", sub(e, e + zero), const(9.0)), lambda e, zero: call("ge", div(e, e + zero), const(0.0)),
    lambda e, zero: call("le", call("sin", e + zero), const(2.0)), lambda e, zero: call("ge", call("cos", e + zero), const(-2.0)),
    lambda e, zero: call("lt", call("remainder", e + zero, const(2.0)), const(5.0)),
])  # fmt: skip
def test_what_may_be_nan_of_infinity_is_decided_by_no_bounds(body):
    """inf * 0 is NaN, whatever the bounds of a product say: only the row of position 0 is open."""
    far, zero = call("exp", mul(const(1000.0), index("i"))), mul(const(0.0), index("j"))
    mask = Program.of(body(far, zero))
    keep = evaluate(mask.body, {}, (1, 1, 4, 6), dtype=F64)[0, 0, ..., 0].expand(4, 6)
    assert keep[0].all() and not keep[1:].any()
    kinds = TileMap.of(mask, [], (1, 1, 4, 6), 2, 3, 1).kinds[0]
    assert (kinds[0] == PARTIAL).all() and (kinds[1] != FULL).all()


# --- tile functions --------------------------------------------------------------------------------------------------
LOOP = """\
tile.func @main(%x: f64[2,4]) {
  %a = tile.token(%x) {program = fn(x: f[bi]) => x, axes = "bhi", sizes = [2, 1, 4, 1], flat = true} : f64[2,4]
  %out = tile.alloc() {fill = 0.0} : f64[2,4]
  tile.for() {axis = "g", upper = 2, step = 1, kind = "seq"} (%g: index) {
    tile.for() {axis = "i", upper = 4, step = 4, kind = "seq"} (%i: index) {
      tile.for() {axis = "c", upper = 3, step = 1, kind = "seq"} (%c: index) {
        %same = tile.load(%a, %g, %i) {axes = "gi"} : tile<f64[1,4,1]>
        %sum = tile.load(%out, %g, %i) {axes = "gi"} : tile<f64[1,4,1]>
        %new = tile.map(%sum, %same) {programs = [fn(s: f[bhi], x: f[bhi]) => s * 2.0 + x]} : tile<f64[1,4,1]>
        tile.store(%new, %out, %g, %i) {axes = "gi", add = false}
        tile.yield()
      }
      tile.yield()
    }
    tile.yield()
  }
  %o = tile.token(%out) {program = fn(o: f[bhi]) => o, axes = "bhi", sizes = [2, 1, 4, 1], flat = true} : f64[2,4]
  tile.return(%o)
}
"""


def test_loads_leave_a_loop_only_where_nothing_in_it_stores():
    module = parse(LOOP)
    x = torch.randn(2, 4, dtype=F64)
    torch.testing.assert_close(run(module, x), 7 * x)
    assert hoist_loads(module.entry) == 1
    torch.testing.assert_close(run(module.verify(), x), 7 * x)
    inner = [op for op in module.entry.body.walk() if op.name == "tile.for" and op.attrs["axis"] == "c"]
    assert [op.operands[0].name for op in inner[0].regions[0].ops if op.name == "tile.load"] == ["out"]


TWO = LOOP.replace("  %o = tile.token", "  %w = tile.alloc() {fill = 1.0} : f64[9,9]\n  %o = tile.token").replace(
    "tile.return(%o)", "tile.return(%w, %o)"
)


def test_what_only_a_dropped_result_needs_is_dropped_with_it():
    def kept(keep) -> Func:
        return keep_results(parse(TWO).entry, keep)

    names = [op.name for op in kept([True, False]).body.walk()]
    assert names == ["tile.alloc", "tile.return"]
    assert "tile.map" in [op.name for op in kept([False, True]).body.walk()]
    assert [op.attrs.get("fill") for op in kept([False, True]).body.walk() if op.name == "tile.alloc"] == [0.0]


@pytest.mark.parametrize(("old", "new", "message"), [
    ("%m1: tile<f64[1,8,1]>, %l1", "%m1: tile<f64[1,8,4]>, %l1", "takes"),
    ("(%j: index, %partial: bool", "(%j: bool, %partial: bool", "takes"),
    # a tile of the loop's body in the bytes of one that is read in it, but made outside
    ('%s = tile.dot(%at, %bt) {form = "nt", cpu.plan = [0]}', '%s = tile.dot(%at, %bt) {form = "nt", cpu.plan = [1152]}', "arena"),
    ("cpu.scratch = [2560, 1024]", "cpu.scratch = [2560, 0]", "arena"),
    ("cpu.scratch = [2560, 1024]", "cpu.scratch = [2560, 2176]", "arena"),
    ("cpu.scratch = [2560, 1024]", "cpu.scratch = [1088, 1024]", "arena"),
])  # fmt: skip
def test_regions_take_what_is_handed_in_and_keep_off_what_lives_outside(old, new, message):
    assert TILE.count(old) == 1
    with pytest.raises(VerifyError, match=message):
        parse(TILE.replace(old, new))


OUTER = TILE.replace(
    "      %m, %l, %acc = tile.sweep", '      %w = tile.fill(%g, %i) {value = 2.0, axes = "gi", cpu.plan = [2496]} : tile<f64[1,8,1]>\n      %m, %l, %acc = tile.sweep'
).replace("fn(l: f[bhi], m: f[bhi]) => m + log(l)]", "fn(l: f[bhi], m: f[bhi], w: f[bhi]) => m + log(l) + w]").replace("tile.map(%l, %m) {", "tile.map(%l, %m, %w) {")  # fmt: skip


def test_a_body_may_not_write_where_a_tile_waits_for_the_end_of_the_loop():
    assert OUTER.count("%w") == 2
    parse(OUTER)
    with pytest.raises(VerifyError, match="arena"):
        parse(OUTER.replace("cpu.plan = [2432]", "cpu.plan = [2496]"))


# --- modules ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 9])
def test_a_dimension_outside_its_range_is_refused_when_a_module_runs(size):
    module = parse("dims {N in [2, 8]}\n\ngeo.func @main(%x: f32[N]) {\n  geo.return(%x)\n}\n")
    assert run(module, torch.ones(8)).shape == (8,)
    with pytest.raises(ShapeError, match="outside"):
        run(module, torch.ones(size))


def test_a_constant_is_not_folded_into_another_dtype():
    text = """
geo.func @main() {
  %a = geo.constant() {values = [1, 2], type = type(i64[2])} : i64[2]
  %b = torch.call(%a) {target = "aten.mul.Tensor", args = [#0, 2]} : f32[2]
  geo.return(%b)
}
"""
    module = parse(text)
    after = passes.Pipeline.parse("canonicalize").run(module).module
    constants = [o for o in after.walk() if o.name == "geo.constant"]
    assert all(str(o.result.type) == str(o.attrs["type"]) for o in constants)
    for m in (module, after):  # what is not of the type that the text says is refused, before and after
        with pytest.raises(ShapeError, match="gives int64"):
            aatc.run(m)


def test_a_rewrite_that_is_nan_gets_no_certificate():
    from aatc.passes.certificate import certify

    x = param("x", "bhi")
    with pytest.raises(ScoreError, match="does not hold"):
        certify("r", "s", ("equal", x, call("log", neg(call("add", call("square", x), const(1.0))))))


@pytest.mark.parametrize(
    ("value", "dtype"), [("9223372036854775808", "i64"), ("3000000000", "i32"), ("inf", "i64"), ("1, 2", "f32")]
)
def test_constants_hold_what_their_type_does(value, dtype):
    text = f"""aatc 2

geo.func @main(%q: f32[2]) {{
  %c = geo.constant() {{values = [{value}], type = type({dtype}[])}} : {dtype}[]
  geo.return(%c)
}}
"""
    with pytest.raises(VerifyError, match="its values are no"):
        parse(text).verify()


def test_a_product_of_dimensions_without_a_bound_has_none():
    dims = "dims {{A in [1, inf], B in [1, inf], A_x_B in [1, {0}]}}"
    text = f"aatc 2\n\n{dims}\n\ngeo.func @main(%q: f64[A,B]) {{{{\n  geo.return(%q)\n}}}}\n"
    parse(text.format("inf")).verify()
    with pytest.raises(VerifyError, match="its range does not hold"):
        parse(text.format(6)).verify()


def test_rounds_that_add_into_one_row_of_a_pair_buffer_say_how():
    text = TILE.replace(
        "%lse_all = tile.alloc() : f64[2,N]\n",
        "%lse_all = tile.alloc() : f64[2,N]\n  %mean = tile.alloc() {fill = 0.0} : f64[2,1,M]\n",
    ).replace(
        "        tile.yield(%top",
        '        tile.store(%p, %mean, %g, %i, %j) {axes = "gij", add = true}\n        tile.yield(%top',
    )
    with pytest.raises(VerifyError, match=r"parallel|rounds"):
        parse(text).verify()


def test_a_normalizer_does_not_sum_what_is_still_growing():
    class Lie(Softmax):
        name = "lie"
        of_weights = (MASS, Statistic("e", of=mul(WEIGHT, TOP.next)))

    Softmax().check()
    with pytest.raises(AatcError):
        Lie().check()
