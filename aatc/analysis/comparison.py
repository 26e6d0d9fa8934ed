"""Heads, layers and checkpoints beside each other: differences of values, distances of barcodes and of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aatc.analysis.items import item_of
from aatc.passes.analysis.cohomology.barcode_vectors import barcode_distance
from aatc.passes.analysis.cohomology.persistence import Barcodes
from aatc.passes.analysis.result import AnalysisError, Result

if TYPE_CHECKING:
    from aatc.analysis.run import Analysis
    from aatc.passes.analysis.base import Finding

#: Bars of one degree that distances are taken of, the longest ones.
BARS = 400
#: Rows of weights that exist at a time.
ROWS = 256
KINDS = ("bottleneck", "wasserstein", "weights")


@dataclass(frozen=True)
class Difference:
    """An item of one pattern in two analyses. ``difference`` is second − first of numbers, and the bottleneck distance
    of barcodes of the degree that ``item`` ends in, from which ``slack`` may be off for short bars left out."""

    attention: str
    batch: int
    head: int
    item: str
    first: Any
    second: Any
    difference: float
    unit: str
    slack: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """What differs between two analyses; ``str`` shows the largest differences of every item."""

    differences: tuple[Difference, ...]

    def select(self, item: str) -> list[Difference]:
        return [d for d in self.differences if d.item == item]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, a row a difference. AnalysisError without pandas."""
        try:
            import pandas
        except ImportError:
            raise AnalysisError("data frames need pandas", hint='pip install "aatc[report]"') from None
        return pandas.DataFrame([vars(d) for d in self.differences], columns=list(Difference.__dataclass_fields__))

    def __str__(self) -> str:
        lines = []
        for item in dict.fromkeys(d.item for d in self.differences):
            d = max(self.select(item), key=lambda d: abs(d.difference))
            unit = f" {d.unit}" if d.unit else ""
            of = f"{d.attention}, head {d.head}" if d.head >= 0 else d.attention
            both = "" if isinstance(d.first, np.ndarray) else f", {d.first:.4g} → {d.second:.4g}"
            lines.append(f"{item.replace('_', ' ')}: at most {abs(d.difference):.4g}{unit} ({of}{both})")
        return "\n".join(lines)


def compare(one: Analysis | Sequence[Finding], two: Analysis | Sequence[Finding]) -> Comparison:
    """What two analyses of the same attentions say differently, as of two checkpoints or two inputs: every number they
    both have, and barcodes by their bottleneck distance. What is undecided or refused in either is left out."""
    first, second = (x if isinstance(x, Sequence) else x.findings for x in (one, two))
    other = {(f.subject, f.batch, f.head, f.item): f.result for f in second}
    found: list[Difference] = []
    for f in first:
        r, s = f.result, other.get((f.subject, f.batch, f.head, f.item))
        if not isinstance(r, Result) or not isinstance(s, Result):
            continue
        a, b = r.value, s.value
        if isinstance(a, Barcodes) and isinstance(b, Barcodes):
            for degree, (x, y) in enumerate(zip(a.bars, b.bars)):
                distance, slack = _near(x, y, "bottleneck")
                place = f.subject, f.batch, f.head, f"{f.item}_h{degree}"
                found.append(Difference(*place, x, y, distance, "nats", slack))
        elif _is_number(a) and _is_number(b):
            place = f.subject, f.batch, f.head, f.item
            change = 0.0 if a == b else float(b) - float(a)
            found.append(Difference(*place, a, b, change, item_of(f.item).unit))
    return Comparison(tuple(found))


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float, np.integer, np.floating)) and not isinstance(x, bool)


def _near(a: np.ndarray, b: np.ndarray, kind: str) -> tuple[float, float]:
    """The distance of the longest bars, and by how much those left out may change it."""
    lengths = [np.sort(x[:, 1] - x[:, 0])[::-1] for x in (a, b)]
    lightest = max((float(x[BARS]) for x in lengths if len(x) > BARS), default=0.0)
    if not np.isfinite(lightest):  # more bars without end than are looked at
        lightest = 0.0
    left = [x[x <= lightest] / 2 for x in lengths]
    slack = max(float(x.max(initial=0.0)) for x in left) if kind == "bottleneck" else float(sum(x.sum() for x in left))
    return barcode_distance(a, b, kind, lightest=lightest), slack


def head_distances(
    analysis: Analysis, kind: str = "bottleneck", *, degree: int = 1
) -> tuple[tuple[str, ...], np.ndarray]:
    """(names, distances (k, k)) of all heads of an analysis, be they of one layer or of many.

    "bottleneck" and "wasserstein" are between barcodes of ``degree``, of the 400 longest bars, and need the family
    "cohomology"; "weights" is the root of the mean Jensen–Shannon divergence of rows in nats, between heads of as many
    queries and keys, NaN elsewhere. Raises AnalysisError.
    """
    if kind not in KINDS:
        raise AnalysisError(f"there is no distance {kind!r} of heads", hint=f"there are: {', '.join(KINDS)}")
    if kind == "weights":
        return _weight_distances(analysis)
    found = [f for f in analysis.select(item="barcodes") if isinstance(f.result, Result)]
    if not found or any(degree >= len(f.result.value.bars) or degree < 0 for f in found):
        raise AnalysisError(
            f"this analysis has no barcodes of degree {degree}", hint='passes="cohomology" finds degrees 0 and 1'
        )
    batches = len({f.batch for f in found}) > 1
    names = tuple(_name(f.subject, f.head, f.batch if batches else None) for f in found)
    distances = np.zeros((len(found), len(found)))
    for i, f in enumerate(found):
        for j in range(i):
            one, two = f.result.value.bars[degree], found[j].result.value.bars[degree]
            distances[i, j] = distances[j, i] = _near(one, two, kind)[0]
    return names, distances


def _name(subject: str, head: int, batch: int | None) -> str:
    return f"{subject}.{head}" if batch is None else f"{subject}.{head} of batch {batch}"


def _weight_distances(analysis: Analysis) -> tuple[tuple[str, ...], np.ndarray]:
    patterns = [(c, b, h) for c in analysis.captured for b in range(c.sizes[0]) for h in range(c.sizes[1])]
    batches = len({c.batch[b] for c, b, _ in patterns}) > 1
    names = tuple(_name(c.name, h, c.batch[b] if batches else None) for c, b, h in patterns)
    distances = np.zeros((len(patterns), len(patterns)))
    for i, (c, b, h) in enumerate(patterns):
        for j in range(i):
            d, e, g = patterns[j]
            if c.sizes[2:] != d.sizes[2:]:
                distances[i, j] = distances[j, i] = np.nan
                continue
            total = 0.0
            for start in range(0, c.sizes[2], ROWS):
                one, two = (
                    x.weights(k, start, min(start + ROWS, c.sizes[2]), at).numpy()
                    for x, k, at in ((c, h, b), (d, g, e))
                )
                total += _divergence(one, two)
            distances[i, j] = distances[j, i] = np.sqrt(max(0.0, total / c.sizes[2]))
    return names, distances


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Σ over rows of the Jensen–Shannon divergence in nats."""
    middle = (p + q) / 2
    return sum(float((x * np.log(np.where(x > 0, x, 1.0) / np.where(x > 0, middle, 1.0))).sum()) / 2 for x in (p, q))
