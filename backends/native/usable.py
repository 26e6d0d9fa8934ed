"""Whether native kernels can run in this process, found out by running one that does nothing."""

from __future__ import annotations

import functools

from aatc.backends.native import isa, launch, machine
from aatc.ir.errors import BackendError

_NOTHING = "define void @nothing(ptr %context) {\n  ret void\n}\n"


def why_not() -> str:
    """Why they cannot, in words; nothing if they can. Raises: BackendError if ``AATC_ISA`` names an instruction set
    that this machine does not have."""
    reason = _why_not()
    if not reason:
        isa.host()  # read anew: whoever names one is not given another backend instead
    return reason


@functools.cache
def _why_not() -> str:
    found = isa.available()
    if not found:
        return f"there are none for {isa.architecture()} processors"
    if not launch.has_openmp():
        return "torch's OpenMP, on whose threads they run, was not found"
    try:
        library = machine.Library(machine.compile_object(_NOTHING, found[0]), found[0])
        launch.run(library.address("nothing"), 0, 1)
    except (BackendError, OSError, RuntimeError) as error:  # where memory may not be made executable
        return f"the system runs no code that is made in the process: {error}"
    return ""
