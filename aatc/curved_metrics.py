"""Metrics of spaces of constant curvature, which may be a parameter that learns: see `aatc.metrics`."""

from __future__ import annotations

from aatc.ir.score.expr import ZERO, Expr, call, const
from aatc.parts import curvature as checked_curvature
from aatc.parts import curvature_captures, scalar_captures, scalar_expr, scalar_key
from aatc.scored import Distance, Metric, Number
from aatc.stereographic import lifted_pair

#: Curvatures from which cosh(√c d) - 1 has its digits. Below, and where a tensor may come there, formulas are those
#: that are analytic in c through 0.
_ORDINARY = 2.0**-10
#: Maps that keep lengths, and which argument is the vector.
_TURNS = {"rotate": 0, "turn": 1, "unturn": 1}


def _ordinary(c: Expr) -> bool:
    return c.is_const and c.value >= _ORDINARY


def _positive(c: Expr) -> Expr:
    """c > 0; of a tensor that is not, which eager calls alone refuse, NaN: it is no other space's distance."""
    return c if c.is_const else c + ZERO * call("log", c)


def _lorentz(q: Expr, k: Expr, lift: bool, curvature: float = 1.0) -> Expr:
    """<q, k>_L; lifted points have time sqrt(1/c + |x|²)."""
    if not lift:
        return q.dot(call("eta", k))
    tq, tk = ((1 / curvature + x.dot(x)).sqrt() for x in (q, k))
    return q.dot(k) - tq * tk


def _in_ball(x: Expr, c: Expr) -> tuple[Expr, Expr]:
    """The point of the Poincaré ball that a lifted one is, x/(1 + sqrt(1 + c|x|²)), and its 1 - c|y|². Of a vector that
    is turned, the turned point: its length is that of what is turned."""
    turns: list[Expr] = []
    while x.fn in _TURNS:
        turns.append(x)
        x = x.args[_TURNS[x.fn]]
    gap = 2.0 / (1.0 + (1.0 + c * x.dot(x)).sqrt())
    point = 0.5 * gap * x
    for turn in reversed(turns):
        at = _TURNS[turn.fn]
        point = call(turn.fn, *(point if n == at else a for n, a in enumerate(turn.args)), attrs=turn.attrs)
    return point, gap


def _powered(distance: Expr, squared: bool) -> Expr:
    return distance**2 if squared else distance


class LorentzInner(Metric):
    """s = 2/c + 2<q, k>_L, minus the squared Lorentz distance (HyboNet, Chen et al. 2022). Scale 1/sqrt(D).

    Points lie on the hyperboloid <x, x>_L = -1/c, time coordinate first, ``curvature`` c > 0; with ``lift`` q and k are
    spatial, and time is sqrt(1/c + |x|²). Where c is a tensor or below 1e-3, s is computed as -<q - k, q - k>_L, which
    is the same of such points and keeps its digits, and its slopes in c, as c goes to 0.
    """

    root_scale = True

    def __init__(self, lift: bool = False, curvature: Number = 1):
        self.lift, self.curvature = lift, checked_curvature(curvature)

    def key(self):
        return (self.tag, bool(self.lift), scalar_key(self.curvature, "curvature"))

    def captures(self, sizes):
        return curvature_captures(self.curvature, sizes)

    @classmethod
    def score(cls, key, q, k, captured):
        c = scalar_expr(key[2], captured)
        if not key[1]:
            if _ordinary(c):
                return 2.0 * const(1 / c.value) + 2.0 * _lorentz(q, k, False)
            difference = q - k
            return ZERO * _positive(c) - difference.dot(call("eta", difference))
        # the same with what time exceeds its least by: of short vectors that and the product of times are nearly equal
        if _ordinary(c):
            least, root = const(1 / c.value), const(c.value**-0.5)
            eq, ek = (x.dot(x) / (root + (least + x.dot(x)).sqrt()) for x in (q, k))
            return 2.0 * (q.dot(k) - eq * ek - root * (eq + ek))
        c = _positive(c)
        eq, ek = (x.dot(x) / (1.0 + (1.0 + c * x.dot(x)).sqrt()) for x in (q, k))  # that over √c
        return 2.0 * (q.dot(k) - c * eq * ek - (eq + ek))


class LorentzDistance(Distance):
    """s = -beta d(q, k), d = acosh(-c<q, k>_L)/sqrt(c), or -beta d² with ``squared`` (Gulcehre et al. 2019).

    Points lie on the hyperboloid <x, x>_L = -1/c, time coordinate first, ``curvature`` c > 0 (sectional
    curvature -c); with ``lift`` q and k are spatial, and time is sqrt(1/c + |x|²). Where c is a tensor or below 1e-3,
    d is computed as 2 asinh(sqrt(c <q - k, q - k>_L)/2)/sqrt(c), which is the same of such points and keeps its digits,
    and its slopes in c, as c goes to 0.
    """

    def __init__(self, beta: Number = 1, squared: bool = False, curvature: Number = 1, lift: bool = False):
        self.beta, self.squared, self.curvature, self.lift = beta, squared, checked_curvature(curvature), lift

    def key(self):
        beta, curvature = scalar_key(self.beta, "beta"), scalar_key(self.curvature, "curvature")
        return (self.tag, beta, bool(self.squared), curvature, bool(self.lift))

    def captures(self, sizes):
        return [*scalar_captures("beta", self.beta, sizes), *curvature_captures(self.curvature, sizes)]

    @classmethod
    def score(cls, key, q, k, captured):
        _, beta, squared, curvature, lift = key
        factor, c = scalar_expr(beta, captured), scalar_expr(curvature, captured)
        if _ordinary(c):
            distance = (-_lorentz(q, k, lift, c.value) * c.value).acosh() / c.value**0.5
            return -(factor * _powered(distance, squared))
        c = _positive(c)
        if lift:
            (x, gap), (y, other) = _in_ball(q, c), _in_ball(k, c)
            difference = x - y
            chord = difference.dot(difference) / (gap * other)
        else:
            difference = q - k
            chord = 0.25 * difference.dot(call("eta", difference))
        return -(factor * _arc(chord, -c, squared))


