"""The reference interpreter: what modules compute, which arguments they take, what may be called."""
# ruff: noqa: E501  (IR texts keep their lines)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aatc.ir import reference
from aatc.ir.errors import BackendError, ShapeError, VerifyError
from aatc.ir.interpreter import ARITHMETIC, Interpreter, run, target_function
from aatc.ir.parser import parse
from aatc.ir.score.expr import call, param
from aatc.ir.score.program import Program
from tests.ir.samples import GEO, TILE

F64 = torch.float64


def hyperboloid(*shape: int) -> torch.Tensor:
    x = torch.randn(*shape, 3, dtype=F64)
    return torch.cat([(1 + (x * x).sum(-1, keepdim=True)).sqrt(), x], -1)


def one(op: str, *args: str, result: str = "f64[]") -> str:
    """A module of one `torch.call` over arguments of the given types."""
    params = ", ".join(f"%a{n}: {t}" for n, t in enumerate(args))
    operands = ", ".join(f"%a{n}" for n in range(len(args)))
    slots = ", ".join(f"#{n}" for n in range(len(args)))
    call = f'%y = torch.call({operands}) {{target = "{op}", args = [{slots}]}} : {result}'
    return f"geo.func @main({params}) {{\n  {call}\n  geo.return(%y)\n}}\n"


# --- values --------------------------------------------------------------------------------------------------
def test_the_four_stages_compute_the_formula():
    q, k, v, beta = (
        hyperboloid(1, 2, 5),
        hyperboloid(1, 2, 7),
        torch.randn(1, 2, 7, 4, dtype=F64),
        torch.rand(2, dtype=F64),
    )
    inner = -q[..., :1] @ k[..., :1].mT + q[..., 1:] @ k[..., 1:].mT
    s = -beta.reshape(2, 1, 1) * torch.acosh((-inner).clamp(min=1))
    s = s.masked_fill(torch.arange(7) > torch.arange(5).reshape(5, 1) + 3, float("-inf"))
    want = (s.softmax(-1) @ v.sin().square() + 1.0) * 0.5
    torch.testing.assert_close(run(parse(GEO), q, k, v, beta), want, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 20), st.integers(2, 35), st.integers(0, 99))
def test_tiles_compute_attention_at_every_ragged_size(n, m, seed):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 2, size, 4, dtype=F64, generator=g) for size in (n, m, m))
    keep = torch.ones(n, m, dtype=torch.bool).tril()
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=1.0)
    torch.testing.assert_close(run(parse(TILE), q, k, v), want, rtol=1e-12, atol=1e-12)


def test_several_results_come_as_a_tuple_and_one_alone():
    module = parse("geo.func @main(%x: f32[2], %n: int) {\n  geo.return(%x, %n)\n}\n")
    x = torch.ones(2)
    assert run(module, x, 3) == (x, 3)
    assert run(parse("geo.func @main(%x: f32[2]) {\n  geo.return(%x)\n}\n"), x) is x
    assert run(parse("geo.func @main() {\n  geo.return()\n}\n")) == ()


def test_the_entry_is_main_or_else_the_first_function():
    text = "geo.func @a(%n: int) {\n  geo.return(%n)\n}\n\ngeo.func @NAME(%n: int) {\n  geo.return(%n, %n)\n}\n"
    assert run(parse(text.replace("NAME", "main")), 1) == (1, 1)
    assert run(parse(text.replace("NAME", "b")), 1) == 1


def test_nested_arguments_constants_and_keywords_reach_the_operator():
    call = (
        '%y = torch.call(%x, %z) {target = "aten.cat.default", args = [[#0, #1, #0], 1]} : f64[2,9]\n'
        '  %w = torch.call(%y) {target = "aten.sum.dim_IntList", args = [#0, [1], true, torch.float32], kwargs = ["dtype"]} : f32[2,1]\n'
        '  %e = torch.call() {target = "aten.full.default", args = [[dim(N+1)], 2.5, torch.strided, device("cpu")], kwargs = ["layout", "device"]} : f32[N+1]'
    )
    text = (
        f"dims {{N in [1, 9]}}\n\ngeo.func @main(%x: f64[N,3], %z: f64[N,3]) {{\n  {call}\n  geo.return(%w, %e)\n}}\n"
    )
    x, z = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    w, e = run(parse(text), x, z)
    torch.testing.assert_close(w, torch.cat([x, z, x], 1).sum(1, keepdim=True).float())
    assert w.dtype == torch.float32 and e.tolist() == [2.5, 2.5, 2.5]


