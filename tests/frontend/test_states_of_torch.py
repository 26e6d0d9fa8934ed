"""States of torch and of tensors that a function sets: as eager, or left to PyTorch and said so."""

from __future__ import annotations

import pytest
import torch

import aatc
from aatc.errors import UnsupportedError


@pytest.fixture(autouse=True)
def states():
    """Sets back what a failing function leaves set."""
    before = torch.is_grad_enabled(), torch.get_default_dtype()
    yield
    torch.set_grad_enabled(before[0])
    torch.set_default_dtype(before[1])


def seen(f, ambient: bool, *shape: int):
    """What one can see of a call: values, gradients on or off, after it and of the result."""
    x = torch.ones(*shape, requires_grad=True)
    with torch.set_grad_enabled(ambient):
        y = f(x)
        after = torch.is_grad_enabled()
    return y.tolist(), y.requires_grad, y.is_leaf, y.is_inference(), after


def switches_on(x):
    torch.set_grad_enabled(True)
    return x * 2


def switches_off(x):
    torch.set_grad_enabled(False)
    return x * 2


def switches_later(x):
    y = x * 3
    with torch.no_grad():
        z = y + 1
    torch.set_grad_enabled(False)
    return y + z


def inference(x):
    with torch.inference_mode():
        return x * 2


def inference_within(x):
    with torch.inference_mode():
        y = x * 2
    return x.sum() + y.sum()


@pytest.mark.parametrize("ambient", [True, False])
@pytest.mark.parametrize("f", [switches_on, switches_off, switches_later, inference, inference_within])
def test_switching_gradients_is_as_eager(f, ambient):
    want = seen(f, ambient, 3)
    c = aatc.compile(f)
    assert [seen(c, ambient, 3) for _ in range(2)] == [want, want]


@pytest.mark.parametrize("f", [switches_on, switches_off])
def test_switched_gradients_that_stay_are_left_to_pytorch(f):
    with torch.set_grad_enabled(f is switches_off):
        c = aatc.compile(f)
        c(torch.ones(2))
    assert "gradients switched" in str(c.explain())
    with torch.set_grad_enabled(f is switches_off), pytest.raises(UnsupportedError, match="gradients switched"):
        aatc.compile(f, fallback=False)(torch.ones(2))


def test_no_grad_stays_compiled():
    def f(x):
        with torch.no_grad():
            y = x * 2
        with torch.enable_grad():
            z = x * 3
        return y + z

    c = aatc.compile(f)
    assert seen(c, True, 2) == seen(f, True, 2)
    assert not c.explain().fallbacks


def test_the_default_dtype_a_function_sets_is_set_on_every_call():
    def f(x):
        torch.set_default_dtype(torch.float64)
        return x * torch.ones(2)

    c = aatc.compile(f)
    for _ in range(2):
        torch.set_default_dtype(torch.float32)
        assert c(torch.ones(2)).dtype == torch.float64
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("learns", [True, False])
def test_data_of_a_tensor_can_be_set(learns):
    def f(x, y):
        x.data = y
        return x * 2

    def run(g):
        x, y = torch.ones(2, requires_grad=learns), torch.tensor([5.0, 6.0])
        out = [g(x, y).tolist() for _ in range(2)]
        return out, x.tolist(), x.data_ptr() == y.data_ptr(), x.requires_grad

    assert run(aatc.compile(f)) == run(f)
    with pytest.raises(UnsupportedError, match=r"\.data"):
        aatc.compile(f, fallback=False)(torch.ones(2), torch.ones(2))


def test_random_numbers_after_an_exception_on_a_later_call_are_eagers():
    def f(table, at):
        y = torch.rand(3)
        return table[at] + y[0]

    def run(g):
        g(torch.zeros(4), torch.tensor([1]))
        torch.manual_seed(0)
        with pytest.raises(IndexError):
            g(torch.zeros(4), torch.tensor([9]))
        after = torch.rand(2).tolist()
        return after, g(torch.zeros(4), torch.tensor([2])).tolist()

    assert run(aatc.compile(f)) == run(f)


def test_gradients_switched_by_a_size_are_as_eager():
    def f(x):
        torch.set_grad_enabled(x.shape[0] > 2)
        return x * 2

    c = aatc.compile(f, dynamic=True)
    for n in (2, 3, 5, 2):
        assert seen(c, True, n) == seen(f, True, n)
    assert c.explain().fallbacks


