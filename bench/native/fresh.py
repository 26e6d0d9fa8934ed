"""What is measured in a process of its own: memory that calls leave behind, compiling one kernel, another instruction
set. ``python -m bench.native.fresh TASK ...`` prints the answer as JSON."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Everything that SDPA uses held to AVX2, and our kernels.
AVX2 = {"AATC_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def ask(task: str, *arguments: object, timeout: float = 300, **environment: str) -> Any:
    """The answer of a task. Raises RuntimeError with the last line of what it said if it fails."""
    command = [sys.executable, "-m", "bench.native.fresh", task, *map(str, arguments)]
    kept = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def _resident() -> int:
    from bench.memory import _hand_back, _status

    _hand_back()
    return _status("VmRSS")


def growth(calls: str, warm: str = "2000") -> int:
    """Bytes that the process grows by in so many calls of a small attention."""
    import torch

    import aatc
    from bench.kinds import kind

    chosen = kind("lorentz")
    inputs = chosen.inputs(16)
    f = aatc.compile(chosen.ours, backend="native")
    with torch.no_grad():
        for _ in range(int(warm)):
            f(*inputs)
        before = _resident()
        for _ in range(int(calls)):
            f(*inputs)
        return _resident() - before


def cycles(count: str, warm: str = "20") -> int:
    """Bytes that the process grows by in so many compilations of a kernel, each run once and dropped."""
    import torch

    import aatc
    from aatc import backends
    from bench.kinds import kind

    os.environ["AATC_CACHE"] = "off"
    chosen = kind("dot-product")
    inputs = chosen.inputs(16)
    model = aatc.compile(chosen.ours, backend="native")
    with torch.no_grad():
        model(*inputs)
    kernel = model.graphs[0].program.attentions[0]["kernel"]
    native, func = backends.get("native"), kernel.versions[0].forward_func

    def cycle() -> None:
        native.compile(func)[0](*inputs)
        gc.collect()

    for _ in range(int(warm)):
        cycle()
    before = _resident()
    for _ in range(int(count)):
        cycle()
    return _resident() - before


def kernels(name: str) -> list[float]:
    """Seconds that the forward and the backward of an attention take to become code, from tile function to address."""
    from aatc import backends
    from bench.memory import measure_here

    os.environ["AATC_CACHE"] = "off"
    native = backends.get("native")
    compile_, taken = native.compile, []

    def timed(func: Any) -> Any:
        start = time.perf_counter()
        found = compile_(func)
        taken.append(time.perf_counter() - start)
        return found

    native.compile = timed  # type: ignore[method-assign]
    measure_here("aatc-native", name, 256, backward=True)
    return taken


def pair(names: str, runs: str) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of native and SDPA for kinds, in this process as it is."""
    import torch

    from bench.native import plans

    torch.set_num_threads(2)
    found = {}
    for name in names.split(","):
        torch.compiler.reset()
        figures = plans.forward_figures(name, int(runs), peers=False)
        found[name] = {who: list(f.values) for who, f in figures.items() if who in ("native", "SDPA")}
    return found


TASKS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (growth, cycles, kernels, pair)}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](*sys.argv[2:])))