def test_operators_with_several_results_are_unpacked():
    text = (
        'geo.func @main(%x: f64[2,3]) {\n  %v, %i = torch.call(%x) {target = "aten.max.dim", args = [#0, 1]} : f64[2], i64[2]\n'
        '  %l = torch.call(%x) {target = "aten.split.Tensor", args = [#0, 1]} : list<f64[1,3]>\n'
        '  %last = torch.call(%l) {target = "operator.getitem", args = [#0, -1]} : f64[1,3]\n  geo.return(%v, %i, %last)\n}\n'
    )
    x = torch.randn(2, 3, dtype=F64)
    v, i, last = run(parse(text), x)
    assert torch.equal(v, x.amax(1)) and torch.equal(i, x.argmax(1)) and torch.equal(last, x[1:])


def test_sizes_can_be_computed_with():
    text = (
        'dims {N in [1, inf]}\n\ngeo.func @main(%x: f64[N]) {\n  %n = torch.call(%x) {target = "aten.sym_size.int", args = [#0, 0]} : int\n'
        '  %m = torch.call(%n) {target = "operator.floordiv", args = [#0, 2]} : int\n'
        '  %y = torch.call(%x, %m) {target = "aten.narrow.default", args = [#0, 0, 0, #1]} : opaque\n  geo.return(%y)\n}\n'
    )
    assert run(parse(text), torch.arange(7, dtype=F64)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("lse_alone", [True, False])
def test_a_number_per_query_gets_nothing_from_rows_without_keys(lse_alone):
    """The log-sum-exp of such a row is the constant -inf, whatever it gets added."""
    q, k, v = (param(name, axes) for name, axes in (("q", "bhid"), ("k", "bhjd"), ("v", "bhjd")))
    keep, row = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]]).bool(), call("dot", q, call("sin", q))
    m = param("m", "ij", "b")
    attention = reference.Attention(
        ("q", "k", "v", "m"),
        Program.of(q.dot(k), [q, k]),
        Program.of(v, [v]),
        Program.of(m, [m]),
        row=Program.of(row, [q]),
    )
    x, y, z = leaves = [torch.randn(2, 2, n, 3, dtype=F64, requires_grad=True) for n in (4, 3, 3)]
    env = {"q": x.detach(), "k": y.detach(), "v": z.detach(), "m": keep}
    o, lse = reference.attend(attention, env)
    probes = torch.zeros_like(o) if lse_alone else torch.randn_like(o), torch.randn_like(lse)
    found = reference.attend_backward(attention, env, o, lse, *probes)
    some = keep.any(-1)  # by hand, of the rows that see something
    s = (x[:, :, some] @ y.mT).masked_fill(~keep[some], float("-inf"))
    want = [s.softmax(-1) @ z, s.logsumexp(-1) + (x * x.sin()).sum(-1)[:, :, some]]
    torch.testing.assert_close([o[:, :, some], lse[:, :, some]], want)
    assert (o[:, :, ~some] == 0).all() and (lse[:, :, ~some] == float("-inf")).all()
    slopes = torch.autograd.grad(want, leaves, [p[:, :, some] for p in probes])
    torch.testing.assert_close([found[name] for name in "qkv"], list(slopes))


# --- dimensions ----------------------------------------------------------------------------------------------
SHAPES = "dims {N in [2, 9], M in [1, inf]}\n\ngeo.func @main(%x: f32[N,3], %y: f32[2*N+1,M], %z: f32[M+N]) {\n  geo.return(%x)\n}\n"


