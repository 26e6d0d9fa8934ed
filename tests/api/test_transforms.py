"""Transforms of torch around `aatc.attend`, eager and compiled: right, or a typed error. The oracle is written out in
plain torch."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import aatc
from aatc import masks, metrics
from aatc.errors import UnsupportedError


def eager(q, k, v, w, b):
    bias = b.unsqueeze(-2).expand(4, 5, 6)
    return aatc.attend(q, k, v, metric=metrics.Euclidean(), scale=w, bias=bias, mask=masks.causal(2))


def plain(q, k, v, w, b):
    distance = (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)
    score = -w[:, None, None] * distance + b[:, None, :]
    score = score.masked_fill(~torch.ones(5, 6, dtype=torch.bool).tril(2), float("-inf"))
    return score.softmax(-1) @ v


def operands(*lead: int) -> list[torch.Tensor]:
    shapes = ((2, 4, 5, 3), (2, 4, 6, 3), (2, 4, 6, 3), (4,), (4, 6))
    return [torch.randn(*lead, *s, dtype=torch.float64) for s in shapes]


def loss(f):
    return lambda *inputs: f(*inputs).sin().sum()


def dual(f, inputs):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, x.cos()) for x in inputs]
        return forward_ad.unpack_dual(f(*duals)).tangent


def twice(f, inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    first = torch.autograd.grad(loss(f)(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)


ALL = (0, 1, 2, 3, 4)
TRANSFORMS = {
    "jvp": lambda f, x: torch.func.jvp(f, tuple(x), tuple(t.cos() for t in x)),
    "one-tangent": lambda f, x: torch.func.jvp(lambda w: f(*x[:3], w, x[4]), (x[3],), (x[3].cos(),)),
    "dual": dual,
    "grad": lambda f, x: torch.func.grad(loss(f), argnums=ALL)(*x),
    "vjp": lambda f, x: torch.func.vjp(f, *x)[1](x[0].cos()),
    "jacrev": lambda f, x: torch.func.jacrev(loss(f), argnums=ALL)(*x),
    "jacfwd": lambda f, x: torch.func.jacfwd(loss(f), argnums=(3, 4))(*x),
    "hessian": lambda f, x: torch.func.hessian(loss(f), argnums=(3, 4))(*x),
    "forward-over-forward": lambda f, x: torch.func.jvp(
        lambda w: torch.func.jvp(lambda u: f(*x[:3], u, x[4]), (w,), (w.cos(),))[1], (x[3],), (x[3],)
    ),
    "per-sample-gradients": lambda f, x: torch.func.vmap(torch.func.grad(loss(f), argnums=(0, 3)))(
        *(torch.stack([t, t + 1, -t]) for t in x)
    ),
    "vmap": lambda f, x: torch.vmap(f, in_dims=(1, 0, None, 0, None))(
        torch.stack([x[0], -x[0]], 1), torch.stack([x[1], -x[1]]), x[2], torch.stack([x[3], -x[3]]), x[4]
    ),
    "vmap-twice": lambda f, x: torch.vmap(torch.vmap(lambda q: f(q, *x[1:])))(
        torch.stack([x[0], -x[0]] * 2).unflatten(0, (2, 2))),
    "grad-of-vmap": lambda f, x: torch.func.grad(lambda w: loss(torch.vmap(lambda q: f(q, *x[1:3], w, x[4])))(
        torch.stack([x[0], -x[0]])))(x[3]),
    "double-backward": twice,
    "functional-jvp": lambda f, x: torch.autograd.functional.jvp(f, tuple(x), tuple(t.cos() for t in x)),
    "functional-hvp": lambda f, x: torch.autograd.functional.hvp(loss(f), tuple(x), tuple(t.cos() for t in x)),
    "functional-jacobian": lambda f, x: torch.autograd.functional.jacobian(
        lambda w: f(*x[:3], w, x[4])[0, 0], x[3], vectorize=True),
    "functional-hessian-forward": lambda f, x: torch.autograd.functional.hessian(
        lambda w: loss(f)(*x[:3], w, x[4]), x[3], vectorize=True, outer_jacobian_strategy="forward-mode"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_of_eager_attention_equals_that_of_the_formula(name):
    x = operands()
    torch.testing.assert_close(TRANSFORMS[name](eager, x), TRANSFORMS[name](plain, x), rtol=1e-9, atol=1e-9)


#: Those that differentiate the compiled kernel's own gradient.
_SECOND = ("double-backward", "functional-jvp", "functional-hvp")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_of_a_compiled_function_is_right_or_a_typed_error(name):
    x = operands()
    compiled = aatc.compile(eager)
    if name in _SECOND:
        with pytest.raises(UnsupportedError, match="second derivatives"):
            TRANSFORMS[name](compiled, x)
        return
    torch.testing.assert_close(TRANSFORMS[name](compiled, x), TRANSFORMS[name](plain, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_within_a_compiled_function_is_right(name):
    x = operands()
    compiled = aatc.compile(lambda *inputs: TRANSFORMS[name](eager, inputs))
    if name in _SECOND:
        with pytest.raises(UnsupportedError, match="second derivatives"):
            compiled(*x)
        return
    torch.testing.assert_close(compiled(*x), TRANSFORMS[name](plain, x), rtol=1e-9, atol=1e-9)


def test_gradients_of_gradients_pass_torchs_own_check():
    q, k, v = (torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    c = torch.full((2,), 0.7, dtype=torch.float64, requires_grad=True)

    def f(q, k, v, c):
        return aatc.attend(q, k, v, metric=metrics.LorentzDistance(c, lift=True), return_lse=True)

    assert torch.autograd.gradcheck(f, (q, k, v, c), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, (q, k, v, c), check_fwd_over_rev=True)


@pytest.mark.parametrize("metric", [metrics.Poincare(), metrics.LorentzDistance(lift=True), metrics.Cosine()])
def test_coincident_points_have_finite_derivatives_in_every_direction(metric):
    q = torch.randn(1, 1, 4, 3, dtype=torch.float64) / 5

    def f(q, k):
        return aatc.attend(q, k, k, metric=metric).sin().sum()

    forward = torch.func.jacfwd(f)(q, q)
    torch.testing.assert_close(forward, torch.autograd.functional.jacobian(lambda x: f(x, q), q))
    assert torch.func.hessian(f)(q, q).isfinite().all()


def test_rows_without_keys_and_keys_that_are_not_finite_keep_their_place():
    q, k, v = (torch.randn(1, 2, n, 3, dtype=torch.float64) for n in (4, 5, 5))
    k[:, :, 3] = float("nan")
    keep = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)

    def f(v):
        return aatc.attend(q, k, v, metric=metrics.Euclidean(), mask=keep)

    tangent = torch.func.jvp(f, (v,), (torch.ones_like(v),))[1]
    want = torch.tensor([1.0, 0.0, 1.0, float("nan")], dtype=torch.float64).view(1, 1, 4, 1).expand(1, 2, 4, 3)
    torch.testing.assert_close(tangent, want, equal_nan=True)


def test_numbers_that_are_not_finite_under_the_mask_spoil_no_derivative():
    q, k, v = (torch.randn(1, 2, n, 3, dtype=torch.float64) for n in (4, 5, 5))
    bias = torch.randn(2, 4, 5, dtype=torch.float64)
    keep = torch.rand(4, 5) > 0.4
    spoiled = bias.masked_fill(~keep, float("nan"))

    def f(q, bias):
        return aatc.attend(q, k, v, metric=metrics.Euclidean(), bias=bias, mask=keep).sin().sum()

    for transform in (torch.func.grad(f), torch.func.hessian(f), lambda q, b: torch.func.jvp(f, (q, b), (q, bias))[1]):
        torch.testing.assert_close(transform(q, spoiled), transform(q, bias))


def test_an_empty_vmap_gives_an_empty_result():
    try:
        torch.vmap(torch.sin)(torch.randn(0, 2))
    except Exception:
        pytest.skip("this torch maps nothing over nothing")
    _, *rest = operands()
    q = torch.randn(0, 2, 4, 5, 3, dtype=torch.float64)
    assert torch.vmap(lambda q: eager(q, *rest))(q).shape == (0, 2, 4, 5, 3)


def variants():
    return pytest.mark.parametrize("f", [eager, aatc.compile(eager)], ids=["eager", "compiled"])


@variants()
def test_retained_graphs_checkpoints_and_hooks_give_the_same_gradients(f):
    x = operands()
    want = torch.func.grad(loss(plain), argnums=ALL)(*x)

    def check(run, times=1):
        leaves = [t.clone().requires_grad_() for t in x]
        run(leaves)
        torch.testing.assert_close([t.grad / times for t in leaves], list(want), rtol=1e-9, atol=1e-9)

    def retained(leaves):
        out = loss(f)(*leaves)
        out.backward(retain_graph=True)
        out.backward()

    def anomaly(leaves):
        with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
            loss(f)(*leaves).backward()

    def hooked(leaves):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()):
            out = loss(f)(*leaves)
        out.backward()

    check(retained, 2)
    check(lambda leaves: checkpoint(loss(f), *leaves, use_reentrant=False).backward())
    check(lambda leaves: checkpoint(loss(f), *leaves, use_reentrant=True).backward())
    check(hooked)
    check(anomaly)


@variants()
@pytest.mark.parametrize("which", range(5))
def test_an_operand_changed_before_the_backward_is_torchs_error(f, which):
    leaves = [t.requires_grad_() for t in operands()]
    used = [t * 1 for t in leaves]
    out = loss(f)(*used)
    with torch.no_grad():
        used[which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@variants()
def test_modes_and_what_needs_gradients_may_change_between_calls(f):
    x = operands()
    want = plain(*x)
    for n in range(5):
        leaf = x[n].clone().requires_grad_()
        given = [leaf if m == n else t for m, t in enumerate(x)]
        (grad,) = torch.autograd.grad(loss(f)(*given), leaf)
        torch.testing.assert_close(grad, torch.func.grad(loss(plain), argnums=n)(*x), rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            assert not f(*given).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(f(*x), want)
    torch.testing.assert_close(f(*x), want)


# --- operands without influence ------------------------------------------------------------------------------
@aatc.metric(spare="h")
def inert(q, k, spare):
    return q @ k


def biased(b, q):
    return aatc.attend(q, q, q, metric=metrics.DotProduct(), bias=b)


@pytest.mark.parametrize("only", [True, False])
@pytest.mark.parametrize(
    ("f", "shape"),
    [
        (biased, (2, 5, 1)),
        (biased, (5, 1)),
        (biased, (1, 2, 1, 1)),
        (lambda w, q: aatc.attend(q, q, q, metric=inert(spare=w)), (2,)),
        (lambda w, q: aatc.attend(q, q, q, metric=metrics.DotProduct(), mask=masks.predicate(
            lambda b, h, i, j: j <= i)) + 0 * w.sum(), (2,)),
    ],
)  # fmt: skip
def test_what_has_no_influence_has_gradient_zero(f, shape, only):
    w = torch.randn(shape, requires_grad=True)
    q = torch.randn(1, 2, 5, 4, requires_grad=not only)
    aatc.compile(f, fallback=False)(w, q).sin().sum().backward()
    # a bias of queries is not dropped, it might be infinite: its gradient is a sum that rounding keeps from 0
    assert w.grad is not None and w.grad.abs().max() <= (1e-6 if f is biased else 0)
