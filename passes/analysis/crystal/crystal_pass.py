"""The analytical pass of the crystal family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from aatc.passes.analysis.attention_rows import AttentionRows
from aatc.passes.analysis.base import AnalysisPass, Study, weights_cost, with_scores
from aatc.passes.analysis.capture import CapturedAttention
from aatc.passes.analysis.result import Cost, Undecided
from aatc.passes.base import register

if TYPE_CHECKING:
    from aatc.passes.analysis.pattern_source import PatternSource


#: Features of a query from which scores of random tokens look like independent noise.
WIDTH = 16


@dataclass(frozen=True, eq=False)
class HeadTable:
    """The mask or bias (n, m) of one head, evaluated whenever it is asked for."""

    seen: CapturedAttention = field(repr=False)
    head: int
    batch: int
    part: str

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        mask = self.seen.attention.mask
        program = mask if mask is not None and self.part == "mask" else self.seen.parts[1]
        table: np.ndarray = self.seen.evaluate(program, self.head, batch=self.batch).numpy()
        return table if dtype is None else table.astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class CentredLogits:
    """Logarithms of the weights of one head less the means of rows and columns, (r, c): of the last queries and first
    keys where the head is causal, so that no masked pair is among them. What is left of scores then is what depends on
    query and key together."""

    pattern: Any = field(repr=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        weights = np.asarray(self.pattern, dtype=np.float64)
        n, m = weights.shape
        if n == m and n > 1 and not np.triu(weights, 1).any():
            weights = weights[n // 2 :, : n - n // 2]
        with np.errstate(divide="ignore"):
            logits = np.log(weights)
        if not np.isfinite(logits).all():
            return logits
        logits -= logits.mean(1, keepdims=True)
        logits -= logits.mean(0, keepdims=True)
        return logits if dtype is None else logits.astype(dtype, copy=False)


@register
@dataclass(frozen=True)
class AnalyzeCrystal(AnalysisPass):
    """Translations of every pattern, mask and bias, the wallpaper group of patterns that repeat in two directions, and
    what a head's Toeplitz part is: its share, the winding of its symbol, and the speed of long waves. Where no shift is
    exact, a lattice is looked for in `CentredLogits`, at one chance in a million.

    Patterns beyond ``states`` tokens, or the memory, are pooled to tiles; their masks and biases are left out.
    """

    states: int = 1024
    name: ClassVar[str] = "analyze-crystal"
    family: ClassVar[str] = "crystal"

    def estimate_cost(self, n: int, dim: int) -> Cost:
        weights, k = weights_cost(n, dim), min(n, self.states)
        # of a mask and a bias, which are evaluated and compared with themselves, too
        return Cost(1e-2 + weights.seconds + 4.5e-7 * k * k, weights.bytes + 160.0 * k * k)

    def _memory(self, study: Study) -> int:
        return min(study.memory, 8 * self.states**2)

    def estimate_pattern(self, seen: AttentionRows, study: Study) -> Cost:
        states = max(seen.pooled_sizes(self._memory(study)))
        return with_scores(self.estimate_cost(states, seen.width), seen, states)

    def of_pattern(self, seen: AttentionRows, head: int, batch: int, study: Study) -> Mapping[str, Any]:
        from aatc.passes.analysis.pattern_source import PatternSource, rows_of_laws

        memory = self._memory(study)
        pattern = seen.pattern(head, batch, memory=memory)
        whole = pattern.kind == "whole"
        rows = rows_of_laws(pattern.array)
        found = dict(_tables(seen, head, batch)) if whole else {}
        if rows is None:
            return {"lattice": Undecided("rows with a key", "some queries see no key"), **found}
        given = () if whole else (f"tiles of {pattern.block} tokens taken as tokens",)
        narrow = 0 < seen.width < WIDTH
        return {**_pattern(rows, PatternSource(seen, head, batch, memory), given, narrow), **found}


def _tables(seen: AttentionRows, head: int, batch: int) -> Mapping[str, Any]:
    """Translations of the mask and of the bias of a head that was captured with its programs."""
    from aatc.ir.score.expr import ZERO
    from aatc.passes.analysis.crystal.detection import detect_lattice

    if not isinstance(seen, CapturedAttention):
        return {}
    found = {}
    parts = {"mask": seen.attention.mask is not None, "bias": seen.parts[1].body is not ZERO}
    for part in (p for p, there in parts.items() if there):
        found[f"{part}_translations"] = detect_lattice(HeadTable(seen, head, batch, part), method="exact")
    return found


def _pattern(
    rows: np.ndarray, source: PatternSource, given: tuple[str, ...], narrow: bool = False
) -> Mapping[str, Any]:
    from dataclasses import replace

    from aatc.passes.analysis.crystal.bands import Crystal, toeplitz_part, winding_number
    from aatc.passes.analysis.crystal.detection import detect_lattice
    from aatc.passes.analysis.crystal.lattices import CrystalError
    from aatc.passes.analysis.crystal.verify_crystal import witnessed
    from aatc.passes.analysis.crystal.wallpaper import compute_symmetries

    def about_source(result: Any) -> Any:
        data = {**result.witness.data, "pattern": source}
        return replace(result, witness=replace(result.witness, data=data), assumptions=(*given, *result.assumptions))

    lattice = detect_lattice(rows, method="exact")
    found: dict[str, Any] = {"lattice": about_source(lattice)}
    if not lattice.value.rank:
        logits = CentredLogits(rows)
        if narrow:
            found["lattice"] = Undecided(
                f"{WIDTH} features a query", "scores of low rank are no noise: no shift is exact"
            )
        elif np.isfinite(np.asarray(logits)).all():
            noisy = detect_lattice(logits, method="spectral", level=1e-6)
            data = {**noisy.witness.data, "pattern": CentredLogits(source)}
            found["lattice"] = replace(
                noisy, witness=replace(noisy.witness, data=data), assumptions=(*given, *noisy.assumptions)
            )
        else:
            found["lattice"] = Undecided("weights above 0", "some pairs are masked, or underflow: no shift is exact")
    if lattice.value.exact and lattice.value.rank == 2:
        try:
            found["wallpaper_group"] = about_source(compute_symmetries(rows))
        except CrystalError as error:
            found["wallpaper_group"] = Undecided("a whole cell", error.message)
    n, m = rows.shape
    if n == m:
        part = toeplitz_part(rows).value
        hoppings = Crystal(part.shifts[:, None], part.blocks.astype(np.complex128))
        figures = {
            "toeplitz_share": float(min(1.0, part.share)),
            "symbol_winding": winding_number(hoppings),
            "sound_speed": float(np.sqrt(part.shifts**2 @ part.blocks[:, 0, 0] / 2)),
        }
        for figure, value in figures.items():
            if isinstance(value, Undecided):
                found[figure] = value
            else:
                level = "P3" if figure == "symbol_winding" else "P2"
                data = {"pattern": source, "figure": figure}
                found[figure] = witnessed(value, "head", data, 1e-9, level=level, assumptions=given)
    return found
