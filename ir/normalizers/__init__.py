"""How scores become weights. One file declares a normaliser (`ir.normalizers.base`), and one line here brings it in."""

from __future__ import annotations

from aatc.ir.errors import VerifyError
from aatc.ir.normalizers import sigmoid, softmax
from aatc.ir.normalizers.base import SCORE, WEIGHT, Normalizer, Statistic

NORMALIZERS: dict[str, Normalizer] = {}


def register(normalizer: Normalizer) -> Normalizer:
    """Makes a normaliser known by its name, in programs and to `aatc.attend`. VerifyError where its declaration does
    not hold together, or the name is taken by another one."""
    if NORMALIZERS.get(normalizer.name, normalizer) is not normalizer:
        raise VerifyError(f"there is a normaliser {normalizer.name!r} already", hint="give yours another name")
    normalizer.check()
    NORMALIZERS[normalizer.name] = normalizer
    return normalizer


def normalizer_named(name: str) -> Normalizer:
    """The normaliser that programs call ``name``; VerifyError when there is none."""
    if name not in NORMALIZERS:
        raise VerifyError(f"there is no normaliser {name!r}", hint=f"one of {', '.join(NORMALIZERS)}")
    return NORMALIZERS[name]


register(softmax.Softmax())
register(sigmoid.Sigmoid())

__all__ = ["NORMALIZERS", "SCORE", "WEIGHT", "Normalizer", "Statistic", "normalizer_named", "register"]