class Poincare(Distance):
    """s = -beta d, d = acosh(1 + 2c|q - k|²/((1 - c|q|²)(1 - c|k|²)))/sqrt(c) in the ball c|x|² < 1, or -beta d² with
    ``squared``. ``curvature`` c > 0: the space has sectional curvature -c.
    """

    def __init__(self, beta: Number = 1, squared: bool = False, curvature: Number = 1):
        self.beta, self.squared, self.curvature = beta, squared, checked_curvature(curvature)

    def key(self):
        return (self.tag, scalar_key(self.beta, "beta"), bool(self.squared), scalar_key(self.curvature, "curvature"))

    def captures(self, sizes):
        return [*scalar_captures("beta", self.beta, sizes), *curvature_captures(self.curvature, sizes)]

    @classmethod
    def score(cls, key, q, k, captured):
        beta, c = (scalar_expr(x, captured) for x in (key[1], key[3]))
        if not _ordinary(c):  # close to 0, 1 + 2c|q - k|² has no digits left of |q - k|
            return -(beta * _curved(q, k, -_positive(c), key[2]))
        difference = q - k
        ratio = difference.dot(difference) / ((1.0 - c * q.dot(q)) * (1.0 - c * k.dot(k)))
        return -(beta * _powered((1.0 + 2.0 * c.value * ratio).acosh() / c.value**0.5, key[2]))


def _curved(q: Expr, k: Expr, kappa: Expr, squared: bool) -> Expr:
    """The distance in curvature κ of stereographic coordinates."""
    difference = q - k
    chord = difference.dot(difference) / ((1.0 + kappa * q.dot(q)) * (1.0 + kappa * k.dot(k)))
    return _arc(chord, kappa, squared)


def _arc(chord: Expr, kappa: Expr, squared: bool) -> Expr:
    """The distance in curvature κ, whose half has the sin_κ that ``chord`` is the square of: of half the chord, twice
    the arc."""
    ratio = call("arcsinc", kappa * chord)
    distance: Expr = 4.0 * (chord * ratio**2) if squared else 2.0 * (chord.sqrt() * ratio)
    return distance


class Stereographic(Distance):
    """s = -beta d, the distance in the space of constant curvature κ in stereographic coordinates, or -beta d² with
    ``squared``: d = 2 arcsin_κ(|q - k|/sqrt((1 + κ|q|²)(1 + κ|k|²))), as `aatc.geometry.Stereographic` has it.

    ``curvature`` κ has any sign, and a tensor that learns may change it: d is analytic in κ, through 0, where it is
    2|q - k|. Points have 1 + κ|x|² > 0. With ``lift`` q and k are tangent vectors at the origin, of any length, and the
    points are their images tan_κ(|x|) x/|x|, kept off the boundary by a few ε. Source: Bachmann, Bécigneul, Ganea,
    "Constant curvature graph convolutional networks", 2020.
    """

    def __init__(self, beta: Number = 1, curvature: Number = 0, squared: bool = False, lift: bool = False):
        self.beta, self.curvature = beta, checked_curvature(curvature, positive=False)
        self.squared, self.lift = squared, lift

    def key(self):
        return (self.tag, scalar_key(self.beta, "beta"), scalar_key(self.curvature, "curvature"), bool(self.squared))

    def captures(self, sizes):
        return [*scalar_captures("beta", self.beta, sizes), *curvature_captures(self.curvature, sizes, positive=False)]

    def prepare(self, q, k):
        return lifted_pair(q, k, self.curvature) if self.lift else (q, k)

    @classmethod
    def score(cls, key, q, k, captured):
        beta, c = (scalar_expr(x, captured) for x in (key[1], key[2]))
        return -(beta * _curved(q, k, c, key[3]))


def unit(x: Expr, eps: Expr) -> Expr:
    return x / call("maximum", x.dot(x).sqrt(), eps)


class SphereGeodesic(Distance):
    """s = -beta acos(q·k/(|q||k|))/sqrt(c), the length of the arc on the sphere of ``curvature`` c > 0, of radius
    1/sqrt(c): of the unit sphere, the angle."""

    def __init__(self, beta: Number = 1, eps: Number | None = None, curvature: Number = 1):
        self.beta, self.eps, self.curvature = beta, 1e-12 if eps is None else eps, checked_curvature(curvature)

    def key(self):
        return (
            self.tag,
            scalar_key(self.beta, "beta"),
            scalar_key(self.eps, "eps"),
            scalar_key(self.curvature, "curvature"),
        )

    def captures(self, sizes):
        given = [*scalar_captures("beta", self.beta, sizes), *scalar_captures("eps", self.eps, sizes)]
        return [*given, *curvature_captures(self.curvature, sizes, divides=True)]

    @classmethod
    def score(cls, key, q, k, captured):
        beta, eps, c = (scalar_expr(x, captured) for x in key[1:])
        root = const(c.value**0.5) if c.is_const else c.sqrt()
        return -(beta * (unit(q, eps).dot(unit(k, eps)).acos() / root))
