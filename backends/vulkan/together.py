"""A forward and its backward run in one place: another order of sums would give the weights of a backward other bits
than the forward's largest score and sum have, and large scores multiply that."""

from __future__ import annotations

from aatc.backends.vulkan.lower import lower
from aatc.backends.vulkan.whole import Device
from aatc.ir.core import Func, Module
from aatc.ir.errors import UnsupportedError
from aatc.ir.geo import VERSIONS
from aatc.ir.registry import Attr, Extension, extend

#: Why a function runs on the CPU, where it or its partner has no kernels.
CPU = "vulkan.cpu"

extend(
    "vulkan",
    Extension(
        ops={},
        funcs={"cpu": Attr.of("str", "why the function, and its partner, run on the CPU")},
        check=lambda func, dims: None,
    ),
)


def mark(module: Module, device: Device) -> None:
    """Marks the forward and the backward of each version of which one has no kernels, and says why."""
    for op in module.walk():
        if op.name != "geo.kernel":
            continue
        for forward, backward, _ in (v for v in VERSIONS if v[0] in op.attrs):
            pair = [module.funcs[op.attrs[name].name] for name in (forward, backward)]
            why = next(filter(None, (_why_not(f, device) for f in pair)), "")
            for f in pair if why else ():
                f.attrs[CPU] = why
            if why:
                pair[0].attrs["engine"] = f"the CPU, as there is no kernel ({why})"


def _why_not(func: Func, device: Device) -> str:
    try:
        lower(func, device)
    except UnsupportedError as error:
        return f"@{func.name}: {error.message}"
    return ""
