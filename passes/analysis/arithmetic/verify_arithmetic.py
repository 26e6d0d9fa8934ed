"""Witnesses of the arithmetic analyses, and the small programs that re-check them in integers.

A deviation of an exact fact is reported as infinity. Nothing here uses the code that made a witness.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import sympy
from mpmath.ctx_mp import MPContext

from aatc.passes.analysis.result import verify

Form = dict[tuple[int, ...], int]
WRONG = float("inf")
PRIMES = (2147483647, 2147483629, 2147483587)
ORBIT_BITS = 1 << 16
PRECISION_BITS = 1 << 15
COLOURINGS = 200_000


@dataclass(frozen=True)
class ProductFormulaWitness:
    """``orders`` claims to hold every prime of ``value`` with its exponent."""

    value: Fraction
    orders: dict[int, int]


@dataclass(frozen=True)
class AdelicWitness:
    """max|x_i| of ``coordinates`` times ∏ p^``orders[p]`` claims to be the height ``multiplicative``."""

    coordinates: tuple[Fraction, ...]
    orders: dict[int, int]
    multiplicative: int


@dataclass(frozen=True)
class HeightWitness:
    """``primitive`` claims to be proportional to ``coordinates``, without a common divisor, largest entry
    ``multiplicative``."""

    coordinates: tuple[Fraction, ...]
    primitive: tuple[int, ...]
    multiplicative: int


@dataclass(frozen=True, eq=False)
class IntegerWitness:
    """``scale``·``integers`` claims to be ``values``, bit for bit."""

    values: np.ndarray
    scale: float
    integers: np.ndarray


@dataclass(frozen=True, eq=False)
class OrbitWitness:
    """φ^{tail + period}(start) claims to be φ^tail(start), with no repetition before."""

    forms: tuple[Form, ...]
    start: tuple[int, ...]
    tail: int
    period: int


@dataclass(frozen=True, eq=False)
class CanonicalHeightWitness:
    """``value`` ± ``error`` claims to be the canonical height of ``start``; the identities
    scale·X_i^exponent = Σ_j cofactors[i][j] F_j claim to bound |h(φx) − d·h(x)|."""

    forms: tuple[Form, ...]
    start: tuple[int, ...]
    value: float
    error: float
    scale: int
    exponent: int
    cofactors: tuple[tuple[Form, ...], ...]
    degree: int


@dataclass(frozen=True, eq=False)
class IharaWitness:
    """(1 − u²)^``exponent`` Σ ``determinant[k]`` u^k claims to be 1/L(u) of the graph on ``n`` vertices whose ``edges``
    (k, 2) carry ``transports`` (k, r, r)."""

    n: int
    edges: np.ndarray
    transports: np.ndarray
    exponent: int
    determinant: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ChromaticWitness:
    """``coefficients``, from the constant up, claim to be the chromatic polynomial of the graph with ``edges`` (k, 2);
    ``elimination`` claims to begin a perfect elimination order."""

    n: int
    edges: np.ndarray
    coefficients: tuple[int, ...]
    elimination: tuple[int, ...]


@verify.register
def _product_formula(witness: ProductFormulaWitness) -> float:
    """0 if the primes are primes and |value| = ∏ p^e."""
    product = Fraction(1)
    for p, e in witness.orders.items():
        product *= Fraction(p) ** e
    right = all(sympy.isprime(p) and e for p, e in witness.orders.items()) and product == abs(witness.value)
    return 0.0 if right else WRONG


def _order(x: Fraction, p: int) -> int:
    order, above, below = 0, abs(x.numerator), x.denominator
    while above % p == 0:
        above, order = above // p, order + 1
    while below % p == 0:
        below, order = below // p, order - 1
    return order


@verify.register
def _adelic(witness: AdelicWitness) -> float:
    """0 if each order is −min_i v_p(x_i) and the places multiply to the height of an integer point."""
    points = [x for x in witness.coordinates if x]
    product = max(abs(x) for x in points)
    for p, order in witness.orders.items():
        if not sympy.isprime(p) or -min(_order(x, p) for x in points) != order:
            return WRONG
        product *= Fraction(p) ** order
    scaled = [x * witness.multiplicative / max(abs(y) for y in points) for x in points]
    whole = all(x.denominator == 1 for x in scaled) and math.gcd(*(x.numerator for x in scaled)) == 1
    return 0.0 if whole and product == witness.multiplicative else WRONG


@verify.register
def _height(witness: HeightWitness) -> float:
    """0 if all cross products agree, the gcd is 1 and the largest entry is the height."""
    pivot = next(i for i, x in enumerate(witness.coordinates) if x)
    x, whole = witness.coordinates, witness.primitive
    parallel = len(x) == len(whole) and all(a * whole[pivot] == x[pivot] * b for a, b in zip(x, whole))
    right = parallel and math.gcd(*whole) == 1 and max(map(abs, whole)) == witness.multiplicative
    return 0.0 if right else WRONG


@verify.register
def _integers(witness: IntegerWitness) -> float:
    """The largest |scale·integer − value|: the product taken in the values' own type, or in rationals where the
    integers are out of its range."""
    values, integers = witness.values, witness.integers
    if values.dtype.kind == "f" and max(abs(int(integers.max())), abs(int(integers.min()))) <= float(
        np.finfo(values.dtype).max
    ):
        product = values.dtype.type(witness.scale) * integers.astype(np.float64).astype(values.dtype)
        return float(np.abs(product.astype(np.float64) - values.astype(np.float64)).max())
    pairs = zip(integers.reshape(-1).tolist(), values.reshape(-1).tolist())
    return float(max(abs(Fraction(witness.scale) * whole - Fraction(x)) for whole, x in pairs))


def _step(forms: tuple[Form, ...], at: tuple[int, ...]) -> tuple[int, ...]:
    image = [_value(form, at) for form in forms]
    common = math.gcd(*image)
    sign = 1 if next(x for x in image if x) > 0 else -1
    return tuple(sign * x // common for x in image)


@verify.register
def _orbit(witness: OrbitWitness) -> float:
    """0 if the first return is the one that is claimed."""
    points = [witness.start]
    for _ in range(witness.tail + witness.period):
        points.append(_step(witness.forms, points[-1]))
    first = len(set(points)) == len(points) - 1
    return 0.0 if witness.period > 0 and first and points[-1] == points[witness.tail] else WRONG


def _times(p: Form, q: Form) -> Form:
    out: Form = {}
    for (a, x), (b, y) in itertools.product(p.items(), q.items()):
        key = tuple(i + j for i, j in zip(a, b))
        out[key] = out.get(key, 0) + x * y
    return out


@verify.register
def _canonical(witness: CanonicalHeightWitness) -> float:
    """By how much |value − h(φⁿx)/dⁿ| exceeds C/(dⁿ(d − 1)) and the error, n so large that C/(dⁿ(d − 1)) is a small
    part of the error. Infinity where the identities do not hold, or the orbit stays too wide."""
    d, size = witness.degree, len(witness.forms)
    if d < 2 or not witness.scale or any(sum(powers) != d for form in witness.forms for powers in form):
        return WRONG
    for i, row in enumerate(witness.cofactors):
        total: Form = {}
        for g, f in zip(row, witness.forms):
            for powers, c in _times(g, f).items():
                total[powers] = total.get(powers, 0) + c
        wanted = {tuple(witness.exponent if i == j else 0 for j in range(size)): witness.scale}
        if {k: c for k, c in total.items() if c} != wanted:
            return WRONG
    upper = max(sum(map(abs, f.values())) for f in witness.forms)
    lower = max(sum(abs(c) for g in row for c in g.values()) for row in witness.cofactors)
    room = math.log(max(upper, lower)) / (d - 1)
    at, exact = witness.start, 0
    while max(map(abs, at)).bit_length() * d <= ORBIT_BITS and exact < 64:
        at, exact = _step(witness.forms, at), exact + 1
    goal = max(witness.error, 1e-16) / 16
    more = max(0, math.ceil(math.log(max(room, goal) / goal, d)) - exact)
    height = _height_after(witness, at, more)
    if height is None:
        return WRONG
    context = _decimal(40)
    power = context.mpf(d) ** (exact + more)
    off = abs(context.mpf(witness.value) - height / power)
    return float(max(off - room / power - witness.error - context.mpf(10) ** -30, 0))


def _decimal(digits: int) -> MPContext:
    context = MPContext()
    context.dps = digits
    return context


def _height_after(witness: CanonicalHeightWitness, at: tuple[int, ...], steps: int) -> Any | None:
    """h(φⁿx) = log‖Fⁿ(X)‖ − Σ dⁿ⁻¹⁻ᵏ log gcd F(X_k) for primitive X and n = ``steps``, to some 30 digits of dⁿ; None
    where 2¹⁵ bits do not suffice.

    The gcds divide ``scale``, and are read from residues modulo its (n + 1)-th power, of which each step leaves one
    power less. The real orbit is followed as integers and an exponent of 2, with a bound of what rounding took away.
    """
    d, context = witness.degree, _decimal(60 + math.ceil(steps * math.log10(witness.degree)))
    modulus, removed, residues = abs(witness.scale) ** (steps + 1), context.mpf(0), list(at)
    for _ in range(steps):
        image = [_value(form, residues) for form in witness.forms]
        common = math.gcd(witness.scale, *image)
        modulus //= abs(witness.scale)
        residues = [x // common % modulus for x in image]
        removed = d * removed + context.log(common)
    bits = 256
    while bits <= PRECISION_BITS:
        found = _real_orbit(witness, at, steps, bits)
        if found is not None:
            mantissa, exponent = found
            return context.log(mantissa) + exponent * context.log(2) - removed
        bits *= 2
    return None


def _real_orbit(witness: CanonicalHeightWitness, at: tuple[int, ...], steps: int, bits: int) -> tuple[int, int] | None:
    """(m, e) with ‖Fⁿ(X)‖ = m·2^e within a factor 1 ± 2⁻¹²⁸; None where ``bits`` do not suffice.

    Coordinates are (m_i ± r)·2^e; |F_i(m + δ) − F_i(m)| ≤ ‖F_i‖₁((|m| + r)^d − |m|^d) for |δ| ≤ r.
    """
    d, norm = witness.degree, max(sum(map(abs, f.values())) for f in witness.forms)
    mantissas, exponent, radius = list(at), 0, 0
    for _ in range(steps + 1):
        largest = max(map(abs, mantissas))
        if radius << 128 > largest:
            return None
        drop = max(0, largest.bit_length() - bits)
        mantissas = [m >> drop for m in mantissas]
        radius, exponent = ((radius >> drop) + 2 if drop or radius else 0), exponent + drop
        last = max(map(abs, mantissas)), exponent
        top = last[0]
        mantissas = [_value(form, mantissas) for form in witness.forms]
        radius, exponent = norm * ((top + radius) ** d - top**d), d * exponent
    return last


def _value(form: Form, at: Sequence[int]) -> int:
    return sum(c * math.prod(x**e for x, e in zip(at, powers)) for powers, c in form.items())


def _determinant(matrix: np.ndarray, prime: int) -> int:
    """The determinant modulo a prime below 2³¹ by elimination."""
    work, value = matrix % prime, 1
    for k in range(len(work)):
        pivots = np.flatnonzero(work[k:, k])
        if len(pivots) == 0:
            return 0
        swap = k + int(pivots[0])
        if swap != k:
            work[[k, swap]] = work[[swap, k]]
            value = -value
        value = value * int(work[k, k]) % prime
        factors = work[k + 1 :, k] * pow(int(work[k, k]), -1, prime) % prime
        work[k + 1 :, k:] = (work[k + 1 :, k:] - factors[:, None] * work[k, k:] % prime) % prime
    return value % prime


def _edge_determinant(witness: IharaWitness, u: int, prime: int) -> int:
    """det(I − uB_ρ) over directed edges, modulo a prime."""
    r, k = witness.transports.shape[-1], len(witness.edges)
    inverse = np.rint(np.linalg.inv(witness.transports)).astype(np.int64)
    carried = np.concatenate([witness.transports, inverse])
    tails, heads = np.concatenate([witness.edges, witness.edges[:, ::-1]]).T
    table = np.eye(2 * k * r, dtype=np.int64).reshape(2 * k, r, 2 * k, r)
    for e, f in np.argwhere(heads[:, None] == tails[None, :]):
        if f != (e + k) % (2 * k):
            table[e, :, f, :] -= u * carried[e]
    return _determinant(table.reshape(2 * k * r, 2 * k * r), prime)


def _vertex_determinant(witness: IharaWitness, u: int, prime: int) -> int:
    """(1 − u²)^{r(|E|−|V|)} det(I − uA_ρ + u²Q), modulo a prime."""
    r, n = witness.transports.shape[-1], witness.n
    table = np.eye(n * r, dtype=np.int64).reshape(n, r, n, r)
    inverses = np.rint(np.linalg.inv(witness.transports)).astype(np.int64)
    for (i, j), forward, backward in zip(witness.edges, witness.transports, inverses):
        table[i, :, j, :] -= u * forward
        table[j, :, i, :] -= u * backward
    degrees = np.bincount(witness.edges.reshape(-1), minlength=n)
    flat = table.reshape(n * r, n * r) % prime
    flat[np.arange(n * r), np.arange(n * r)] += u * u % prime * np.repeat(degrees - 1, r)
    power = pow((1 - u * u) % prime, r * (len(witness.edges) - n), prime)
    return power * _determinant(flat, prime) % prime


@verify.register
def _ihara(witness: IharaWitness) -> float:
    """0 if the polynomial agrees with a determinant at a random number modulo each of three primes: that of directed
    edges where it is small enough, otherwise that of vertices. A wrong polynomial passes with odds below 10⁻²⁰."""
    draw = random.Random(repr(witness.determinant))
    small = 0 < 2 * len(witness.edges) * witness.transports.shape[-1] <= 300
    for prime in PRIMES:
        u = draw.randrange(2, prime - 1)
        claimed = pow((1 - u * u) % prime, witness.exponent, prime)
        claimed = claimed * (sum(c * pow(u, k, prime) for k, c in enumerate(witness.determinant)) % prime) % prime
        found = (_edge_determinant if small else _vertex_determinant)(witness, u, prime)
        if claimed != found:
            return WRONG
    return 0.0


def _colourings(witness: ChromaticWitness, q: int) -> int:
    """Assignments of q colours that differ along every edge, by looking at all q^n."""
    codes = np.arange(q**witness.n)
    legal = np.ones(len(codes), dtype=bool)
    for v, w in witness.edges:
        legal &= codes // q ** int(v) % q != codes // q ** int(w) % q
    return int(legal.sum())


@verify.register
def _chromatic(witness: ChromaticWitness) -> float:
    """0 if the leading coefficients are 1 and −|E|, all colourings with few colours are counted right (up to 200 000
    assignments a count), and a full elimination order, if given, is one and yields the same
    values at a random number modulo each of three primes. A wrong polynomial passes that with odds below 10⁻¹⁵."""
    c, n = witness.coefficients, witness.n
    if len(c) != n + 1 or c[n] != 1 or (n > 0 and c[n - 1] != -len(witness.edges)):
        return WRONG
    q = 1
    while q <= n + 1 and q**n <= COLOURINGS:
        if sum(x * q**k for k, x in enumerate(c)) != _colourings(witness, q):
            return WRONG
        q += 1
    if len(witness.elimination) < n:
        return 0.0
    degrees = _elimination_degrees(witness)
    if degrees is None:
        return WRONG
    draw = random.Random(repr(c))
    for prime in PRIMES:
        u, claimed, product = draw.randrange(prime), 0, 1
        for x in reversed(c):
            claimed = (claimed * u + x) % prime
        for degree in degrees:
            product = product * (u - degree) % prime
        if claimed != product:
            return WRONG
    return 0.0


def _elimination_degrees(witness: ChromaticWitness) -> list[int] | None:
    """How many later neighbours each vertex of the elimination order has; None unless it names every vertex once and
    the later neighbours of each are adjacent to each other."""
    if sorted(witness.elimination) != list(range(witness.n)):
        return None
    place = {v: i for i, v in enumerate(witness.elimination)}
    later: dict[int, set[int]] = {v: set() for v in place}
    for v, w in witness.edges.tolist():
        first, second = (v, w) if place[v] < place[w] else (w, v)
        later[first].add(second)
    for near in later.values():
        if any(b not in later[a] and a not in later[b] for a, b in itertools.combinations(near, 2)):
            return None
    return [len(later[v]) for v in witness.elimination]
