"""Running a compiled kernel on threads: one region per kernel, on the threads that torch's operators run on.

A kernel is a C function of one pointer, its context. Every thread calls it with the same context; tasks are drawn from
an atomic counter in there, so that it does not matter how many threads come, or when.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from aatc.backends import openmp
from aatc.backends.native import interrupt

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

Region = Callable[[int, int, int], None]


def run(
    address: int,
    context: int,
    threads: int,
    *,
    stop: int | None = None,
    long: bool = False,
    resume: Callable[[], None] | None = None,
) -> None:
    """Calls the function at ``address`` with ``context``, a pointer, on up to ``threads`` threads at once, and returns
    when all of them have. The calling thread is one of them; with one there are no others. No lock of Python's is held.

    ``stop`` is the address of an int64 that a kernel reads before it draws a task. If a call is ``long`` and made by
    the main thread, it is set to 1 when a signal arrives, as by Ctrl-C; the kernel returns after the tasks that have
    been drawn, and Python's handler of the signal runs. It raises KeyboardInterrupt, or the kernel is called again,
    with ``stop`` at 0, for the tasks that are left. ``resume`` is called before, to count threads from 0 again. In
    other threads a kernel is not stopped.
    """
    if threads > 1:
        call = functools.partial(_parallel(), address, context, threads)
    else:
        call = functools.partial(function(address), context)
    if stop is None or not long or threading.current_thread() is not threading.main_thread():
        call()
    else:
        interrupt.watched(call, stop, resume)


def parallel_kind() -> str:
    """What a call with several threads runs on: "GOMP_parallel" of torch's OpenMP, or "threads" of Python's."""
    return "threads" if _forked or _gomp() is None else "GOMP_parallel"


def has_openmp() -> bool:
    """Whether torch's OpenMP can be told to run kernels, in processes that were not forked."""
    return _gomp() is not None


@functools.lru_cache(maxsize=4096)
def function(address: int) -> Any:
    """The function at an address, to call with a context on this thread alone."""
    return _KERNEL(address)


def _parallel() -> Region:
    gomp = None if _forked else _gomp()
    return _on_threads if gomp is None else functools.partial(_on_gomp, gomp)


# --- torch's OpenMP ----------------------------------------------------------------------------------------
def _on_gomp(gomp: Any, address: int, context: int, threads: int) -> None:
    gomp(address, context, threads, 0)


@functools.cache
def _gomp() -> Any:
    """``GOMP_parallel`` of the OpenMP that torch has loaded; None if there is no such one."""
    for library in openmp.libraries():
        try:
            found = library.GOMP_parallel
        except AttributeError:
            continue
        found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        found.restype = None
        return found
    return None


# --- threads of Python's -----------------------------------------------------------------------------------
_pool_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def _on_threads(address: int, context: int, threads: int) -> None:
    kernel = function(address)
    with _pool_lock:
        pool = _pools.get(threads)
        if pool is None:
            pool = _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="aatc")
    others: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # of an interpreter that shuts down: one thread does all
            for _ in range(threads - 1):
                others.append(pool.submit(kernel, context))
        kernel(context)
    finally:
        _wait_for(others)


def _wait_for(others: list[Future[None]]) -> None:
    """Until none of them is in the kernel: it works in memory of the caller's. An exception of a signal's handler is
    raised after that."""
    raised: BaseException | None = None
    while True:
        try:
            for other in others:
                if not other.cancel():  # one that has not begun would find nothing left to do
                    wait([other])
            break
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


# --- forked children ---------------------------------------------------------------------------------------
# GNU's OpenMP waits forever in a child for the threads its parent had. torch does, too; its data loaders ask for one
# thread. Threads of Python's are made anew in the child.
_forked = False


def _after_fork() -> None:
    global _forked, _pool_lock
    _forked = True
    _pool_lock = threading.Lock()
    _pools.clear()
    interrupt.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _was_forked() -> bool:
    """Whether this process has been forked before this file was imported, by Linux's account of when it began: a
    program that has only been started began before the first lines of Python ran."""
    began: float | None = getattr(logging, "_startTime", None)  # seconds, or nanoseconds since Python 3.13
    if sys.platform != "linux" or began is None:
        return False
    python_age = time.time() - (began / 1e9 if began > 1e12 else began)
    try:
        ticks = int(Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return False
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return age + 0.05 < python_age


_forked = _was_forked()