def test_affine_dimensions_are_solved_in_any_order():
    module = parse(SHAPES)
    run(module, torch.ones(4, 3), torch.ones(9, 5), torch.ones(9))
    late = parse(
        SHAPES.replace("%x: f32[N,3], %y: f32[2*N+1,M], %z: f32[M+N]", "%x: f32[M+N], %y: f32[2*N+1], %z: f32[M]")
    )
    run(late, torch.ones(9), torch.ones(9), torch.ones(5))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 2), (9, 5), (9,)), r"dimension 1 of argument 0 \(%x\) of @main must be 3, got 2"),
        (((4, 3), (8, 5), (9,)), r"dimension 0 of argument 1 \(%y\) of @main must be 2\*N\+1 = 9, got 8"),
        (((4, 3), (9, 5), (8,)), r"dimension 0 of argument 2 \(%z\) of @main must be M\+N = 9, got 8"),
        (((1, 3), (3, 5), (6,)), r"N = 1, which is outside \[2, 9\]"),
        (((4, 3), (9, 0), (4,)), r"M = 0, which is outside \[1, inf\]"),
        (((4,), (9, 5), (9,)), "must have 2 dimensions"),
        (((4, 3), (9, 5)), "takes 3 arguments, got 2"),
    ],
)
def test_shapes_that_do_not_fit_name_the_dimension(shapes, message):
    with pytest.raises(ShapeError, match=message):
        run(parse(SHAPES), *map(torch.ones, shapes))


def test_arguments_must_be_tensors_where_tensors_are_declared():
    with pytest.raises(ShapeError, match="must be a tensor"):
        run(parse(SHAPES), 1, 2, 3)


def test_dimensions_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ShapeError, match="told apart"):
        run(
            parse("dims {N in [1, inf], M in [1, inf]}\n\ngeo.func @main(%x: f32[M+N]) {\n  geo.return(%x)\n}\n"),
            torch.ones(3),
        )
    with pytest.raises(ShapeError, match="no N makes that 4"):
        run(
            parse("dims {N in [1, inf]}\n\ngeo.func @main(%x: f32[2*N+1]) {\n  geo.return(%x)\n}\n"),
            torch.ones(4),
        )


def test_sizes_are_known_inside_called_functions():
    text = (
        "dims {B in [1, inf], H in [1, inf], B_x_H in [0, inf], N in [1, inf]}\n\ngeo.func @main(%x: f64[B,H,N]) {\n"
        "  %y = geo.checkpoint(%x) {body = @inner} : f64[B_x_H,N]\n  geo.return(%y)\n}\n\ngeo.func @inner(%x: f64[B,H,N]) {\n"
        '  %y = torch.call(%x) {target = "aten.reshape.default", args = [#0, [dim(B_x_H), dim(N)]]} : f64[B_x_H,N]\n  geo.return(%y)\n}\n'
    )
    assert run(parse(text), torch.ones(2, 3, 4, dtype=F64)).shape == (6, 4)
    with pytest.raises(ShapeError, match="dimension Q has no size"):
        run(
            parse(text.replace("N in [1, inf]", "N in [1, inf], Q in [1, 2]").replace("dim(N)]", "dim(Q)]")),
            torch.ones(2, 3, 4),
        )


# --- what may be called --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "aten", "aten.add", "aten.add.Tensor.x", "aten.nothing.default", "aten.add.nothing", "operator.pow",
        "operator.attrgetter", "operator.__class__", "aten.__class__.mro", "aten.add.__class__", "prims.add.default", "torch.load",
        "aten.from_file.default", "aten.save.default", "aten.manual_seed.default", "aten.set_grad_enabled.default", "aten. add.Tensor",
        "aten.add.Tensor\n", "", ".", "__import__('os').system",
    ],
)  # fmt: skip
def test_nothing_but_operators_on_tensors_can_be_called(target):
    with pytest.raises(VerifyError):
        target_function(target)
    module = parse(one("X", "f64[2]"))
    (call, _) = module.entry.body.ops
    call.attrs["target"] = target
    with pytest.raises(VerifyError):
        run(module, torch.ones(2))


