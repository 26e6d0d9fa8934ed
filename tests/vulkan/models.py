"""Models whose operators a device runs by kernels, and what runs them."""

import torch
import torch.nn.functional as F
from torch import nn

import aatc
from aatc import connections, masks, metrics


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Layer(nn.Module):
    """A layer of a decoder, with fewer heads of keys than of queries."""

    def __init__(self, width=32, heads=2, keys=1, hyperbolic=False):
        super().__init__()
        self.head, self.hyperbolic = width // heads, hyperbolic
        self.before, self.between = RMSNorm(width), RMSNorm(width)
        self.q, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, keys * self.head, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        b, n, _ = x.shape
        y = self.before(x)
        q, k, v = (f(y).view(b, n, -1, self.head).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.hyperbolic:
            q, k = 4 * q, 4 * k  # so far apart that single precision will do
            found = {"metric": metrics.LorentzDistance(lift=True)}
        else:
            found = {"metric": metrics.DotProduct(), "connection": connections.Rotary(torch.arange(n))}
        o = aatc.attend(q, k, v, mask=masks.causal(), **found)
        x = x + self.out(o.transpose(1, 2).reshape(b, n, -1))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Shaped like Llama: rotary attention in one layer, attention by hyperbolic distance in the other."""

    def __init__(self, words=13, width=32):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.ModuleList([Layer(width), Layer(width, hyperbolic=True)])
        self.norm, self.head = RMSNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def x(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


#: name -> (function of tensors, tensors); everything in them has kernels, and derivatives.
FUNCTIONS = {
    "sums and products": (lambda a, b: (a + 2 * b) * a - b / (a * a + 1), (x(3, 5, 7), x(3, 1, 7, seed=1))),
    "words": (lambda a: F.gelu(a) * torch.tanh(a) + a.exp() - a.sigmoid() + a.abs().sqrt(), (x(2, 9),)),
    "gelu of tanh": (lambda a: F.gelu(a, approximate="tanh") + torch.erf(a), (x(2, 9) * 3,)),
    "powers": (lambda a: a.abs() ** 1.7 + a**3 + (a.abs() + 0.1) ** -0.5 + a.square(), (x(2, 9),)),
    "where": (lambda a: torch.where(a > 0.1, a, 2 * a).clamp(-0.5, 0.5) + a.masked_fill(a < 0, -1.0), (x(3, 5),)),
    "extremes": (lambda a, b: torch.maximum(a, b) * torch.minimum(a, b), (x(3, 5), x(3, 5, seed=1))),
    "other layouts": (lambda a: F.silu(a.transpose(0, 2) + 1)[1:, ::2].flatten(), (x(3, 5, 7),)),
    "a linear layer": (lambda a, w, b: F.relu(F.linear(a, w, b)), (x(3, 5, 7), x(9, 7, seed=1), x(9, seed=2))),
    "two of them": (lambda a, w: F.silu(F.linear(a, w)) * F.linear(a, -w), (x(2, 7), x(9, 7, seed=1))),
    "products beyond one tile": (lambda a, b: a @ b, (x(2, 70, 65), x(65, 37, seed=1))),
    "products of transposes": (lambda a, b: a.mT @ b.mT + 1, (x(2, 3, 35, 34), x(3, 37, 35, seed=1))),
    "rows": (lambda a: a.sum(-1)[:, :, None] * a.mean((0, 2), keepdim=True), (x(3, 5, 70),)),
    "softmax": (lambda a: a.softmax(-1) * F.log_softmax(a, 1), (x(3, 5, 7),)),
    "layer norm": (lambda a, w, b: F.layer_norm(a, (7,), w, b) ** 3, (x(3, 7), x(7, seed=1), x(7, seed=2))),
    "layer norm of two axes": (lambda a: F.layer_norm(a.transpose(1, 2), (7, 5)), (x(3, 5, 7),)),
    "embedding": (lambda w, i: F.embedding(i, w) + 1, (x(9, 4), torch.tensor([[0, 3, 8], [3, 3, 1]]))),
    "gather": (lambda a, i: a.gather(1, i), (x(3, 5), torch.tensor([[4, 0], [2, 2], [1, 3]]))),
    "joined": (lambda a, b: torch.cat([a, b * 2, a], 1).reshape(3, -1), (x(3, 2, 7), x(3, 1, 7, seed=1))),
    "parted": (lambda a: torch.cat(a.chunk(2, -1)[::-1], -1) + a.unbind(0)[1], (x(2, 6),)),
    "expanded": (lambda a: a.expand(4, 3, 5).sum(0) * a[None, :, 1:3].mean(), (x(3, 5),)),
    "a convolution": (
        lambda a, w, b: F.conv2d(a * 2, w, b, stride=2, padding=1), (x(2, 3, 7, 6), x(5, 3, 3, 2, seed=1), x(5)),
    ),
    "a dilated one": (
        lambda a, w: F.conv2d(a, w, dilation=(1, 2), padding=(0, 3)), (x(1, 2, 6, 7), x(3, 2, 2, 3, seed=1)),
    ),
    "cross entropy": (lambda a, i: F.cross_entropy(a, i), (x(6, 5), torch.tensor([0, 1, -100, 3, 4, 2]))),
}  # fmt: skip


def compiled(function, **more):
    torch.compiler.reset()
    return aatc.compile(function, backend="vulkan", **{"fallback": False, **more})


def beside(model):
    """What the model's last graph did elsewhere."""
    return model.graphs[-1].program.beside.reasons


def close(got, want, unit=5e-5):
    assert got.dtype == want.dtype
    if want.dtype.is_floating_point:
        scale = max(1.0, want[want.isfinite()].abs().max().item() if want.isfinite().any() else 1.0)
        torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=unit * scale, equal_nan=True)
    else:
        assert torch.equal(got, want)


def squares(model, *batch):
    return (model(*batch) ** 2).mean()


def tokens(*shape, seed=0):
    return torch.randint(0, 13, shape, generator=torch.Generator().manual_seed(seed))
