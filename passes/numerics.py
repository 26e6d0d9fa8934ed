"""Whether a pass kept the numbers: the interpreter before and after it, on small random inputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from aatc.ir.core import Module
from aatc.ir.errors import AatcError, PassError
from aatc.ir.interpreter import run
from aatc.ir.parser import parse
from aatc.ir.samples import TOLERANCE, copied, difference, random_inputs

#: Seeds of the inputs, and what these are multiplied by: signed, and of more than one size.
_DRAWS = ((0, 1.0), (1, 3.0))


class Numerics:
    """Compares a module with the one that came before it, pass by pass.

    Sizes that are symbols are small; others are as they stand. Numbers are float64 where the module's text can be
    widened to it, and as the module has them otherwise. Both sides draw the same random numbers and get inputs of
    their own, which are compared afterwards, too.
    """

    def __init__(self, module: Module):
        self._before = module.clone()

    def check(self, name: str, module: Module, note: Callable[[str], None]) -> None:
        """PassError if ``module`` computes other numbers than its predecessor; ``note`` is told if that can't be
        known."""
        before, self._before = self._before, module.clone()
        pairs = [(before, module)]
        wide = widened(before), widened(module)
        if wide[0] is not None and wide[1] is not None:
            pairs.insert(0, (wide[0], wide[1]))
        for seed, scale in _DRAWS:
            for first, second in pairs:
                try:
                    want = _run(first, seed, scale)
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}"
                    continue
                self._compare(name, second, want, seed, scale)
                break
            else:
                note(f"its numbers were not compared: the module before it cannot be run: {reason}")
                return

    def _compare(self, name: str, module: Module, want: list[Any], seed: int, scale: float) -> None:
        hint = "look at the IR before and after it (aatc opt --print-after-all), or leave the pass out"
        try:
            got = _run(module, seed, scale)
        except Exception as error:
            raise PassError(
                f"pass {name} made a module that cannot be run: {type(error).__name__}: {error}", hint=hint
            ) from error
        if len(got) != len(want):
            raise PassError(f"pass {name} changed the number of results from {len(want)} to {len(got)}", hint=hint)
        for n, (g, w) in enumerate(zip(got, want, strict=True)):
            gap, good = difference(g, w)
            if not good:
                allowed = TOLERANCE.get(w.dtype, 0.0) if isinstance(w, torch.Tensor) else 0.0
                raise PassError(
                    f"pass {name} changed the numbers: result {n} differs by {gap:.2e} of its largest number "
                    f"(allowed {allowed:.0e})",
                    hint=hint,
                )


def _run(module: Module, seed: int, scale: float) -> list[Any]:
    """Results, followed by the inputs as the run left them."""
    inputs = copied(random_inputs(module, seed=seed))
    inputs = [x * scale if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(seed)
        results = run(module, *inputs)
    return [*(results if isinstance(results, (list, tuple)) else [results]), *inputs]


def widened(module: Module) -> Module | None:
    """``module`` in float64, or None if it says somewhere that it wants another precision."""
    text = str(module)
    if re.search(r"\b(bf16|f16|c64)\b|torch\.(float|half|bfloat16|double)|\barena\b", text):
        return None
    try:
        wide = parse(re.sub(r"\bf32\b", "f64", text))
        wide.verify()
    except AatcError:
        return None
    return wide