@pytest.mark.parametrize(
    "target",
    [
        "aten.linear.default",
        "aten.sym_size.int",
        "aten.add_.Tensor",
        "aten.einsum.default",
        "aten._assert_scalar.default",
    ],
)
def test_operators_on_tensors_can_be_called(target):
    assert isinstance(target_function(target), torch._ops.OpOverload)


@given(
    st.sampled_from(sorted(set(ARITHMETIC) - {"getitem", "neg"})),
    *[st.one_of(st.integers(-50, 50), st.floats(-9, 9))] * 2,
)
def test_arithmetic_is_pythons(name, x, y):
    module = parse(one(f"operator.{name}", "float", "float", result="float"))
    try:
        want = ARITHMETIC[name](x, y)
    except ZeroDivisionError:
        with pytest.raises(VerifyError, match=name):
            run(module, x, y)
    else:
        got = run(module, x, y)
        assert got == want and type(got) is type(want)


def test_arithmetic_takes_numbers_only_and_stays_within_64_bits():
    for name, args in (
        ("mul", ("ab", 3)),
        ("add", ([1], [2])),
        ("mul", (2**62, 4)),
        ("getitem", ({"a": 1}, "a")),
        ("getitem", ([1], 5)),
        ("neg", ("a",)),
    ):
        module = parse(one(f"operator.{name}", *["opaque"] * len(args), result="opaque"))
        with pytest.raises(VerifyError):
            run(module, *args)


def test_strings_of_a_text_are_handed_over_as_strings():
    text = one("aten.div.Tensor_mode", "f64[]", "f64[]").replace(
        "args = [#0, #1]", 'args = [#0, #1, "floor"], kwargs = ["rounding_mode"]'
    )
    assert run(parse(text), torch.tensor(7.0), torch.tensor(2.0)) == 3


@pytest.mark.parametrize("said", ["f32[5]", "f32[4,1]", "f32[]", "i64[4]", "bool[4]", "f32[N+1]"])
def test_results_that_are_not_what_the_text_says_are_refused(said):
    """The text of a program is data: nothing behind an operator may trust in a type that is none."""
    text = one("aten.mul.Tensor", "f32[N]", "f32[N]", result=said)
    module = parse(f"dims {{N in [0, inf]}}\n{text}")
    with pytest.raises(ShapeError, match=r"aten.mul.Tensor gives float32\[4\], not .* as %y"):
        run(module, torch.ones(4), torch.ones(4))
    good = parse(f"dims {{N in [0, inf]}}\n{one('aten.mul.Tensor', 'f32[N]', 'f32[N]', result='f32[N]')}")
    assert run(good, torch.ones(4, dtype=F64), torch.ones(4, dtype=F64)).dtype == F64  # more digits are welcome


def test_what_an_operator_raises_is_typed():
    text = '%y = torch.call(%x) {target = "aten.as_strided.default", args = [#0, [1000], [1]]} : f32[1000]'
    with pytest.raises(BackendError, match=r"RuntimeError(.|\n)*as_strided"):
        run(parse(f"geo.func @main(%x: f32[4]) {{\n  {text}\n  geo.return(%y)\n}}\n"), torch.ones(4))


def test_a_function_that_is_not_there_is_an_error():
    with pytest.raises(VerifyError, match="no function @nowhere"):
        Interpreter(parse(GEO)).call("nowhere", [])


def test_values_are_forgotten_between_calls_and_errors():
    interp = Interpreter(parse(SHAPES))
    with pytest.raises(ShapeError):
        interp.call("main", [torch.ones(1, 1)] * 3)
    interp.call("main", [torch.ones(4, 3), torch.ones(9, 5), torch.ones(9)])
    interp.call("main", [torch.ones(5, 3), torch.ones(11, 5), torch.ones(10)])
    assert interp.scopes == [] and interp.sizes == {}
