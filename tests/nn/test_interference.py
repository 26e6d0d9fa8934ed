"""No weights of a plain softmax attention make what interference makes, and linear maps do not absorb the metric."""

import pytest
import torch
from torch import nn

import aatc
from aatc.nn import QuantumGeometricAttention

# tokens of two kinds behind one that asks: "are both alike?"; ±1 for the pairs aa, bb, ab, ba
PAIRS = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0]])
ANSWERS = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
BOUND = 2 / 3  # the least mean squared error of a plain head, see the docstring of QuantumGeometricAttention


def sequences(asking, kinds):
    """Tokens (4, 3, hidden) of the four pairs, after the token that asks."""
    return torch.cat((asking.expand(4, 1, -1), kinds[PAIRS]), 1)


def least_errors(runs, targets, steps=400):
    """What an optimiser makes of ``targets`` (4, outputs) from many starts: errors, sums of squares over outputs and
    means over pairs, (runs,), and outputs (runs, 4, outputs).

    Every run is a plain head with any functions in the place of W_q, W_k and W_v: of three tokens a function is a
    table. The linear readout is part of the values.
    """
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(runs, 3, generator=generator, dtype=torch.float64)
    values = 2 * torch.randn(runs, 3, targets.shape[-1], generator=generator, dtype=torch.float64)
    seen = torch.cat((torch.full((4, 1), 2), PAIRS), 1)
    parameters = [scores.requires_grad_(), values.requires_grad_()]
    optimiser = torch.optim.Adam(parameters, 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        outputs = torch.einsum("rpj,rpjc->rpc", scores[:, seen].softmax(-1), values[:, seen])
        errors = (outputs - targets).square().sum(-1).mean(-1)
        optimiser.zero_grad()
        errors.sum().backward()
        optimiser.step()
        schedule.step()
    return errors.detach(), outputs.detach()


def bound_of(targets):
    """The least such error of any head whose outputs y of aa, bb and ab obey ab = λ aa + (1 - λ) bb: least squares at
    every λ, and the best of many."""
    one, other, mixed = targets[0], targets[1], targets[2:].mean(0)
    within = (targets[2:] - mixed).square().sum() / 4
    share = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
    off = (share * one + (1 - share) * other - mixed).square().sum(-1)
    # variances: one of a pair that comes once, one half of a pair that comes twice
    return (off / (share**2 + (1 - share) ** 2 + 0.5).squeeze(-1)).min() / 4 + within


class Plain(nn.Module):
    """One head of W_q, W_k, W_v and W_o."""

    def __init__(self, hidden):
        super().__init__()
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x):
        q, k, v = (t[:, None] for t in self.qkv(x).chunk(3, -1))
        return self.out(aatc.attend(q, k, v, metric=aatc.metrics.DotProduct())[:, 0])


class Asked(nn.Module):
    """The answer read from the first token."""

    def __init__(self, attention, hidden):
        super().__init__()
        self.attention, self.read = attention, nn.Linear(hidden, 1)

    def forward(self, x):
        return self.read(self.attention(x)[:, 0]).squeeze(-1)


def trained(model, x, steps):
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        loss = (model(x) - ANSWERS.to(x.dtype)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def drawn(hidden, seed):
    torch.manual_seed(seed)
    return torch.randn(1, hidden), torch.randn(2, hidden)


def test_a_plain_head_of_any_functions_stays_above_the_bound_and_reaches_it():
    errors, outputs = least_errors(40, ANSWERS[:, None])
    assert errors.min() == pytest.approx(BOUND, abs=2e-3)
    assert errors.min() >= BOUND - 1e-12
    assert bound_of(ANSWERS[:, None]).item() == pytest.approx(BOUND, abs=1e-8)
    right = (outputs[..., 0].sign() == ANSWERS).double().mean(-1)
    assert right.max() <= 0.75


def heads(hidden):
    """A model with one head of each kind; the plain one has more parameters."""
    torch.manual_seed(2)
    ours = Asked(QuantumGeometricAttention(hidden, 1, 0.0, motive_rank=2, manifold_dim=2, num_layers=0), hidden)
    plain = Asked(Plain(hidden), hidden)
    assert sum(p.numel() for p in plain.parameters()) >= sum(p.numel() for p in ours.parameters())
    return ours, plain


@pytest.mark.usefixtures("one_thread")
def test_one_head_that_interferes_answers_what_a_plain_head_cannot():
    hidden = 8
    x = sequences(*drawn(hidden, 2))
    ours, plain = heads(hidden)
    compiled = aatc.compile(ours)
    answers, others = trained(compiled, x, 80)(x), trained(plain, x, 200)(x)
    assert not compiled.explain().fallbacks
    assert (answers - ANSWERS).square().mean() < 0.02
    assert (answers.sign() == ANSWERS).all()
    error = (others - ANSWERS).square().mean().item()
    assert BOUND - 1e-6 <= error < 0.68  # it has learned, as much as it can


@pytest.mark.parametrize("seed", range(3))
def test_what_fresh_weights_make_is_out_of_reach_of_plain_heads(seed):
    hidden = 8
    x = sequences(*drawn(hidden, seed)).double()
    ours = QuantumGeometricAttention(hidden, 1, 0.0, motive_rank=2, manifold_dim=2, num_layers=0).double()
    with torch.no_grad():
        ours.out.weight.copy_(torch.eye(hidden))
        targets = ours(x)[:, 0]
    bound = bound_of(targets)
    errors, _ = least_errors(20, targets, steps=300)
    assert bound > 1e-4 * targets.var()
    assert errors.min() >= bound * (1 - 1e-6)
    # the bound itself is met by a plain head's own outputs
    plain = Plain(hidden).double()
    assert bound_of(plain(x)[:, 0].detach()) < 1e-9


def log_odds(weights):
    """log p_i1/p_i2 of queries along a line, from weights (n, n)."""
    return (weights[..., 1] / weights[..., 2]).log()


@pytest.mark.parametrize("seed", range(3))
def test_linear_maps_of_tokens_do_not_absorb_the_metric(seed):
    """Three queries on a line: any affine function errs by at least a quarter of their second difference."""
    hidden = 6
    torch.manual_seed(seed)
    ends = torch.randn(2, hidden, dtype=torch.float64)
    x = torch.stack((ends[0], *torch.randn(2, hidden, dtype=torch.float64), ends.mean(0), ends[1]))[None]
    line = [0, 3, 4]
    ours = QuantumGeometricAttention(hidden, 1, 0.0, motive_rank=1, manifold_dim=2).double()
    with torch.no_grad():
        state = ours.prepare_attention_state(x)
        odds = log_odds(ours.attention_amplitudes(state.query, state.key).abs().square()[0, 0])[line]
    bend = (odds[0] - 2 * odds[1] + odds[2]).abs()
    assert bend > 1e-3
    # an optimiser looks for the best form t_i·A (t_1 - t_2) + c, by its largest error
    weight = torch.zeros(hidden, hidden, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([weight, offset], 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1500)
    for _ in range(1500):
        worst = (x[0, line] @ weight @ (x[0, 1] - x[0, 2]) + offset - odds).abs().max()
        optimiser.zero_grad()
        worst.backward()
        optimiser.step()
        schedule.step()
    assert worst >= bend / 4 - 1e-12
    assert worst <= bend / 4 * 1.1
    # and places: the metric at two of them is not one matrix in other coordinates that are linear
    places = state.metric.places
    g = ours.riemannian_metric(places)[0, 0].detach()
    ratios = torch.linalg.eigvals(torch.linalg.solve(g[0], g[1])).real
    assert (ratios - 1).abs().max() > 1e-2
