"""Runs an IR text again: random inputs of the right types, passes and backend, against the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from aatc.ir.core import Module, Op
from aatc.ir.errors import AatcError, ShapeError
from aatc.ir.interpreter import Interpreter, failure
from aatc.ir.samples import TOLERANCE, ReplayError, copied, difference, random_inputs, sizes_of
from aatc.ir.tile_evaluate import Refused
from aatc.ir.types import TensorType, torch_dtype

__all__ = ["TOLERANCE", "ReplayError", "copied", "difference", "random_inputs", "reference_run", "replay", "sizes_of"]


class _Told(Interpreter):
    """Says of an operation that fails which one it was."""

    def evaluate(self, op: Op, values: list[Any]) -> Sequence[Any]:
        try:
            return super().evaluate(op, values)
        except (AatcError, Refused):
            raise
        except Exception as error:
            raise ReplayError(failure(op, error), where=str(op.loc) if op.loc else None) from error


def reference_run(module: Module, values: Sequence[Any]) -> list[Any]:
    """The results of the entry function in the reference interpreter. Raises: ShapeError where a value does not fit its
    argument, ReplayError where an operation fails, BackendError where it is one of torch's."""
    for arg, value in zip(module.entry.args, values, strict=False):
        if isinstance(arg.type, TensorType) and isinstance(value, torch.Tensor):
            if value.dtype != torch_dtype(arg.type.dtype):
                raise ShapeError(f"argument %{arg.name} is {arg.type}, got {value.dtype} {tuple(value.shape)}")
        elif isinstance(value, torch.Tensor) or not isinstance(value, (bool, int, float, list, tuple)):
            raise ShapeError(f"argument %{arg.name} is {arg.type}, got a {type(value).__name__}")
    try:
        return _Told(module).call(module.entry.name, values)
    except Refused:
        raise ReplayError(f"a condition of @{module.entry.name} does not hold on these values") from None


def replay(
    path: str | Path,
    *,
    pipeline: str,
    backend: str = "auto",
    seed: int = 0,
    sizes: Mapping[str, int] = {},
) -> float:
    """Compiles the IR text at ``path`` and compares one run with the reference interpreter's.

    Returns the largest relative difference; raises what compiling raises, and ReplayError when they disagree.
    """
    from aatc import backends, passes
    from aatc.ir.interpreter import run
    from aatc.ir.parser import parse

    module = parse(Path(path).read_text("utf-8"))
    inputs = random_inputs(module, seed=seed, sizes=sizes)
    found = backends.get(backend)
    result = passes.Pipeline.parse(pipeline).run(module.clone(), target=found.target())
    program = found.build(result.module)
    torch.manual_seed(seed)
    got = program.main(*copied(inputs))
    torch.manual_seed(seed)
    want = run(module, *copied(inputs))
    want = list(want) if isinstance(want, (list, tuple)) else [want]
    worst, agree = 0.0, len(got) == len(want)
    for n, (g, w) in enumerate(zip(got, want, strict=False)):
        gap, good = difference(g, w)
        print(f"output {n}: relative difference {gap:.2e}{'' if good else '  <- too large'}")
        worst, agree = max(worst, gap), agree and good
    if not agree:
        raise ReplayError(f"the compiled program differs from the reference by {worst:.2e}")
    return worst
