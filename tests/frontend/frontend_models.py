"""Small models for the tests of the frontend."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import aatc

#: The version of torch the tests run with.
TORCH = tuple(int(x) for x in torch.__version__.split("+")[0].split(".")[:2])


class Block(nn.Module):
    """One attention layer; its metric is learnable. Flags switch on what a frontend may trip over."""

    def __init__(self, width: int = 16, heads: int = 2, *, dropout: float = 0.0, recompute: bool = False) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.beta = nn.Parameter(torch.rand(heads) + 0.5)
        self.dropout, self.heads, self.recompute = nn.Dropout(dropout), heads, recompute

    def mix(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        o = aatc.attend(q, k, v, metric=aatc.metrics.Euclidean(), scale=self.beta)
        return self.dropout(self.out(o.transpose(1, 2).reshape(batch, length, width)))

    def forward(self, x: Tensor) -> Tensor:
        return x + (checkpoint(self.mix, x, use_reentrant=False) if self.recompute else self.mix(x))


class Classifier(nn.Module):
    """Two blocks, a batch norm and a pooled head."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(**options), Block(**options))
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x).mean(1)))


class Breaking(nn.Module):
    """Does something in the middle that cannot be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 1e6:  # the break
            x = x / x.sum()
        return self.second(x)


class NoGradient(nn.Module):
    """Keeps a moving average without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(y.mean((0, 1)), alpha=0.1)
            fixed = (y * 2).sum()
        return y * fixed + self.mean


class Autocast(nn.Module):
    """Half of it in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.out = Block(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.block(x)
            z = self.out(y).prod(-1, keepdim=True)  # which autocast does in float32
        return z + self.out(x)


def tiny() -> tuple[nn.Module, Tensor]:
    """What ``aatc dump`` is handed."""
    torch.manual_seed(0)
    return Block().eval(), torch.randn(2, 5, 16)


def untold() -> nn.Module:
    return Block().eval()
