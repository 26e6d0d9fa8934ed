"""Inputs on which a program is compared with what a pass made of it: ordinary ones, and those that show what ordinary
ones do not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from aatc.ir.core import Module, Op, Value
from aatc.ir.effects import changes_arguments, effect_of
from aatc.ir.samples import random_inputs
from aatc.ir.score.expr import postorder
from aatc.ir.score.program import Program
from aatc.ir.types import TensorType

#: What is mixed with numbers that a program compares with, in powers of ten: with attention, and without.
_POWERS = {True: (-1.0, 2.0), False: (-1.0, 4.0)}
_LARGEST = {True: 1e4, False: 1e9}
_MOST = 64
_FLOATS = ("f64", "f32", "bf16", "f16")
#: So many inputs get a NaN, one by one, where there is attention.
_INPUTS = 8


@dataclass(frozen=True)
class Draw:
    """One set of inputs. ``kind``: "plain" numbers times ``scale``; "large" ones and such beside the program's
    constants; "integers" of that kind; "nan" and "infinite" entries; "tied" is one tensor for all inputs of a type.
    ``only`` the input at this position is changed."""

    seed: int
    kind: str = "plain"
    scale: float = 1.0
    only: int | None = None


DRAWS = (
    Draw(0),
    Draw(1, scale=3.0),
    *(Draw(seed, "large") for seed in range(2, 6)),
    Draw(6, "integers"),
    Draw(7, "nan"),
    Draw(8, "infinite"),
    Draw(9, "tied"),
)


def has_attention(module: Module) -> bool:
    """Whether there is an attention in any form: passes may order its sums anew."""
    return any(op.name.startswith(("geo.", "tile.")) and op.name not in _PLAIN for op in module.walk())


_PLAIN = ("geo.constant", "geo.checkpoint", "geo.return")


class Maker:
    """Makes the inputs of the programs that follow from ``module``, which is the first of them."""

    def __init__(self, module: Module):
        self.attention = has_attention(module)
        self.near = beside(_numbers(module.walk()), _LARGEST[self.attention])
        arguments = module.entry.args if module.funcs else []
        self.floats = [n for n, a in enumerate(arguments) if isinstance(a.type, TensorType) and a.type.dtype in _FLOATS]
        frames, read = _frames(module), _read(module)
        self.frames = {n for n, a in enumerate(arguments) if a in frames}
        self.read = {n for n, a in enumerate(arguments) if a in read}
        self.writes = bool(module.funcs) and changes_arguments(module)

    def draws(self) -> Iterator[Draw]:
        """Those that say something about these programs."""
        for draw in DRAWS:
            # 0 times infinity: where the parts of a score are taken apart, what is infinite need not stay so
            if (draw.kind == "infinite" and self.attention) or (draw.kind == "tied" and not self.writes):
                continue
            if draw.kind == "nan" and self.attention:
                # what an attention reads as it is spoils what sees it, used or not: there is nothing to compare
                yield from (replace(draw, only=n) for n in self.floats[:_INPUTS] if n not in self.read)
            else:
                yield draw

    def inputs(self, module: Module, draw: Draw) -> list[Any]:
        """Inputs of ``module`` in memory of their own, except where they are tied."""
        generator = torch.Generator().manual_seed(draw.seed)
        made = [
            self._changed(x, draw, generator) if draw.only in (None, n) else x
            for n, x in enumerate(random_inputs(module, seed=draw.seed))
        ]
        made = [_rotations(x) if n in self.frames and draw.only != n else x for n, x in enumerate(made)]
        if draw.kind != "tied":
            return made
        first: dict[Any, Any] = {}
        return [first.setdefault(str(a.type), x) for a, x in zip(module.entry.args, made, strict=True)]

    def _changed(self, x: Any, draw: Draw, generator: torch.Generator) -> Any:
        if isinstance(x, float):
            return x * draw.scale
        if not isinstance(x, torch.Tensor):
            return x
        if x.is_floating_point():
            if draw.kind == "large":
                return self._large(x.shape, generator).to(x.dtype)
            if draw.kind in ("nan", "infinite"):
                return _spoiled(x, draw.kind, generator)
            return x * draw.scale
        if draw.kind == "integers" and x.dtype not in (torch.bool, torch.uint8):
            return self._large(x.shape, generator).clamp(-120, 120).to(x.dtype)
        return x

    def _large(self, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Numbers of all sizes and either sign; half of them beside the program's constants, if any."""
        low, high = _POWERS[self.attention]
        uniform = torch.rand((3, *shape), generator=generator, dtype=torch.float64)
        x = 10 ** (low + (high - low) * uniform[0]) * torch.where(uniform[1] < 0.5, -1.0, 1.0)
        if not self.near:
            return x
        near = torch.tensor(self.near, dtype=torch.float64)
        chosen = near[torch.randint(0, len(near), tuple(shape), generator=generator)]
        return torch.where(uniform[2] < 0.5, chosen, x)


