"""Programs that tests start: what a signal, a fork or a data loader does to kernels. ``python -m tests.native.running
WHAT``; nothing is printed but by what goes wrong."""

import os
import signal
import sys
import threading
import time

import torch

import aatc
from aatc.backends.native import compiled


def attention(n: int, heads: int = 4, width: int = 16):
    """A call without arguments of a compiled attention."""
    torch.manual_seed(0)
    operands = [torch.randn(1, heads, n, width) for _ in range(3)]
    euclidean, causal = aatc.metrics.Euclidean(), aatc.masks.causal()
    run = aatc.compile(
        lambda q, k, v: aatc.attend(q, k, v, metric=euclidean, mask=causal), backend="native", fallback=False
    )
    return lambda: run(*operands)


def _timed(run):
    began = time.perf_counter()
    o = run()
    return o, time.perf_counter() - began


def _signals(number: int, every: float, times: int) -> None:
    def send() -> None:
        for _ in range(times):
            time.sleep(every)
            os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def interrupted() -> None:
    """Ctrl-C ends a long kernel long before it would, and the next call is right."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it without
    torch.set_num_threads(2)
    run = attention(12000, 8)
    want, whole = _timed(run)
    whole = min(whole, _timed(run)[1])
    _signals(signal.SIGINT, whole / 8, 1)
    began = time.perf_counter()
    try:
        run()
    except KeyboardInterrupt:
        took = time.perf_counter() - began
        assert took < 0.7 * whole, f"ended after {took:.2f} of {whole:.2f} s"
    else:
        raise AssertionError("no KeyboardInterrupt")
    assert torch.equal(run(), want)


def disturbed() -> None:
    """Signals whose handler returns change nothing: the kernel goes on with the tasks that are left."""
    torch.set_num_threads(2)
    run = attention(12000, 8)
    want, whole = _timed(run)
    seen = []
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    _signals(signal.SIGUSR1, whole / 20, 8)
    got = run()
    assert seen and torch.equal(got, want)


def forked() -> None:
    """A child has no threads of its parent's OpenMP: it runs kernels, and compiles one, all the same."""
    # torch's own operators would wait forever for a second thread in the child: the tensors are too small for that
    torch.set_num_threads(2)
    compiled.ALONE = 0
    run = attention(300)
    want = run()
    child = os.fork()
    if not child:
        same = torch.equal(run(), want)
        attention(40, 2, 8)()
        os._exit(0 if same else 1)
    deadline = time.time() + 60
    while time.time() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, status
            break
        time.sleep(0.02)
    else:
        os.kill(child, signal.SIGKILL)
        raise AssertionError("the child hangs")
    assert torch.equal(run(), want)


class _Items(torch.utils.data.Dataset):
    def __init__(self, run):
        self.run = run

    def __len__(self) -> int:
        return 4

    def __getitem__(self, n: int) -> torch.Tensor:
        return self.run().sum((0, 1))


def loaded() -> None:
    """In a data loader's worker."""
    torch.set_num_threads(2)
    run = attention(300)
    want = run().sum((0, 1))
    for item in torch.utils.data.DataLoader(_Items(run), num_workers=1, multiprocessing_context="fork"):
        torch.testing.assert_close(item[0], want)


if __name__ == "__main__":
    {f.__name__: f for f in (interrupted, disturbed, forked, loaded)}[sys.argv[1]]()
