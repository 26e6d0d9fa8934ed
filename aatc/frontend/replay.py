"""Runs an IR text again: random inputs of the right types, passes and backend, against the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from aatc.ir.samples import TOLERANCE, ReplayError, copied, difference, random_inputs, sizes_of

__all__ = ["TOLERANCE", "ReplayError", "copied", "difference", "random_inputs", "replay", "sizes_of"]


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
