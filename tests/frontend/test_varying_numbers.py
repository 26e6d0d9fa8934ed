"""Numbers that change with every call are operands: few graphs, right numbers and gradients, no n*n memory."""

import pytest
import torch

import aatc
from aatc import biases, connections, masks, metrics


def plain(q, k, v, scores, keep=None):
    """Attention of whole score matrices in float64."""
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    return torch.softmax(scores, -1) @ v


def close(got, want):
    torch.testing.assert_close(got, want.float(), rtol=2e-5, atol=2e-5)


def check(run, oracle, tensors, *numbers):
    """Output, and gradients of a functional of it by all tensors."""
    tensors = [t.clone().requires_grad_() for t in tensors]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    got, want = run(*tensors, *numbers), oracle(*exact, *numbers)
    close(got, want)
    grads = [torch.autograd.grad(o.sin().sum(), ts) for o, ts in ((got, tensors), (want, exact))]
    for g, w in zip(*grads, strict=True):
        close(g, w)


def few(compiled, most=3):
    assert not compiled.explain().fallbacks, compiled.explain()
    assert len(compiled.graphs) <= most, [g.recompiled for g in compiled.graphs]


@pytest.mark.parametrize("queries", [1, 3])
def test_decoding_with_a_causal_offset_of_sixty_four_steps(queries):
    def step(q, k, v):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=masks.causal(offset=k.shape[2] - q.shape[2]))

    def oracle(q, k, v):
        n, m = q.shape[2], k.shape[2]
        keep = torch.arange(m) <= torch.arange(n)[:, None] + m - n
        return plain(q, k, v, q @ k.mT / q.shape[-1] ** 0.5, keep)

    compiled = aatc.compile(step)
    for m in range(queries, queries + 64):
        q, k, v = torch.randn(1, 2, queries, 8), torch.randn(1, 2, m, 8), torch.randn(1, 2, m, 8)
        close(compiled(q, k, v), oracle(q.double(), k.double(), v.double()))
    check(compiled, oracle, (q, k, v))
    few(compiled, 4)  # forward with and without gradients


def _loop(f, oracle, numbers, most=3, n=11, m=13):
    compiled = aatc.compile(f)
    torch.manual_seed(1)
    for number in numbers:
        check(compiled, oracle, (torch.randn(1, 2, n, 8), torch.randn(1, 2, m, 8), torch.randn(1, 2, m, 8)), number)
    few(compiled, most)
    return compiled


def test_a_temperature_that_changes():
    def f(q, k, v, beta):
        return aatc.attend(q, k, v, metric=metrics.Poincare(beta * 0.5))

    def oracle(q, k, v, beta):
        x, y = q.unsqueeze(3), k.unsqueeze(2)
        ratio = (x - y).square().sum(-1) / ((1 - x.square().sum(-1)) * (1 - y.square().sum(-1)))
        return plain(q, k, v, -beta * 0.5 * torch.acosh(1 + 2 * ratio))

    def inside(*args):
        q, k, v, beta = args
        return f(0.3 * q / (1 + q.norm(dim=-1, keepdim=True)), 0.3 * k / (1 + k.norm(dim=-1, keepdim=True)), v, beta)

    def inside_oracle(q, k, v, beta):
        scaled = [0.3 * x / (1 + x.norm(dim=-1, keepdim=True)) for x in (q, k)]
        return oracle(*scaled, v, beta)

    _loop(inside, inside_oracle, [0.5 + 0.25 * t for t in range(12)])


def test_a_scale_that_changes():
    def f(q, k, v, scale):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), scale=scale)

    _loop(f, lambda q, k, v, s: plain(q, k, v, s * q @ k.mT), [0.1 + 0.07 * t for t in range(12)])


def test_a_window_that_changes():
    def f(q, k, v, width):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=masks.sliding_window(width) | masks.causal(-5))

    def oracle(q, k, v, width):
        i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
        return plain(q, k, v, q @ k.mT / 8**0.5, ((i - j).abs() < width) | (j <= i - 5))

    _loop(f, oracle, range(2, 14))


