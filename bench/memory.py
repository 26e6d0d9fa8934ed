"""Peak memory of one attention, above its inputs and outputs, in a process of its own.

How it is measured. A fresh process imports aatc and makes the inputs at full length (for a backward, the
gradient of the output too). It compiles the same attention once for a tiny length, so that libraries, the
compiler and its caches are loaded, and hands freed memory back to the system. The resident size is then the
baseline, and the kernel's high-water mark is set back to it. One call at full length follows: its
compilation for that length counts, because a user pays it. The figure is the new high-water mark (VmHWM)
less the baseline, less the bytes of what the call returns: the output, and the gradients of q, k and v for a
backward. What the call keeps alive between forward and backward counts.

Where the kernel does not let a process set the mark back, the mark before the call takes the baseline's
place if it is higher, and the figure then carries the note "lower bound".
"""

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from bench.kinds import kind

MIB = 1 << 20
TINY = 48


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}; peak memory is measured on Linux only")


def _hand_back() -> None:
    gc.collect()
    # Another C library may have no such call; the baseline is then higher by what it keeps.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak(call: Callable[[], object], returned: int) -> dict[str, object]:
    """Bytes that ``call`` reached above the resident size before it, less the ``returned`` bytes."""
    _hand_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        note = ""
    except OSError:
        note = "lower bound"
    baseline = _status("VmHWM") if note else _status("VmRSS")
    result = call()
    high = _status("VmHWM")
    del result
    return {"bytes": max(0, high - baseline - returned), "note": note}


def compiled(system: str, name: str) -> Callable[..., torch.Tensor]:
    """The attention ``name`` as ``system`` runs it: aatc, one backend of it (as aatc-native), torch.compile, eager or
    sdpa."""
    chosen = kind(name)
    if system.partition("-")[0] == "aatc":
        import aatc

        return aatc.compile(chosen.ours, backend=system.partition("-")[2] or "auto")
    if system == "torch.compile":
        return torch.compile(chosen.eager)
    return chosen.eager if system == "eager" else chosen.sdpa


def measure_here(system: str, name: str, n: int, backward: bool) -> dict[str, object]:
    torch.set_num_threads(2)
    f = compiled(system, name)
    chosen = kind(name)

    def once(inputs: tuple[torch.Tensor, ...], upstream: torch.Tensor | None) -> object:
        if upstream is None:
            with torch.no_grad():
                return f(*inputs)
        out = f(*inputs)
        return out, torch.autograd.grad(out, inputs[:3], upstream)

    def prepared(length: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        inputs = chosen.inputs(length)
        if not backward:
            return inputs, None
        leaves = tuple(x.detach().clone().requires_grad_() for x in inputs[:3])
        return (*leaves, *inputs[3:]), torch.ones_like(inputs[2])

    inputs, upstream = prepared(n)
    once(*prepared(TINY))
    returned = sum(x.nbytes for x in inputs[:3]) if backward else 0
    return peak(lambda: once(inputs, upstream), returned + inputs[2].nbytes)


def measure(system: str, name: str, n: int, *, backward: bool, timeout: float = 600) -> tuple[float, str]:
    """MiB above inputs and outputs, and a note, from a fresh process."""
    arguments = [system, name, str(n), "backward" if backward else "forward"]
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "bench.memory", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(last)
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return answer["bytes"] / MIB, answer["note"]


if __name__ == "__main__":
    system, name, n, direction = sys.argv[1:]
    print(json.dumps(measure_here(system, name, int(n), direction == "backward")))
