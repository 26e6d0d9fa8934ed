"""What ways to the barcodes of a Rips filtration cost, and edges collapsed before the dearer ones.

Estimates are those of independent random dissimilarities, whose complexes are the dearest of their size: measured on
one thread at 64 to 512 points. Patterns with structure take a fraction.

Source: J.-D. Boissonnat, S. Pritam, "Edge collapse and persistence of flag complexes", SoCG 2020.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aatc.passes.analysis.result import Cost

Reals = NDArray[np.float64]
# Measured on heads of 64 to 1,024 tokens, whole and cut: seconds per pair of points; per edge and point.
_SECONDS_PER_PAIR = 2.5e-7
_SECONDS_PER_CORNER = 1.5e-9
# (seconds, power of the edges over those of 128 points) in degree 1 and 2; a degree more costs as 2 does beside 1.
_MEASURED = {"ripser": ((1.3, 2.6), (60.0, 3.7)), "gudhi": ((0.3, 2.2), (15.0, 3.0))}
_EDGES = 128 * 127 / 2


def route_cost(route: str, n: int, max_degree: int, edges: int, modulus: int = 2) -> Cost:
    """What a route takes for n points and so many joined pairs, degrees 0 to ``max_degree``."""
    held = 2**22 + 60.0 * n**2
    if route == "annotations":
        seconds = 0.005 + _SECONDS_PER_PAIR * n**2 + _SECONDS_PER_CORNER * edges * n
        if modulus > 2:  # sums of coordinates as numbers, not bits
            seconds += 3e-5 * edges + 0.5 * (2 * edges / 256**2) ** 2
        return Cost(seconds, held + 100.0 * edges + (0.02 if modulus == 2 else 0.6) * n**3)
    size = edges / _EDGES
    neighbours = 2 * edges / max(n, 1)
    if route == "own":
        cells = n + edges * (1 + neighbours / 3) ** max(1, max_degree)
        return Cost(0.01 + 5e-6 * cells**1.3, held + 400.0 * cells)
    (first, power), (second, higher) = _MEASURED[route]
    seconds = first * size**power
    for _ in range(max_degree - 1):
        seconds = max(seconds, second * size**higher)
        second, higher = second * second / first, higher + 1.1
    collapse = 0.02 * size**1.4
    cells = edges * (1 + neighbours / 3) ** max_degree
    return Cost(0.01 + collapse + seconds, held + (200.0 if route == "gudhi" else 60.0) * cells)


def collapsed(d: Reals) -> tuple[Reals, int] | None:
    """The filtration of fewer edges with the same barcodes in every degree and field, as dissimilarities (n, n) with ∞
    where there is no edge, and how many are left; None where gudhi, which does this, is not installed."""
    try:
        from gudhi import SimplexTree
    except ImportError:
        return None
    tree: Any = SimplexTree.create_from_array(d, float(d[np.isfinite(d)].max(initial=0.0)))
    tree.collapse_edges()
    edges = [(s[0], s[1], value) for s, value in tree.get_skeleton(1) if len(s) == 2]
    out = np.full_like(d, np.inf)
    np.fill_diagonal(out, 0.0)
    if edges:
        i, j, values = (np.array(column) for column in zip(*edges))
        out[i, j] = out[j, i] = values
    return out, len(edges)
