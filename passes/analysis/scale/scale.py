"""`ScaleCohomology`: a chain of tokens at all scales, the flow between them, and what does not change with scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aatc.passes.analysis.result import Result
from aatc.passes.analysis.scale.anomaly import ChargeTable, TiledLattice, anomaly_polynomial
from aatc.passes.analysis.scale.coarse_graining import (
    SCHEMES,
    LumpabilityDefect,
    ScaleConnection,
    ScaleError,
    cocycle_defect,
    lumpability_defect,
    scale_connection,
)
from aatc.passes.analysis.scale.exponents import ScalingExponent, scale_invariants
from aatc.passes.analysis.scale.fixed_points import FixedPoint, fixed_points
from aatc.passes.analysis.scale.renormalization_map import RenormalizationMap, RGFlow
from aatc.passes.analysis.scale.rg_flow import STEPS, map_flow, renormalization_flow
from aatc.passes.analysis.stochastic import row_stochastic


@dataclass(frozen=True, eq=False)
class ScaleCohomology:
    """The chain of a pattern (n, n), seen by a ``scheme`` and a ``measure`` as in `scale_connection`.

    The connections between scales are a cocycle, P₁₃ = P₁₂P₂₃, so that transport from scale to scale depends on its
    ends alone (`cocycle_defect`): that is all that "cohomology" stands for. The seed's methods are kept, with results
    in place of bare values, and corrected: its scales belonged to no chain, which the object now holds; a flow of an
    arbitrary observable has no fixed points, for its value at one scale does not determine the next, so that
    `fixed_points` takes the flow of a map, `RenormalizationMap`; its one kind of symmetry is a table of charges, or a
    lattice with a tile; and an exponent of finite data has an interval, and is a diagnostic.
    """

    pattern: Any = field(repr=False)
    scheme: str = "average"
    measure: Any = "stationary"

    def __post_init__(self) -> None:
        chain = row_stochastic(self.pattern, square=True)
        if chain.ndim != 2:
            raise ScaleError(f"one chain at a time has shape (n, n), not {chain.shape}")
        if self.scheme not in SCHEMES:
            raise ScaleError(f"there is no scheme {self.scheme!r}", hint=f"there are: {', '.join(SCHEMES)}")
        object.__setattr__(self, "pattern", chain)

    def scale_connection(self, scale1: Any, scale2: Any) -> Result[ScaleConnection]:
        """From scale 1 to the coarser scale 2; see `scale_connection`."""
        return scale_connection(self.pattern, scale1, scale2, scheme=self.scheme, measure=self.measure)

    def cocycle_defect(self, scales: Sequence[Any]) -> Result[float]:
        """How far connections between these scales are from composing; see `cocycle_defect`."""
        return cocycle_defect(self.pattern, scales, scheme=self.scheme, measure=self.measure)

    def lumpability_defect(self, scale: Any) -> Result[LumpabilityDefect]:
        """How far the chain is from being exactly lumpable to blocks; see `lumpability_defect`."""
        return lumpability_defect(self.pattern, scale, measure=self.measure)

    def renormalization_flow(
        self, observable: Any, *, scales: Sequence[int] | None = None, start: Any = None, steps: int = STEPS
    ) -> Result[RGFlow]:
        """Of an observable of the chain, its values from scale to scale (`renormalization_flow`); of a
        `RenormalizationMap`, the couplings that it makes of ``start`` (d,) in so many ``steps`` (`map_flow`)."""
        if isinstance(observable, RenormalizationMap):
            if start is None:
                raise ScaleError("a map flows from somewhere", hint="give start=, its couplings (d,)")
            return map_flow(observable, start, steps)
        return renormalization_flow(self.pattern, observable, scales=scales, scheme=self.scheme, measure=self.measure)

    def fixed_points(self, flow: RGFlow | RenormalizationMap, *, starts: Any = None) -> Result[tuple[FixedPoint, ...]]:
        """Where the map of a flow stands still, and the exponents there; see `fixed_points`."""
        return fixed_points(flow, starts=starts)

    def anomaly_polynomial(self, symmetry: ChargeTable | TiledLattice) -> Result[Any]:
        """Of charges, or of a lattice with a tile; see `anomaly_polynomial`."""
        return anomaly_polynomial(symmetry)

    def scale_invariants(
        self, structure: Any = None, *, confidence: float = 0.95
    ) -> Result[tuple[ScalingExponent, ...]]:
        """The exponents of a structure, by default of the pattern itself; see `scale_invariants`."""
        given: np.ndarray = self.pattern if structure is None else structure
        return scale_invariants(given, confidence=confidence)
