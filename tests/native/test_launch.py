"""Kernels run on threads, every task once, whoever calls them; forked children do not hang, and Ctrl-C ends a call."""

import contextlib
import ctypes
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from aatc.backends.native import interrupt, isa, launch, machine
from tests.native.kernels import COUNTING, Count, growth_kib

ROOT = Path(__file__).parent.parent.parent
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
posix_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs signals that arrive at once")


@pytest.fixture(scope="module")
def library():
    return machine.load(COUNTING, isa.host())


@pytest.fixture(scope="module")
def kernel(library):
    return library.address("count")


@pytest.fixture(params=["as torch", "threads"])
def any_threads(request, monkeypatch):
    """Torch's threads, and those of Python's that stand in for them."""
    if request.param == "threads":
        monkeypatch.setattr(launch, "_gomp", lambda: None)
        assert launch.parallel_kind() == "threads"


@pytest.fixture
def threads_after():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def call(kernel: int) -> None:
    count = Count(10)
    launch.run(kernel, count.address, 2)
    assert count.done


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [0, 1, 2, 1000])
def test_every_task_runs_once(kernel, any_threads, threads, tasks):
    for _ in range(3):
        count = Count(tasks, work=3)
        launch.run(kernel, count.address, threads)
        assert count.done


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems' torch has other threads")
def test_kernels_run_on_the_threads_of_torch(kernel):
    torch.set_num_threads(2)
    x = torch.randn(600, 600)
    (x @ x).exp_().sum()  # torch has its threads now
    call(kernel)
    assert launch.parallel_kind() == "GOMP_parallel"
    before = set(os.listdir("/proc/self/task"))
    for _ in range(20):
        call(kernel)
        (x @ x).exp_()
    assert set(os.listdir("/proc/self/task")) <= before  # threads of other tests may end meanwhile


def test_the_number_of_threads_may_change_between_calls(kernel, threads_after):
    for threads in (1, 2, 4, 1, 3, 2):
        torch.set_num_threads(threads)
        count = Count(100)
        launch.run(kernel, count.address, torch.get_num_threads())
        assert count.done
        assert torch.ones(100_000).sum() == 100_000


def test_several_threads_may_call_at_once(kernel, any_threads):
    def many(n: int) -> bool:
        done = []
        for _ in range(50):
            count = Count(20 + n)
            launch.run(kernel, count.address, 1 + n % 3)
            done.append(count.done)
        return all(done)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(many, range(12), timeout=60))


def test_a_thread_of_torchs_own_may_call(kernel):
    """Backward runs in one, and so may what torch.jit.fork starts."""
    found = []

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            count = Count(100)
            launch.run(kernel, count.address, 2, stop=count.stop, long=True)
            found.append(count.done)
            return g

    Through.apply(torch.ones(3, requires_grad=True)).sum().backward()
    assert found == [True]


def test_python_runs_while_a_kernel_does(kernel):
    count = Count(1, work=20_000_000)
    thread = threading.Thread(target=launch.run, args=(kernel, count.address, 1))
    thread.start()
    rounds = 0
    while thread.is_alive():
        rounds += 1
    thread.join()
    assert count.done
    assert rounds > 10


# --- forked children ---------------------------------------------------------------------------------------
def in_child(do, seconds: float = 20.0) -> str:
    """What ``do`` returns in a forked child, as text; an error if it takes too long."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        text = "an error"
        try:
            text = str(do())
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], seconds)
        assert ready, "the child hangs"
        return os.read(reader, 1000).decode()
    finally:
        for kill in (os.kill, os.killpg):  # with children of its own
            with contextlib.suppress(ProcessLookupError):
                kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)


@fork
def test_a_forked_child_does_not_wait_for_its_parents_threads(kernel, any_threads):
    torch.ones(200_000).exp_()
    call(kernel)

    def child() -> bool:
        counts = [Count(100) for _ in range(10)]
        for n, count in enumerate(counts):
            launch.run(kernel, count.address, 1 + n % 3, stop=count.stop, long=n % 2 == 0)
        return all(count.done for count in counts)

    assert in_child(child) == "True"
    assert in_child(lambda: in_child(child)) == "True"
    call(kernel)


@fork
def test_a_child_may_be_forked_while_kernels_run_and_are_compiled(kernel):
    ended = threading.Event()

    def busy(n: int) -> None:
        while not ended.is_set():
            count = Count(50, work=100)
            launch.run(kernel, count.address, 2)
            machine.compile_object(COUNTING.replace("@count", f"@count{n}"), isa.host())

    workers = [threading.Thread(target=busy, args=(n,)) for n in range(2)]
    for worker in workers:
        worker.start()
    try:

        def child() -> bool:
            text = COUNTING.replace("@count", "@counted")
            mine = machine.Library(machine.compile_object(text, isa.host()), isa.host())
            count = Count(100)
            launch.run(mine.address("counted"), count.address, 2)
            return count.done

        for _ in range(3):
            assert in_child(child) == "True"
    finally:
        ended.set()
        for worker in workers:
            worker.join()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells by Linux's account of processes")
def test_a_child_knows_that_it_was_forked_before_this_was_imported():
    program = """
        import os, time, torch
        torch.ones(200_000).exp_()
        time.sleep(0.2)
        child = os.fork()
        from aatc.backends.native import launch
        if child:
            os.waitpid(child, 0)
        os.write(1, f"{'parent' if child else 'child'} {launch.parallel_kind()}\\n".encode())
        os._exit(0)
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == ["child threads", "parent GOMP_parallel"], done.stderr