def test_numbers_in_a_users_functions_that_change():
    def f(q, k, v, c):
        metric = aatc.metric(lambda q, k, i, j: torch.where(i - j < 4 * c, -c * (q - k).abs().sum(), -3.0 * c))
        mask = masks.predicate(lambda b, h, i, j: (i - j < 8 * c) | (i == j))
        return aatc.attend(q, k, v, metric=metric, mask=mask)

    def oracle(q, k, v, c):
        i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
        s = torch.where(i - j < 4 * c, -c * (q.unsqueeze(3) - k.unsqueeze(2)).abs().sum(-1), -3.0 * c)
        return plain(q, k, v, s, (i - j < 8 * c) | (i == j))

    _loop(f, oracle, [0.25 + 0.125 * t for t in range(12)])


def test_a_predicate_over_half_the_length_never_keeps_the_first_length():
    def f(q, k, v):
        w = k.shape[2] // 2
        mask = masks.predicate(lambda b, h, i, j: abs(i - j) < w)
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), mask=mask)

    def oracle(q, k, v):
        i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
        return plain(q, k, v, q @ k.mT / 8**0.5, (i - j).abs() < k.shape[2] // 2)

    compiled = aatc.compile(f)
    for n in (8, 14, 30, 9, 21, 5, 40, 12, 33, 6, 17):
        check(compiled, oracle, [torch.randn(1, 2, n, 8) for _ in range(3)])
    few(compiled)


def test_dropout_that_changes():
    def f(q, k, v, p):
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), dropout=p, seed=3)

    compiled = aatc.compile(f)
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))
    for t in range(12):
        p = 0.05 + t / 20
        torch.testing.assert_close(compiled(q, k, v, p), f(q, k, v, p), rtol=2e-5, atol=2e-5)
    assert not torch.allclose(compiled(q, k, v, 0.1), compiled(q, k, v, 0.6))
    few(compiled)


class Annealed(torch.nn.Module):
    """Numbers among a module's attributes."""

    def __init__(self):
        super().__init__()
        self.beta, self.window, self.base = 1.0, 3, 100.0
        self.metric = metrics.LorentzDistance(beta=1.5, lift=True, curvature=1.25)

    def forward(self, x):
        self.metric.beta = self.beta
        return aatc.attend(
            x, 0.8 * x.roll(1, 2), x, metric=self.metric, mask=masks.sliding_window(self.window), bias=biases.ALiBi(2),
            connection=connections.Rotary(base=self.base),
        )  # fmt: skip


@pytest.mark.parametrize("dynamic", [None, True])
def test_attributes_of_a_module_that_change(dynamic):
    model = Annealed()
    compiled = aatc.compile(model, dynamic=dynamic)
    torch.manual_seed(0)
    x = torch.randn(1, 2, 12, 8)
    for t in range(10):
        model.beta, model.window, model.base = 1.0 + t / 8, 3 + t, 100.0 + t
        close(compiled(x), model(x.double()))
    few(compiled, 6)


def test_a_curvature_or_an_epsilon_that_is_a_parameter_learns():
    c = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    y = 0.8 * x.roll(1, 2)
    o = aatc.attend(x, y, x, metric=metrics.LorentzDistance(curvature=c, lift=True))
    a, b = x.unsqueeze(3), y.unsqueeze(2)
    time = [(1 / c + t.square().sum(-1)).sqrt() for t in (a, b)]
    want = plain(x, y, x, -torch.acosh(c * (time[0] * time[1] - (a * b).sum(-1))) / c.sqrt())
    torch.testing.assert_close(o, want)
    for g, w in zip(torch.autograd.grad(o.sin().sum(), c), torch.autograd.grad(want.sin().sum(), c), strict=True):
        torch.testing.assert_close(g, w)


FORMATS = {
    "one": lambda x, v: f"{v:.1f}",
    "bare": lambda x, v: f"{v}",
    "parts": lambda x, v: f"a{v:.2e}b{v!r}",
    "length": lambda x, v: f"{x.shape[0]:3d}, {x.shape[0]}",
}


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_that_vary_are_shown_as_text(name):
    def f(x, v):
        return FORMATS[name](x, v), x * v

    compiled = aatc.compile(f, fallback=False)
    for n, v in ((2, 1.5), (3, 2.5), (4, 3.5), (4, 4.25)):
        x = torch.randn(n)
        got, want = compiled(x, v), f(x, v)
        assert got[0] == want[0]
        torch.testing.assert_close(got[1], want[1])


