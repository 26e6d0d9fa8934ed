"""The analytical pass of the arithmetic family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from aatc.ir.core import Func, Module, Value
from aatc.ir.types import TensorType
from aatc.passes.analysis.attention_rows import AttentionRows
from aatc.passes.analysis.base import AnalysisPass, Study, weights_cost
from aatc.passes.analysis.capture import CapturedAttention
from aatc.passes.analysis.result import Cost, Result, Undecided
from aatc.passes.base import register


@register
@dataclass(frozen=True)
class AnalyzeArithmetic(AnalysisPass):
    """Heights of constants, Ihara zeta functions of patterns, the motivic class of the program's live ranges.

    The graph of a zeta function is {max(A, Aᵀ) ≥ 1/m} on the pattern pooled to m ≤ ``nodes`` tiles. Heights are those
    of the score's and the mask's numbers, tensors of at most ``constants`` elements, as exact dyadic rationals.
    """

    nodes: int = 64
    constants: int = 4096
    length: int = 8
    name: ClassVar[str] = "analyze-arithmetic"
    family: ClassVar[str] = "arithmetic"

    def estimate_cost(self, n: int, dim: int) -> Cost:
        from aatc.passes.analysis.arithmetic.zeta import estimate_cost

        zeta, weights = estimate_cost(min(n, self.nodes)), weights_cost(n, dim)
        return Cost(2e-3 + 2 * zeta.seconds + weights.seconds, zeta.bytes + weights.bytes)

    def estimate_pattern(self, seen: AttentionRows, study: Study) -> Cost:
        return self._estimate_square(seen)

    def of_pattern(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        found = self._constants(seen) if isinstance(seen, CapturedAttention) else {}
        n, m = seen.sizes[2:]
        if n != m:
            return {**found, "ihara_zeta": Undecided("square patterns", "queries and keys are different tokens")}
        from aatc.passes.analysis.arithmetic.verify_graphs import CyclesWitness
        from aatc.passes.analysis.arithmetic.zeta import ihara_polynomial

        pooled = seen.coarse(head, batch, nodes=self.nodes)
        # even weights, which rounding puts on either side of 1/m, are edges
        both = np.maximum(pooled.array, pooled.array.T) >= (1 - 1e-9) / len(pooled.array)
        np.fill_diagonal(both, False)
        zeta = ihara_polynomial(both.astype(np.int64))
        given = (f"tiles of {pooled.block} tokens", f"weights of at least 1/{len(pooled.array)}")
        found["ihara_zeta"] = Result(zeta.value, "P0", witness=zeta.witness, assumptions=given)
        cycles, counted = zeta.value.primes(self.length), CyclesWitness(zeta.witness, self.length)
        found["cycles_by_length"] = Result(cycles, "P0", witness=counted, assumptions=given)
        return found

    def _constants(self, seen: CapturedAttention) -> dict[str, Any]:
        from aatc.passes.analysis.arithmetic.heights import integer_constants
        from aatc.passes.analysis.arithmetic.places import RationalError

        programs = (seen.attention.score, seen.attention.mask)
        used = {p.name for program in programs if program is not None for p in program.params}  # no seeds of dropout
        found: dict[str, Any] = {}
        for name in seen.attention.names[3:]:
            tensor = seen.tensors[name].reshape(-1)
            countable = name in used and tensor.dtype != torch.bool and 0 < len(tensor) <= self.constants
            if not countable or not bool(tensor.isfinite().all()):
                continue
            try:
                exact = integer_constants(tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy())
            except RationalError as error:
                found[f"bits_of_{name}"] = Undecided("constants of float64", error.message)
            else:
                found[f"bits_of_{name}"] = Result(exact.value.bits, "P0", witness=exact.witness)
        return found

    def estimate_module(self, module: Module) -> Cost:
        from aatc.passes.analysis.arithmetic.motivic import estimate_cost

        return estimate_cost(live_ranges(module.entry))

    def of_module(self, module: Module) -> Mapping[str, Any]:
        from aatc.passes.analysis.arithmetic.motivic import interference_graph, motivic_class

        ranges = live_ranges(module.entry)
        if not ranges:
            return {}
        motive = motivic_class(interference_graph(ranges))
        if isinstance(motive, Undecided):
            return {"buffer_class": motive}
        given = ("one buffer a value, no two live ones in the same",)
        return {
            "buffer_class": Result(motive.value, motive.proof_level, witness=motive.witness, assumptions=given),
            "least_buffers": Result(
                motive.value.chromatic_number, motive.proof_level, witness=motive.witness, assumptions=given
            ),
        }


def live_ranges(func: Func) -> list[tuple[int, int]]:
    """[made, used for the last time) of every tensor that an operation of ``func`` makes, in its order."""
    last: dict[Value, int] = {}
    for n, op in enumerate(func.body.ops):
        for v in op.operands:
            last[v] = n
    return [
        (n, last.get(v, n)) for n, op in enumerate(func.body.ops) for v in op.results if isinstance(v.type, TensorType)
    ]
