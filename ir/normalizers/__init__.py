"""How scores become weights. One file declares a normaliser (`ir.normalizers.base`), and one line here brings it in."""

from __future__ import annotations

from aatc.ir.errors import AatcError, VerifyError
from aatc.ir.normalizers import sigmoid, softmax
from aatc.ir.normalizers.base import SCORE, WEIGHT, Normalizer, Statistic
from aatc.ir.normalizers.probe import probe

NORMALIZERS: dict[str, Normalizer] = {}


def register(normalizer: Normalizer) -> Normalizer:
    """Makes a normaliser known by its name, in programs and to `aatc.attend`. VerifyError where its declaration does
    not hold together or is not so (`ir.normalizers.probe`), or the name is taken by another one."""
    if NORMALIZERS.get(normalizer.name, normalizer) is not normalizer:
        raise VerifyError(f"there is a normaliser {normalizer.name!r} already", hint="give yours another name")
    try:
        normalizer.check()
        probe(normalizer)
    except AatcError:
        raise
    except Exception as error:  # whatever a declaration raises
        raise VerifyError(
            f"the declaration of normaliser {normalizer.name!r} raises {type(error).__name__}: {error}"
        ) from error
    NORMALIZERS[normalizer.name] = normalizer
    return normalizer


def normalizer_named(name: str) -> Normalizer:
    """The normaliser that programs call ``name``; VerifyError when there is none."""
    if name not in NORMALIZERS:
        raise VerifyError(f"there is no normaliser {name!r}", hint=f"one of {', '.join(NORMALIZERS)}")
    return NORMALIZERS[name]


# these need no probing, which would cost every import; tests do it
NORMALIZERS |= {n.name: n for n in (softmax.Softmax(), sigmoid.Sigmoid())}

__all__ = ["NORMALIZERS", "SCORE", "WEIGHT", "Normalizer", "Statistic", "normalizer_named", "register"]
