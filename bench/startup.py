"""What one waits for before the first result: importing, compiling in this process and the next, calling."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.report import Figure
from bench.timing import seconds

ROOT = Path(__file__).parent.parent
LAYERS, WIDTH, HEADS, LENGTH = 4, 128, 4, 256

IMPORT = """
import time, torch
start = time.perf_counter()
import aatc
print(time.perf_counter() - start)
"""


class Layer(nn.Module):
    """A transformer's layer whose heads attend by the distance of the hyperboloid."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        import aatc

        batch, length, _ = x.shape
        heads = self.qkv(self.before(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        o = aatc.attend(*heads.unbind(0), metric=aatc.metrics.LorentzDistance(lift=True))
        x = x + self.out(o.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.mlp(self.between(x))


def first_call_here(backend: str) -> float:
    """Seconds from handing the model to ``aatc.compile`` to its first output, less an eager call's."""
    import aatc

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model, x = nn.Sequential(*(Layer() for _ in range(LAYERS))), torch.randn(1, LENGTH, WIDTH)
    with torch.no_grad():
        model(x)
        eager = seconds(lambda: model(x))
        return seconds(lambda: aatc.compile(model, backend=backend)(x)) - eager


def _python(*command: str, home: str | None = None) -> str:
    kept = {**os.environ, "PYTHONPATH": str(ROOT)}
    if home:
        # Nothing is found that an earlier compile left: neither aatc's files nor those of torch.compile.
        kept |= {"AATC_CACHE": f"{home}/aatc", "XDG_CACHE_HOME": home, "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor"}
    done = subprocess.run([sys.executable, *command], env=kept, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(last)
    return done.stdout.strip().splitlines()[-1]


def compile_times(runs: int, backend: str = "auto") -> tuple[Figure, Figure]:
    """Seconds until a four-layer model's first output: with empty caches, and in the process after that."""
    first, second = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as home:
            for times in (first, second):
                times.append(json.loads(_python("-m", "bench.startup", backend, home=home)))
    return Figure(tuple(first), "s"), Figure(tuple(second), "s")


def import_time(runs: int) -> Figure:
    """Seconds that ``import aatc`` takes once torch is imported, in fresh processes."""
    _python("-c", IMPORT)
    return Figure(tuple(float(_python("-c", IMPORT)) for _ in range(runs)), "s")


def call_overhead(runs: int, *, calls: int = 50, n: int = 16) -> tuple[Figure, Figure]:
    """Microseconds per attention at length ``n``, compiled and eager, in turns of ``calls`` calls each."""
    import aatc

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return aatc.attend(q, k, v, metric=aatc.metrics.Euclidean())

    compiled = aatc.compile(attention)
    q, k, v = (torch.randn(1, 8, n, 64) for _ in range(3))
    taken: dict[object, list[float]] = {compiled: [], attention: []}
    with torch.no_grad():
        for f in taken:
            for _ in range(10):
                f(q, k, v)
        for _ in range(runs):
            for f, times in taken.items():
                start = time.perf_counter()
                for _ in range(calls):
                    f(q, k, v)
                times.append(1e6 * (time.perf_counter() - start) / calls)
    return Figure(tuple(taken[compiled]), "µs"), Figure(tuple(taken[attention]), "µs")


if __name__ == "__main__":
    print(json.dumps(first_call_here(*sys.argv[1:] or ["auto"])))
