"""Inputs for a module made up at random, and results compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from aatc.ir.core import Module, Value
from aatc.ir.dims import Dim
from aatc.ir.errors import AatcError
from aatc.ir.types import BOOL, FLOAT, INT, TensorType, torch_dtype

#: Largest difference, relative to the largest number of the reference, that counts as agreement.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class ReplayError(AatcError):
    """A program does not agree with the reference, or its inputs cannot be made up."""


def sizes_of(module: Module, given: Mapping[str, int] = {}) -> dict[str, int]:
    """A size for every symbolic dimension: ``given``, or a small number inside its range."""
    sizes = {}
    for n, (name, (low, high)) in enumerate(module.dims.items()):
        size = given.get(name, max(low, 5 + 2 * n) if high is None else max(low, min(high, 5 + 2 * n)))
        if size < low or (high is not None and size > high):
            raise ReplayError(f"{name} = {size} is outside its range [{low}, {'inf' if high is None else high}]")
        sizes[name] = size
    return sizes


def random_inputs(module: Module, *, seed: int = 0, sizes: Mapping[str, int] = {}) -> list[Any]:
    """Inputs for the entry of ``module``: normal numbers, zeros and ones for integers and truth values.

    Numbers in (0.5, 1.5) stand in for variances; a plain int takes the size of the dimension it is named
    after. Symbols that ``sizes`` lacks get a small size of their own.
    """
    generator = torch.Generator().manual_seed(seed)
    known = sizes_of(module, sizes)
    return [_made(v, known, generator) for v in module.entry.args]


def _made(value: Value, sizes: Mapping[str, int], generator: torch.Generator) -> Any:
    try:
        return _input(value, sizes, generator)
    except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise ReplayError(
            f"no input can be made up for %{value.name}: {value.type}: {str(error).strip().partition(chr(10))[0]}",
            hint="say smaller sizes, or hand in inputs",
        ) from None


def _input(value: Value, sizes: Mapping[str, int], generator: torch.Generator) -> Any:
    t = value.type
    if t == INT:
        # the printer tells arguments of one name apart: %N_1 is a second one for N
        return sizes.get(value.name, sizes.get(re.sub(r"_\d+$", "", value.name), 1))
    if t == FLOAT:
        return 0.5
    if t == BOOL:
        return True
    if not isinstance(t, TensorType):
        raise ReplayError(f"no input can be made up for %{value.name}: {t}", hint="hand in inputs with --inputs")
    shape, dtype = [_size(d, sizes) for d in t.shape], torch_dtype(t.dtype)
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    if value.name.endswith("var"):
        return (0.5 + torch.rand(shape, generator=generator)).to(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _size(dim: Dim, sizes: Mapping[str, int]) -> int:
    try:
        return dim.evaluate(sizes)
    except KeyError as error:
        raise ReplayError(
            f"the size of {error.args[0]} is unknown", hint="the module's `dims` line lists symbols"
        ) from None


def copied(inputs: Sequence[Any]) -> list[Any]:
    """The same inputs in fresh memory, so that one run's in-place work does not reach the next."""
    return [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]


def difference(got: Any, want: Any) -> tuple[float, bool]:
    """The relative difference of two results, and whether it counts as agreement."""
    if not isinstance(want, torch.Tensor):
        return (0.0, True) if got == want else (float("inf"), False)
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf"), False
    if want.numel() == 0 or not want.dtype.is_floating_point:
        return (0.0, True) if torch.equal(got, want) else (float("inf"), False)
    same = (got == want) | (got.isnan() & want.isnan())
    scale = max(want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0, 1e-30)
    gap = ((got.double() - want.double()).abs() / scale).masked_fill(same, 0.0).max().item()
    return gap, gap <= TOLERANCE.get(want.dtype, 1e-4)