def _in_worker(kernel: int) -> tuple[bool, int]:
    count = Count(100)
    launch.run(kernel, count.address, max(2, torch.get_num_threads()))
    return count.done, torch.get_num_threads()


@fork
def test_workers_of_a_pool_may_call(kernel):
    call(kernel)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(done for done, _ in pool.map_async(_in_worker, [kernel] * 4).get(timeout=30))


class _Counted(torch.utils.data.Dataset):
    def __init__(self, kernel: int):
        self.kernel = kernel

    def __len__(self) -> int:
        return 4

    def __getitem__(self, n: int) -> bool:
        return _in_worker(self.kernel)[0]


@fork
def test_a_data_loaders_workers_may_call(kernel):
    loader = torch.utils.data.DataLoader(
        _Counted(kernel), batch_size=None, num_workers=2, timeout=30, multiprocessing_context="fork"
    )
    assert list(loader) == [True] * 4


# --- signals -----------------------------------------------------------------------------------------------
@pytest.fixture
def ctrl_c():
    """Python's own handler of SIGINT: a shell starts what runs behind it without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def later(seconds: float, number: int = signal.SIGINT) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()


@pytest.fixture
def handler():
    """A SIGINT handler that counts, and does not raise."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda *args: seen.append(args[0]))
    yield seen
    signal.signal(signal.SIGINT, before)


@posix_signals
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_call_at_its_next_task(kernel, any_threads, ctrl_c, threads):
    count = Count(1_000_000, work=100_000)  # minutes
    later(0.2)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        launch.run(kernel, count.address, threads, stop=count.stop, long=True)
    assert time.monotonic() - begun < 10
    assert count.fields[0] < count.tasks
    assert set(count.out) <= {0, count.work}  # no task is left half done


@posix_signals
def test_a_handler_that_does_not_raise_lets_the_call_go_on(kernel, any_threads, handler):
    count, resumed = Count(3000, work=100_000), []
    for n in range(3):
        later(0.05 + 0.1 * n)
    launch.run(kernel, count.address, 2, stop=count.stop, long=True, resume=lambda: resumed.append(len(handler)))
    while len(handler) < 3:
        time.sleep(0.01)
    assert count.done
    assert count.fields[2] == 0
    assert resumed and resumed[0] >= 1  # the handler has run when the call goes on


@posix_signals
def test_what_the_program_wakes_up_by_is_told_of_signals(kernel, handler):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    try:
        count = Count(2000, work=100_000)
        later(0.05)
        launch.run(kernel, count.address, 2, stop=count.stop, long=True)
        assert count.done
        assert select.select([reader], [], [], 5)[0]
        assert os.read(reader, 10) == bytes([signal.SIGINT])
        assert signal.set_wakeup_fd(writer) == writer
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


@posix_signals
def test_a_signal_in_the_last_moment_of_a_call_is_passed_on(handler):
    """The watcher may not have come to it when the call has ended."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    flag = ctypes.c_int64(0)
    try:
        for _ in range(30):
            interrupt.watched(lambda: os.kill(os.getpid(), signal.SIGINT), ctypes.addressof(flag))
            assert select.select([reader], [], [], 5)[0]
            os.read(reader, 100)
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


@posix_signals
def test_a_handler_may_run_a_kernel_of_its_own():
    """Wherever the main thread is: a handler that waited for what that thread holds would wait forever."""
    flags = ctypes.c_int64(0), ctypes.c_int64(0)

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 10)
    try:
        with interrupt._lock:
            interrupt.watched(lambda: None, ctypes.addressof(flags[1]))
        inner: list[object] = []

        def within() -> None:
            stop = interrupt._stop
            interrupt.watched(lambda: None, ctypes.addressof(flags[1]))
            inner.append(interrupt._stop is stop)

        interrupt.watched(within, ctypes.addressof(flags[0]))
        assert inner == [True] and interrupt._stop is None and interrupt._before == -1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@posix_signals
def test_a_signal_before_or_after_a_call_does_not_stop_it(kernel, handler):
    for _ in range(30):
        os.kill(os.getpid(), signal.SIGINT)
        count = Count(20)
        launch.run(kernel, count.address, 2, stop=count.stop, long=True)
        assert count.done
    assert len(handler) == 30


def test_calls_do_not_grow_the_process(kernel):
    count = Count(10)

    def again() -> None:
        count.fields[0] = 0
        launch.run(kernel, count.address, 2, stop=count.stop, long=True)

    if sys.platform.startswith("linux"):
        assert growth_kib(again, 2000) < 0.2
    assert interrupt._stop is None
