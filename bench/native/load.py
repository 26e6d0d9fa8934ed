"""One core kept busy by another process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Ends by itself if whoever started it has died.
_SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(10**6):
        pass
"""


@contextmanager
def busy(wanted: bool = True) -> Iterator[None]:
    """Inside, another process computes as much as one core lets it, on the cores that this process may use."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", _SPIN])
    try:
        time.sleep(0.3)
        yield
    finally:
        process.kill()
        process.wait()
