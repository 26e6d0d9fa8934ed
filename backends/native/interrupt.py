"""Ctrl-C, and other signals, during a long kernel.

Python's signal handlers run in the main thread, between its bytecodes: not while it is in a kernel. But the number of a
signal is written to a socket at once, where a thread waits that tells the kernel to return. Two microseconds per call.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

#: A handler of a signal may run a kernel of its own while its thread holds this.
_lock = threading.RLock()
_sockets: tuple[socket.socket, socket.socket] | None = None  # read by the watcher, written by the interpreter
_stop: ctypes.c_int64 | None = None  # of the kernel that runs
_before = -1  # where the program wanted signals written


def watched(call: Callable[[], None], stop: int, resume: Callable[[], None] | None = None) -> None:
    """Calls ``call`` until it returns with the int64 at ``stop`` 0, and ``resume`` in between. The int64 is set to 1
    when a signal arrives that Python handles; an exception of its handler comes out of here. Of the main thread only.
    """
    global _stop, _before
    flag = ctypes.c_int64.from_address(stop)
    writer = _watcher()
    before, outer = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False), (_stop, _before)
    told = outer[1] if before == writer.fileno() else before  # by a handler of a signal, within another call
    try:
        while True:
            with _lock:
                flag.value, _stop, _before = 0, flag, told
            try:
                call()
            finally:
                with _lock:
                    stopped, _stop = bool(flag.value), None
            if not stopped:
                return
            if resume is not None:
                resume()
    finally:
        signal.set_wakeup_fd(before)
        with _lock:
            _pass_on()  # what the watcher has not come to yet: later nobody knows whom to tell
            _stop, _before = outer


def forget() -> None:
    """The watcher of a process that was forked is not in its child."""
    global _lock, _sockets, _stop, _before
    _lock, _sockets, _stop, _before = threading.RLock(), None, None, -1


def _watcher() -> socket.socket:
    global _sockets
    if _sockets is None:
        _sockets = socket.socketpair()
        for end in _sockets:
            end.setblocking(False)
        threading.Thread(target=_watch, args=(_sockets[0],), name="aatc-interrupt", daemon=True).start()
    return _sockets[1]


def _watch(reader: socket.socket) -> None:
    while True:
        select.select([reader], [], [])
        with _lock:  # before it is read: whoever has read must still know whom to tell
            if _sockets is None or _sockets[0] is not reader:
                return
            _pass_on()


def _pass_on() -> None:
    """Tells the kernel, and whoever the program wanted told, of signals that have arrived. With the lock held."""
    if _sockets is None:
        return
    with suppress(BlockingIOError):
        signals = _sockets[0].recv(64)
        if _stop is not None:
            _stop.value = 1
        if _before >= 0:
            # One that is full has been told to wake up; on Windows it is a socket, told when the kernel is done.
            with suppress(OSError):
                os.write(_before, signals)