# --- export ------------------------------------------------------------------------------------------------
class Sets(torch.nn.Module):
    """A model that runs ``state`` between two operations."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def forward(self, x):
        y = x * 2
        self.state(x)
        return y + 1


def in_inference_mode(x):
    with torch.inference_mode():
        return x * 3


def sets_data(x):
    x.data = torch.zeros(2)


@pytest.mark.parametrize(
    "state, message",
    [
        (in_inference_mode, "inference_mode"),
        (sets_data, r"\.data"),
        (lambda x: torch.set_grad_enabled(False), "gradients on or off"),
        (lambda x: torch.set_default_dtype(torch.float64), "default dtype"),
        (lambda x: torch.use_deterministic_algorithms(True), "deterministic"),
        (lambda x: x.data * 2, "cannot be traced"),
    ],
)
def test_states_that_an_export_cannot_hold_are_refused(state, message):
    with pytest.raises(UnsupportedError, match=message):
        aatc.export(Sets(state), (torch.ones(2, requires_grad=True),))
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.is_inference_mode_enabled()


def test_no_grad_and_autocast_can_be_exported():
    class Plain(torch.nn.Module):
        def forward(self, x):
            with torch.no_grad():
                y = x * 2
            with torch.autocast("cpu", torch.bfloat16):
                return x @ y

    module = aatc.export(Plain(), (torch.ones(2, 2),))
    assert "matmul" in str(module)


# --- functions that run in inference mode ------------------------------------------------------------------
@torch.inference_mode()
def attends(q, k):
    return aatc.attend(q, k, k, metric=aatc.metrics.Euclidean()) * 2


@torch.inference_mode()
def hands_out(q, k):
    q.add_(1)
    return q, q[0], k.contiguous(), torch.zeros(2), k.view(-1), k.reshape(-1) * 2, k.detach()


@pytest.mark.parametrize("f", [attends, hands_out])
def test_a_function_in_inference_mode_is_compiled(f):
    def run(g):
        torch.manual_seed(0)
        q, k = torch.randn(2, 1, 2, 6, 4).double().unbind()
        k.requires_grad_()
        results = [g(q, k) for _ in range(2)]
        tensors = [t for r in results for t in (r if isinstance(r, tuple) else (r,))]
        assert not torch.is_inference_mode_enabled()
        states = [(t.is_inference(), t.requires_grad, t is q, t is k, t.data_ptr() == q.data_ptr()) for t in tensors]
        return tensors, states

    c = aatc.compile(f)
    (got, states), (want, expected) = run(c), run(f)
    torch.testing.assert_close(got, want)
    assert states == expected
    assert not c.explain().fallbacks


def test_a_function_with_and_without_inference_mode_shares_no_program():
    def f(x, inference):
        with torch.inference_mode(inference) if inference else torch.enable_grad():
            return x * torch.tensor([2.0, 3.0])

    c, x = aatc.compile(f), torch.ones(2, requires_grad=True)
    for inference in (True, False, True):
        y = c(x, inference)
        assert (y.is_inference(), y.requires_grad) == (inference, not inference)
    c(x, False).sum().backward()
    assert x.grad.tolist() == [2, 3]


def test_an_exception_leaves_no_inference_mode():
    @torch.inference_mode()
    def f(x, i):
        return x[i] * 2

    c = aatc.compile(f)
    c(torch.ones(3), torch.tensor([1]))
    with pytest.raises(IndexError):
        c(torch.ones(3), torch.tensor([7]))
    leaked = torch.is_inference_mode_enabled()
    assert not leaked


@pytest.mark.parametrize("within", [True, False])
def test_a_first_call_in_inference_mode_leaves_later_ones_their_gradients(within):
    """Tensors that a program keeps from its first call, a scale made in forward, say, are not those of inference."""

    def attend(q, k, v, quiet=False):
        if quiet:
            with torch.inference_mode():
                return aatc.attend(q * torch.tensor([1.0, 2.0, 3.0, 4.0]), k, v, metric=aatc.metrics.DotProduct())
        return aatc.attend(q * torch.tensor([1.0, 2.0, 3.0, 4.0]), k, v, metric=aatc.metrics.DotProduct())

    compiled = aatc.compile(attend, fallback=False)
    q = torch.randn(1, 1, 8, 4)
    with torch.inference_mode(not within):
        quiet = compiled(q, q, q, within)
    x = q.clone().requires_grad_()
    o = compiled(x, q, q)
    torch.testing.assert_close(o, quiet.clone())
    (got,) = torch.autograd.grad(o.sum(), x)
    (want,) = torch.autograd.grad(attend(x, q, q).sum(), x)
    torch.testing.assert_close(got, want)
