"""Drawn whole-model functions: views, writes, aliases, constants made in forward, attention, random numbers.

A program is a list of steps, each a word and numbers that choose among the tensors at hand; what it means depends on
their shapes alone, so that a trace and an eager run take the same steps: not on strides, of which torch's fake tensors
may have others (those of `F.dropout` that drops nothing are always contiguous).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

import aatc

SHAPES = ((2, 4), (4,), (2, 2), (4, 4), ())


@dataclass
class Slot:
    """A tensor at hand. ``base`` is shared by what may share its memory, and negative for parameters; ``overlaps``:
    elements of it share memory, so that nobody writes to it."""

    tensor: Tensor
    base: int
    overlaps: bool = False


@dataclass
class Pool:
    """The tensors at hand while a program runs."""

    slots: list[Slot]
    bases: int = 1000
    refused: bool = False

    def new(self, *tensors: Tensor) -> None:
        for t in tensors:
            self.bases += 1
            self.slots.append(Slot(t, self.bases))

    def view(self, of: Slot, *tensors: Tensor, overlaps: bool = False) -> None:
        self.slots += [Slot(t, of.base, of.overlaps or overlaps) for t in tensors]

    def pick(self, n: int, fits: Callable[[Tensor], bool] = lambda t: True, *, write: bool = False) -> Slot | None:
        found = [s for s in self.slots if fits(s.tensor) and not (write and (s.base < 0 or s.overlaps))]
        return found[n % len(found)] if found else None

    def like(self, n: int, shape) -> Tensor | None:
        """A tensor that broadcasts to ``shape``."""

        def fits(t: Tensor) -> bool:
            wide = (1,) * (len(shape) - t.dim()) + tuple(t.shape)
            return t.dim() <= len(shape) and all(a == 1 or a == b for a, b in zip(wide, shape, strict=True))

        slot = self.pick(n, fits)
        return slot.tensor if slot else None


CONSTANTS: tuple[Callable[[], Tensor], ...] = (
    lambda: torch.zeros(2, 4, dtype=torch.float64),
    lambda: torch.ones(4, dtype=torch.float64),
    lambda: torch.full((2, 2), 0.5, dtype=torch.float64),
    lambda: torch.arange(8, dtype=torch.float64).view(2, 4),
    lambda: torch.eye(4, dtype=torch.float64),
    lambda: torch.ones(4, 4, dtype=torch.float64).tril(),
    lambda: torch.tensor([0.25, -1.0, 2.0, 0.5], dtype=torch.float64),
    lambda: torch.tensor(1.5, dtype=torch.float64),
    lambda: torch.linspace(0, 1, 4, dtype=torch.float64),
    lambda: torch.zeros(20, 20, dtype=torch.float64)[:4, :4],
    lambda: torch.empty(2, 4, dtype=torch.float64).fill_(0.125),
    lambda: torch.zeros(4, dtype=torch.float64).repeat(2, 1),
)
FRESH: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sin, torch.neg, torch.clone, torch.abs, torch.zeros_like, torch.ones_like, lambda x: x * 0.5,
    lambda x: x + 1, lambda x: x.sum(), lambda x: F.softmax(x.reshape(-1), 0), lambda x: torch.square(x),
)  # fmt: skip


def _expanded(x: Tensor) -> Tensor:
    return x.expand(2, *x.shape)


#: What may be a view, a copy or the tensor itself.
VIEWS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.reshape(-1), lambda x: x.t() if x.dim() == 2 else x[None], lambda x: x[0] if x.dim() else x,
    lambda x: x[1:] if x.dim() else x[None], lambda x: x[..., ::2] if x.dim() else x.view(1),
    lambda x: x.unsqueeze(0), lambda x: x.squeeze(), lambda x: x.detach(), lambda x: x.contiguous(),
    lambda x: x.to(torch.float64), lambda x: F.dropout(x, 0.5, training=False), lambda x: x.type_as(x),
    lambda x: x.flatten(), _expanded, lambda x: x.diagonal() if x.dim() == 2 else x.view_as(x),
    lambda x: x.transpose(0, -1) if x.dim() else x.reshape(1), lambda x: torch.atleast_1d(x),
    lambda x: torch.broadcast_tensors(x, x)[1], lambda x: torch.einsum("i->i", x) if x.dim() == 1 else x[...],
    lambda x: x.view(-1) if x.dim() < 2 else x[...], lambda x: x.narrow(0, 0, 1) if x.dim() else x[None],
    lambda x: x.as_strided(x.shape, x.stride()),
)  # fmt: skip
PIECES: tuple[Callable[[Tensor], tuple[Tensor, ...]], ...] = (
    lambda x: x.unbind(0), lambda x: x.chunk(2), lambda x: x.split(1), lambda x: x.tensor_split(2),
    lambda x: torch.unsafe_chunk(x, 2),
)  # fmt: skip
BINARY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.add, torch.sub, torch.mul, torch.maximum, lambda x, y: torch.where(x > 0, x, y.expand_as(x)),
    lambda x, y: torch.hypot(x, y + 2),
)  # fmt: skip
#: Writes of y, which broadcasts, into x.
WRITES: tuple[Callable[[Tensor, Tensor], object], ...] = (
    lambda x, y: x.add_(y), lambda x, y: x.mul_(y), lambda x, y: x.copy_(y), lambda x, y: x.sub_(y, alpha=0.5),
    lambda x, y: x.fill_(0.75), lambda x, y: x.zero_(), lambda x, y: x.mul_(1.25), lambda x, y: x.sin_(),
    lambda x, y: x.masked_fill_(x > 0.5, 0.1), lambda x, y: torch.relu_(x), lambda x, y: x.clamp_(-1, 1),
    lambda x, y: x.__setitem__(Ellipsis, y), lambda x, y: torch._foreach_add_([x], 0.5),
    lambda x, y: x[:1].fill_(0.3) if x.dim() else x.add_(1),
    lambda x, y: x.__setitem__(slice(None, 1), 2.0) if x.dim() else x.fill_(1),
    lambda x, y: x.index_put_((torch.tensor([0]),), torch.tensor(0.6, dtype=x.dtype)) if x.dim() else x.mul_(2),
    lambda x, y: x.index_fill_(0, torch.tensor([0]), 0.2) if x.dim() else x.neg_(),
    lambda x, y: x.view(-1)[:1].mul_(3) if x.dim() < 2 else x.mul_(2),
    lambda x, y: x.unsqueeze_(0).squeeze_(0), lambda x, y: torch.add(y, 1, out=x) if y.shape == x.shape else x.add_(1),
    lambda x, y: x.index_add_(0, torch.tensor([0]), x[:1].clone()) if x.dim() else x.abs_(),
)  # fmt: skip
RANDOM: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.rand_like, lambda x: F.dropout(x, 0.5), lambda x: torch.bernoulli(torch.full_like(x, 0.5)),
)  # fmt: skip
WORDS = (
    "constant", "constant", "fresh", "view", "view", "pieces", "binary", "binary", "write", "write", "write", "quiet",
    "join", "attend", "random", "again",
)  # fmt: skip
#: What is also done where gradients are switched off.
QUIET = ("write", "view", "write", "fresh", "pieces", "binary", "again", "attend")


@dataclass(frozen=True)
class Step:
    word: str
    a: int
    b: int
    c: int


@dataclass(frozen=True)
class Drawn:
    """A program: ``inputs``, ``states`` (kept between calls) and ``params`` (trained), then its steps and results."""

    steps: tuple[Step, ...]
    results: tuple[int, ...]
    alias: int = 0
    train: bool = True
    dynamic: bool = False
    counts: tuple[int, int, int] = field(default=(2, 1, 2))

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        inputs, states, _ = self.counts
        bases = [*(0,) * (inputs + states), *range(-1, -1 - self.counts[2], -1)]
        pool = Pool([Slot(t, b) for t, b in zip(given, bases, strict=True)])
        for s in self.steps:
            _run(s, pool)
        return tuple(pool.slots[n % len(pool.slots)].tensor for n in self.results)


def _run(s: Step, pool: Pool) -> None:
    if s.word == "constant":
        pool.new(CONSTANTS[s.a % len(CONSTANTS)]())
    elif s.word == "join":
        x = pool.pick(s.a, lambda t: t.dim() > 0)
        assert x is not None
        y = pool.pick(s.b, lambda t: t.shape == x.tensor.shape)
        assert y is not None
        pool.new((torch.stack, torch.cat)[s.c % 2]([x.tensor, y.tensor]).reshape(-1)[:8].clone())
    elif s.word == "attend":
        _attend(s, pool)
    elif s.word == "quiet":
        with torch.no_grad():
            _run(Step(QUIET[s.b % len(QUIET)], s.a, s.b // len(QUIET) + s.c, s.c), pool)
    elif s.word == "write":
        _write(s, pool)
    else:
        x = pool.pick(s.a)
        assert x is not None
        t = x.tensor
        if s.word == "fresh":
            pool.new(FRESH[s.b % len(FRESH)](t))
        elif s.word == "again":  # the same twice: nobody may take one for the other
            function = FRESH[s.b % len(FRESH)]
            pool.new(function(t), function(t))
        elif s.word == "random":
            pool.new(RANDOM[s.b % len(RANDOM)](t))
        elif s.word == "view":
            pool.view(x, VIEWS[s.b % len(VIEWS)](t), overlaps=VIEWS[s.b % len(VIEWS)] is _expanded)
        elif s.word == "pieces" and t.dim() and t.shape[0] > 0:
            pool.view(x, *PIECES[s.b % len(PIECES)](t))
        elif s.word == "binary":
            y = pool.like(s.b, t.shape)
            assert y is not None
            pool.new(BINARY[s.c % len(BINARY)](t, y))


def _write(s: Step, pool: Pool) -> None:
    x = pool.pick(s.a, lambda t: t.numel() > 0, write=True)
    if x is None:
        return
    y = pool.like(s.b, x.tensor.shape)
    assert y is not None
    WRITES[s.c % len(WRITES)](x.tensor, y.clone())  # a copy: y may overlap x


def _attend(s: Step, pool: Pool) -> None:
    """An attention of what has eight elements, with a bias or mask of what has four."""
    slots = [pool.pick(n, lambda t: t.numel() == 8) for n in (s.a, s.b, s.c)]
    small = pool.pick(s.a + s.c, lambda t: t.numel() == 4)
    if any(x is None for x in slots):
        return
    q, k, v = (x.tensor.reshape(1, 1, 2, 4) for x in slots if x is not None)
    parts: dict[str, object] = {"metric": (aatc.metrics.DotProduct, aatc.metrics.Euclidean)[s.b % 2]()}
    if small is not None and s.c % 3:
        parts["bias"] = aatc.biases.Dense(small.tensor.reshape(1, 1, 2, 2))
        if s.c % 3 == 2:
            parts["mask"] = aatc.masks.dense(small.tensor.reshape(1, 1, 2, 2) > -1)
    pool.new(aatc.attend(q, k, v, **parts))


numbers = st.integers(0, 60)
steps = st.builds(Step, st.sampled_from(WORDS), numbers, numbers, numbers)
programs = st.builds(
    Drawn,
    st.lists(steps, min_size=2, max_size=14).map(tuple),
    st.lists(numbers, min_size=1, max_size=4).map(tuple),
    alias=st.integers(0, 3),
    train=st.booleans(),
)
