"""The score language against torch: derivatives, bounds, and its text form."""

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.ir.parser import parse_program
from aatc.ir.score import FUNCTIONS, Program, call, const, gradients, param, params, substitute
from aatc.ir.score.derivative import RULES
from aatc.ir.score.evaluate import evaluate, sum_to_axes
from aatc.ir.score.expr import _interned
from aatc.ir.tilemap import bounds
from tests.ir.strategies import SIZES, environment, expressions, programs, smooth_expressions

F64 = torch.float64


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    scale = 1.0 + float(want.abs().max())
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11 * scale)


def check_gradients(body, seed: int) -> None:
    leaves = [p for p in params(body) if p.dtype == "f"]
    env = environment([body], seed)
    for p in leaves:
        env[p.name].requires_grad_()
    value = evaluate(body, env, SIZES, dtype=F64)
    full = value.expand(*SIZES, value.shape[-1])
    weight = torch.randn(full.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    wants = torch.autograd.grad((full * weight).sum(), [env[p.name] for p in leaves], allow_unused=True)
    seedling = param("weight", "bhijd" if body.rank else "bhij")
    found = gradients([(body, seedling)], leaves)
    plain = {n: t.detach() for n, t in env.items()} | {"weight": weight if body.rank else weight[..., 0]}
    for p, want in zip(leaves, wants, strict=True):
        shape = tuple(plain[p.name].shape)
        if p not in found:
            got = torch.zeros(shape, dtype=F64)
        else:
            g = evaluate(found[p], plain, SIZES, dtype=F64)
            got = sum_to_axes(g.expand(*SIZES, *g.shape[4:]), p, shape)
        assert_close(got, torch.zeros(shape, dtype=F64) if want is None else want)


@given(smooth_expressions(), st.integers(0, 9))
def test_derivatives_of_numbers_agree_with_autograd(body, seed):
    check_gradients(body, seed)


@given(smooth_expressions(rank=1), st.integers(0, 9))
def test_derivatives_of_vectors_agree_with_autograd(body, seed):
    check_gradients(body, seed)


def test_a_wrong_derivative_would_be_noticed(monkeypatch):
    x = call("dot", param("q", "bhid"), param("k", "bhjd"))
    check_gradients(call("sin", x), 0)
    monkeypatch.setitem(RULES, "sin", lambda e, g: (call("mul", g, call("sin", e.args[0])),))
    with pytest.raises(AssertionError):
        check_gradients(call("sin", x), 0)


def test_every_word_has_a_derivative_or_needs_none():
    without = {n for n, f in FUNCTIONS.items() if n not in RULES and f.slopes is None and f.result == "f"}
    # it comes out of first derivatives only
    assert without == {"rotate_angle"}


# --- bounds ------------------------------------------------------------------------------------------------
BOUNDED = sorted(
    n for n, f in FUNCTIONS.items() if f.kind == "pointwise" and f.bound is not None and n != "pair_uniform"
)
TRUTHS = {"and": (0, 1), "or": (0, 1), "not": (0,), "where": (0,)}  # arguments that are truth values
ends = st.one_of(st.floats(-30, 30), st.sampled_from([0.0, 1.0, -1.0, 2.0, -0.5, 1e-9]))


@pytest.mark.parametrize("name", BOUNDED)
@given(data=st.data())
def test_bounds_hold_at_every_sampled_point(name, data):
    f = FUNCTIONS[name]
    attrs = (data.draw(st.sampled_from([-2.0, -1.0, 0.5, 1.0, 2.0, 3.0, 2.5])),) if name == "pow" else ()
    intervals, points = [], []
    for n in range(f.arity):
        truth = n in TRUTHS.get(name, ())
        low, high = sorted((data.draw(ends), data.draw(ends)))
        if truth:
            low, high = data.draw(st.sampled_from([(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]))
        t = torch.tensor([0.0, 1.0, *data.draw(st.lists(st.floats(0, 1), min_size=4, max_size=4))], dtype=F64)
        inside = (low + t * (high - low)).clamp(low, high)
        inside = torch.where(t == 1, high, inside)
        order = torch.tensor(data.draw(st.permutations(range(6))))
        inside = inside[order]
        points.append(inside.round().bool() if truth else inside)
        intervals.append((np.asarray(low), np.asarray(high)))
    low, high = (np.asarray(x, dtype=float) for x in f.bound(*intervals, *attrs))
    got = f.evaluate(*points, *attrs).double()
    if not (np.isinf(low) and np.isinf(high)):
        assert not got.isnan().any(), f"{name} is NaN inside {intervals}, and its bounds {low}, {high} deny it"
    finite = got[~got.isnan()].numpy()
    slack = 1e-12 * (1 + np.where(np.isfinite(finite), np.abs(finite), 0))
    assert (finite >= low - slack).all() and (finite <= high + slack).all(), (intervals, low, high, got)


@given(expressions(dtype="b", depth=4), st.integers(0, 5))
def test_a_tile_is_called_full_or_empty_only_if_it_is(body, seed):
    mask = Program.of(body)
    sizes = (2, 2, 5, 7)
    env = environment([body], seed, sizes)
    if seed % 2 and "bias" in env:
        env["bias"][0, 0, 1, 2] = torch.nan
    keep = evaluate(body, env, sizes, dtype=F64)[..., 0].expand(sizes).numpy()
    low, high = bounds(mask, [env[p.name] for p in mask.params], sizes, 2, 3)
    low, high = (np.broadcast_to(x, (2, 2, 3, 3)) for x in (low, high))
    for r in range(3):
        for c in range(3):
            tile = keep[:, :, 2 * r : 2 * r + 2, 3 * c : 3 * c + 3]
            assert tile[low[:, :, r, c] == 1].all()
            assert not tile[high[:, :, r, c] == 0].any()


@pytest.mark.parametrize("where", ["bhij", "bhi", "j"])
def test_a_nan_among_captures_leaves_its_tile_undecided(where):
    x = param("x", where)
    value = torch.zeros([dict(zip("bhij", (1, 1, 4, 4), strict=True))[c] for c in where])
    value.view(-1)[0] = torch.nan
    low, high = bounds(Program.of(call("lt", x, const(1.0))), [value], (1, 1, 4, 4), 2, 2)
    assert (low[..., 0, 0], high[..., 0, 0]) == (0, 1)
    assert (low[..., -1, -1], high[..., -1, -1]) == (1, 1)


# --- text --------------------------------------------------------------------------------------------------
@given(st.one_of(programs(), programs(rank=1), programs(rank=2, depth=3), programs(dtype="b"), programs(dtype="i")))
def test_programs_read_back_as_they_were(program):
    text = str(program)
    again = parse_program(text)
    assert again == program and again.body is program.body
    assert parse_program(f"fn{text}") == program


@given(programs(depth=3))
def test_every_program_can_be_evaluated(program):
    value = evaluate(program.body, environment([program.body]), SIZES, dtype=F64)
    torch.broadcast_to(value, (*SIZES, 1))


@pytest.mark.parametrize(
    "body",
    [
        call("neg", const(0.5)),
        const(-0.5),
        const(-0.0),
        call("neg", const(-0.5)),
        const(-3),
        const(3),
        const(3.0),
        const(True),
        const(float("inf")),
        const(float("-inf")),
        const(float("nan")),
        const(1e16),
        const(1e-300),
        call("sub", const(1.0), const(-2.0)),
        call("mul", const(-1.0), call("neg", param("x", "h"))),
        call("sub", param("x", "h"), call("sub", param("x", "h"), const(1))),
        call("div", param("x", "h"), call("mul", param("x", "h"), param("y", "h"))),
        call("not", call("lt", call("neg", param("x", "h")), const(-1.0))),
        call("and", call("eq", call("lt", param("x", "h"), param("y", "h")), const(True)), const(False)),
        call("column_key"),
        call("pow", param("x", "h"), attrs=(float("-inf"),)),
        call("item", param("v", "bhjd"), attrs=(-1,)),
    ],
    ids=str,
)
def test_hard_spellings_read_back(body):
    program = Program((param("x", "h"), param("y", "h"), param("v", "bhjd")), body)
    assert parse_program(str(program)).body is body


def test_a_let_takes_no_name_of_a_parameter():
    x = param("x", "bhij")
    shared = call("exp", x)
    program = Program((x, param("t0", "h")), call("mul", shared, shared))
    assert parse_program(str(program)) == program


def test_shared_nodes_keep_the_text_linear():
    x = param("x", "bhij")
    e = x
    for _ in range(60):
        e = call("mul", e, call("sin", e))
    text = str(Program((x,), e))
    assert len(text) < 60 * 40
    assert parse_program(text).body is e


def test_deep_nesting_is_split_by_lets_and_reads_back():
    x = param("x", "bhij")
    e = x
    for _ in range(400):
        e = call("exp", call("neg", e))
    assert parse_program(str(Program((x,), e))).body is e


def test_numbers_of_numpy_are_ordinary_constants():
    assert const(np.float64(0.5)) is const(0.5)


@pytest.mark.parametrize("word", ["add", "and", "exp", "where"])
def test_a_chain_of_thousands_of_words_prints_parses_and_differentiates(word):
    x, y = param("x", "bhij"), param("y", "h")
    e = call("lt", x, y) if word == "and" else x
    for n in range(4000):
        c = call("lt", x, const(float(n % 7)))
        if word == "exp":
            e = call("exp", call("neg", e))
        else:
            e = call("where", c, e, y) if word == "where" else call(word, e, c if word == "and" else call("sin", x))
    assert parse_program(str(Program((x, y), e))).body is e
    assert repr(e)
    assert params(substitute(e, {x: param("z", "bhij")}))[0].name in "zy"
    if word != "and":
        assert x in gradients([(e, const(1.0))], [x])


def test_expressions_that_nobody_holds_are_forgotten():
    x = param("x", "bhij")
    gc.collect()
    before = len(_interned)
    for n in range(100_000):
        call("mul", const(n + 0.5), x)
    gc.collect()
    assert len(_interned) <= before + 10
    kept = call("mul", const(0.5), x)
    assert call("mul", const(0.5), x) is kept