def alibi_formula(q, heads):
    """Plain torch, slopes by the authors' rule."""
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2.0 ** (-8 * h / (2 * power)) for h in range(1, 2 * (heads - power), 2)]
    i = torch.arange(q.shape[2])
    bias = torch.tensor(slopes, dtype=q.dtype).reshape(-1, 1, 1) * (i[:, None] - i).abs()
    return torch.nn.functional.scaled_dot_product_attention(q, q, q, -bias)


def test_the_number_of_heads_of_alibi_may_be_a_symbol():
    def model(q):
        return aatc.attend(q, q, q, metric=aatc.metrics.DotProduct(), bias=aatc.biases.ALiBi(q.shape[1]))

    compiled = aatc.compile(model, dynamic=True, fallback=False)
    for heads in (4, 6, 8, 12, 3, 1):
        q = torch.randn(2, heads, 5, 4, dtype=torch.float64)
        slopes = aatc.biases.ALiBi(heads).slopes.double()  # rounded to the default dtype
        i = torch.arange(5)
        bias = slopes.reshape(-1, 1, 1) * (i[:, None] - i).abs()
        want = torch.nn.functional.scaled_dot_product_attention(q, q, q, -bias)
        torch.testing.assert_close(compiled(q), want, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(want, alibi_formula(q, heads), rtol=1e-6, atol=1e-6)
    assert len(compiled.graphs) <= 3


def test_a_size_as_a_float_scales():
    def model(q, scale):
        return aatc.attend(q, q, q, metric=aatc.metrics.DotProduct(), scale=float(q.shape[2]) * scale)

    compiled = aatc.compile(model, dynamic=True, fallback=False)
    for n, scale in ((5, 0.5), (7, 0.7), (9, 0.1), (6, 0.3)):
        q = torch.randn(1, 2, n, 4, dtype=torch.float64)
        want = torch.nn.functional.scaled_dot_product_attention(q, q, q, scale=n * scale)
        torch.testing.assert_close(compiled(q, scale), want, rtol=1e-10, atol=1e-10)


OF_EQUAL_SIZES = {
    "causal": lambda n, m: {"mask": masks.causal(offset=m - n)},
    "window": lambda n, m: {"mask": masks.sliding_window(m - n + 3)},
    "predicate": lambda n, m: {"mask": masks.predicate(lambda b, h, i, j: j <= i + (m - n))},
    "half": lambda n, m: {"mask": masks.predicate(lambda b, h, i, j: j <= i + (m - n) / 2)},
    "scale": lambda n, m: {"mask": masks.causal(offset=m - n), "scale": 0.5 + (m - n) / 16},
}


@pytest.mark.parametrize("name", OF_EQUAL_SIZES)
@pytest.mark.parametrize("lengths", [[(7, 7), (9, 9), (7, 9), (3, 8)], [(7, 9), (8, 8)]])
def test_a_number_worked_out_from_sizes_may_be_a_constant_while_these_are_equal(name, lengths):
    def f(q, k, v):
        parts = OF_EQUAL_SIZES[name](q.shape[2], k.shape[2])
        return aatc.attend(q, k, v, metric=metrics.DotProduct(), **parts)

    compiled = aatc.compile(f, dynamic=True, fallback=False)
    for n, m in lengths:
        q, k, v = (torch.randn(1, 2, x, 8) for x in (n, m, m))
        i, j = torch.arange(n)[:, None], torch.arange(m)
        keep = {
            "window": (i - j).abs() < m - n + 3,
            "half": j <= i + (m - n) / 2,
        }.get(name, j <= i + m - n)
        scale = 0.5 + (m - n) / 16 if name == "scale" else 8**-0.5
        close(compiled(q, k, v), plain(q.double(), k.double(), v.double(), scale * q.double() @ k.double().mT, keep))
