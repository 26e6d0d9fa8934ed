"""Updates of parameters by the optimizers of `torch.optim`, as expressions over numbers that lie on the device.

Formulas: torch's own documentation of SGD, Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from aatc.backends.vulkan.model.nodes import Node, load, number
from aatc.backends.vulkan.model.pointwise import word
from aatc.backends.vulkan.model.segment import Segment
from aatc.backends.vulkan.model.views import View
from aatc.ir.errors import UnsupportedError


@dataclass(frozen=True)
class Update:
    """Writes what holds if the truth value ``valid``, and leaves what was there otherwise; None: always."""

    segment: Segment
    valid: View | None = None

    def write(self, root: Node, out: View, hint: str) -> None:
        kept = root if self.valid is None else word("where", load(self.valid), root, load(out))
        self.segment.write(kept, out, hint)


class Rule(ABC):
    """How one optimizer updates a parameter. ``state``: names of tensors of a parameter's shape that it keeps.
    ``numbers``: names of numbers that may differ from one step to the next."""

    state: ClassVar[tuple[str, ...]] = ()
    numbers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, group: Mapping[str, Any]):
        self.group = group
        for name in ("amsgrad", "maximize", "capturable", "differentiable"):
            if group.get(name):
                raise UnsupportedError(f"{type(self).__name__} with {name}=True has no kernel")

    @abstractmethod
    def values(self, step: int) -> dict[str, float]:
        """`numbers` of the given step, which is 1 at first."""

    @abstractmethod
    def update(self, u: Update, p: View, g: Node, state: Mapping[str, View], numbers: Mapping[str, Node]) -> None:
        """Writes the new parameter and state in their places."""

    def decayed(self, u: Update, p: View, g: Node) -> Node:
        """The gradient with that of the penalty on the parameter's square."""
        rate = self.group["weight_decay"]
        if not rate:
            return g
        return load(u.segment.written(word("add", g, word("mul", number(rate, "f"), load(p))), "f32", "decayed"))


class SGD(Rule):
    """With momentum, dampening, Nesterov's variant, and weight decay."""

    numbers = ("lr", "kept", "taken")

    def __init__(self, group: Mapping[str, Any]):
        super().__init__(group)
        self.state = ("momentum_buffer",) if group["momentum"] else ()  # type: ignore[misc]

    def values(self, step: int) -> dict[str, float]:
        first = step == 1
        return {
            "lr": float(self.group["lr"]),
            "kept": 0.0 if first else self.group["momentum"],
            "taken": 1.0 if first else 1.0 - self.group["dampening"],
        }

    def update(self, u: Update, p: View, g: Node, state: Mapping[str, View], numbers: Mapping[str, Node]) -> None:
        g = self.decayed(u, p, g)
        if self.state:
            m = state["momentum_buffer"]
            u.write(word("add", word("mul", numbers["kept"], load(m)), word("mul", numbers["taken"], g)), m, "momentum")
            momentum = number(self.group["momentum"], "f")
            g = word("add", g, word("mul", momentum, load(m))) if self.group["nesterov"] else load(m)
        u.write(word("sub", load(p), word("mul", numbers["lr"], g)), p, "update")


class Adam(Rule):
    state = ("exp_avg", "exp_avg_sq")
    numbers = ("rate", "scale", "shrink")
    apart: ClassVar[bool] = False  # whether the decay is no part of the gradient

    def values(self, step: int) -> dict[str, float]:
        one, two = self.group["betas"]
        lr = float(self.group["lr"])
        apart = self.apart or self.group.get("decoupled_weight_decay", False)
        return {
            "rate": lr / (1.0 - one**step),
            "scale": 1.0 / math.sqrt(1.0 - two**step),
            "shrink": 1.0 - lr * self.group["weight_decay"] if apart else 1.0,
        }

    def update(self, u: Update, p: View, g: Node, state: Mapping[str, View], numbers: Mapping[str, Node]) -> None:
        one, two = self.group["betas"]
        apart = self.apart or self.group.get("decoupled_weight_decay", False)
        if not apart:
            g = self.decayed(u, p, g)
        m, v = state["exp_avg"], state["exp_avg_sq"]

        def mixed(old: View, new: Node, beta: float) -> Node:
            return word("add", word("mul", number(beta, "f"), load(old)), word("mul", number(1.0 - beta, "f"), new))

        u.write(mixed(m, g, one), m, "mean")
        u.write(mixed(v, word("mul", g, g), two), v, "square")
        below = word("add", word("mul", word("sqrt", load(v)), numbers["scale"]), number(self.group["eps"], "f"))
        before = word("mul", load(p), numbers["shrink"]) if apart else load(p)
        u.write(word("sub", before, word("div", word("mul", numbers["rate"], load(m)), below)), p, "update")


class AdamW(Adam):
    apart = True


_RULES: dict[type[torch.optim.Optimizer], type[Rule]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
}


def rules_of(optimizer: torch.optim.Optimizer) -> Sequence[Rule]:
    """A rule per group of parameters. Raises: UnsupportedError for another optimizer than SGD, Adam and AdamW."""
    rule = _RULES.get(type(optimizer))
    if rule is None:
        raise UnsupportedError(
            f"{type(optimizer).__name__} has no kernels", hint="SGD, Adam and AdamW of torch.optim have"
        )
    return [rule(group) for group in optimizer.param_groups]