def _frames(module: Module) -> set[Value]:
    """What is read as frames, or what that is a view of: rewrites use that they are orthogonal matrices."""
    found: set[Value] = set()
    for op in module.entry.body.ops if module.funcs else []:
        for program in (op.attrs.get(n) for n in ("score", "carry")):
            if isinstance(program, Program):
                named = dict(zip(op.attrs.get("names", ()) or _operand_names(op, program), op.operands, strict=False))
                turns = [e for e in postorder(program.body) if e.fn in ("turn", "unturn") and e.args[0].fn == "param"]
                found |= {_base(named[e.args[0].name]) for e in turns if e.args[0].name in named}
    return found


def _read(module: Module) -> set[Value]:
    """What attentions read as it is, or by views."""
    body = module.entry.body.ops if module.funcs else []
    found = {v for op in body if op.name.startswith("geo.") and op.name not in _PLAIN for v in op.operands}
    for op in reversed(body):
        effect = effect_of(op, module)
        if effect.shares and not effect.copies and any(r in found for r in op.results):
            found.update(op.operands)
    return found


def _operand_names(op: Op, program: Program) -> tuple[str, ...]:
    """Names of a stage's operands; the second of a transport only gives the pairs."""
    return (program.names[0], "", *program.names[1:]) if op.name == "geo.transport" else program.names


def _base(value: Value) -> Value:
    while isinstance(value.owner, Op) and value.owner.name == "torch.call" and len(value.owner.operands) == 1:
        value = value.owner.operands[0]
    return value


def _rotations(x: torch.Tensor) -> torch.Tensor:
    """Orthogonal matrices in the place of those along the last two axes; spoiled ones stay as they are."""
    if x.dim() < 2 or x.shape[-1] != x.shape[-2] or not x.numel():
        return x
    q = torch.linalg.qr(x.double().nan_to_num())[0].to(x.dtype)
    return torch.where(x.isfinite().flatten(-2).all(-1)[..., None, None], q, x)


def _spoiled(x: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    chosen = torch.rand(x.shape, generator=generator) < 0.25
    sign = torch.where(torch.rand(x.shape, generator=generator) < 0.5, -1.0, 1.0).to(x.dtype)
    return torch.where(chosen, sign * float("nan" if kind == "nan" else "inf"), x)


def beside(numbers: Iterable[float], largest: float) -> list[float]:
    """Numbers between, a little beside and well beyond those that a program compares with or cuts at."""
    found = sorted({x for c in numbers if math.isfinite(c) and abs(c) <= largest for x in (c, -c)})
    between = [(a + b) / 2 for a, b in pairwise(found)]
    around = [c * f for c in found if c for f in (0.75, 0.999, 1.001, 1.5, 5.0)]
    made = sorted({x for x in (*between, *around) if abs(x) <= largest})
    return made[:: max(1, -(-len(made) // _MOST))]


def _numbers(ops: Iterable[Op]) -> Iterator[float]:
    """The numbers that operations carry as attributes."""
    for op in ops:
        for value in op.attrs.values():
            yield from _numbers_in(value)


def _numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        if abs(value) < 2**63:
            yield float(value)
    elif isinstance(value, (tuple, list)):
        for v in value[:_MOST]:
            yield from _numbers_in(v)
    elif isinstance(value, Program):
        for e in postorder(value.body):
            if e.is_const and e.dtype != "b":
                yield float(e.value)
