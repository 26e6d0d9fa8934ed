"""What torch's operators run on: OpenMP, and MKL in it."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch


def libraries() -> list[ctypes.CDLL]:
    """Those the process has loaded, torch's own first. None is loaded that torch does not use: its threads would be
    others than torch's."""
    names = [
        str(path)
        for pattern in ("libgomp*", "libomp*", "libiomp*")
        for path in sorted((Path(torch.__file__).parent / "lib").glob(pattern))
    ]
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            mapped = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if line.count("/")}
    except OSError:
        mapped = set()
    names += sorted(name for name in mapped if "omp" in Path(name).name and ".so" in Path(name).name)
    only_loaded = getattr(os, "RTLD_NOLOAD", None)
    if only_loaded is None:
        return []
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(ctypes.CDLL(name, mode=only_loaded | os.RTLD_LAZY))
        except OSError:
            continue
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's operators run on the calling thread alone, in this thread only: OpenMP and MKL count threads for each of
    their callers. Compiling is thousands of operators on a few hundred numbers each, which a second thread helps none
    of, and each of which it delays by milliseconds where its core is busy. Changes nothing where they cannot be asked.
    """
    with ExitStack() as stack:
        stack.callback(setattr, _outside, "threads", getattr(_outside, "threads", None))
        _outside.threads = threads()
        counters = _counters()
        if counters is not None:
            read, write = counters
            stack.callback(write, read())
            write(1)
        local = _mkl_local()
        if local is not None:
            stack.callback(local, local(1))
        yield


_outside = threading.local()


def threads() -> int:
    """The number that torch's operators take in this thread; within `one_thread`, what it is outside."""
    return getattr(_outside, "threads", None) or torch.get_num_threads()


@functools.cache
def _counters() -> tuple[Any, Any] | None:
    """``omp_get_max_threads`` and ``omp_set_num_threads`` of the OpenMP that torch has loaded."""
    for library in libraries():
        try:
            read, write = library.omp_get_max_threads, library.omp_set_num_threads
        except AttributeError:
            continue
        read.restype, read.argtypes, write.restype, write.argtypes = ctypes.c_int, [], None, [ctypes.c_int]
        return read, write
    return None


@functools.cache
def _mkl_local() -> Any:
    """``MKL_Set_Num_Threads_Local`` of the MKL in torch, which takes the calling thread's number of threads and returns
    the one before, 0 for that of the process; None where torch has no MKL."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"), mode=os.RTLD_LAZY)
        found = library.MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):
        return None
    found.restype, found.argtypes = ctypes.c_int, [ctypes.c_int]
    return found
