"""Plants the faults of `ir_faults`, `pass_faults`, `program_faults`, `backend_faults` and `outsiders_faults` one at a
time in a scratch copy and says which the tests let live.

    python -m tests.planted.run                      # all of them, in a copy of this checkout
    python -m tests.planted.run minimum-ties cos-sign
    python -m tests.planted.run --at COMMIT          # code and tests as they stood then

Nothing in this checkout is changed. A fault is *killed* when a test of its list fails, *stale* when its text is no
longer in its file, *unfinished* when its tests take too long to say. Not part of ``make test``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.planted import backend_faults, ir_faults, outsiders_faults, pass_faults, program_faults
from tests.planted.fault import Fault

FAULTS = ir_faults.FAULTS + pass_faults.FAULTS + program_faults.FAULTS + backend_faults.FAULTS + outsiders_faults.FAULTS
ROOT = Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".hypothesis", "*.egg-info", "build", ".*_cache")


def scratch_copy(at: str | None, where: Path) -> Path:
    """This checkout, or a commit of it, in a folder of its own."""
    copy = where / "copy"
    if at is None:
        shutil.copytree(ROOT, copy, symlinks=True, ignore=_LEFT_OUT)
    else:
        copy.mkdir()
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", at], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(copy)], input=archive, check=True)
    return copy


def verdict(fault: Fault, copy: Path, seconds: float, more: list[str], without: list[str]) -> str:
    """killed, lived, unfinished or stale; ``more`` are arguments for pytest."""
    path = copy / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        return "stale"
    files = [t for t in dict.fromkeys(fault.tests) if (copy / t).exists() and not any(x in t for x in without)]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *more, *files]
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    try:
        done = subprocess.run(
            command, cwd=copy, capture_output=True, timeout=seconds, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    except subprocess.TimeoutExpired:
        return "unfinished"
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode not in (0, 1, 2):
        return f"error {done.returncode}: {done.stdout.decode()[-200:]}"
    if done.returncode == 0:
        return "lived"
    failed = [line for line in done.stdout.decode().splitlines() if line.startswith(("FAILED", "ERROR"))]
    return f"killed   {failed[0][:110]}" if failed else "killed"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*")
    p.add_argument("--at", help="a commit")
    p.add_argument("--seconds", type=float, default=300, help="for one fault")
    p.add_argument("--without", action="append", default=[], help="leave out test files with this in their names")
    p.add_argument("--pytest", default="", help="more arguments for pytest")
    a = p.parse_args()
    chosen = [f for f in FAULTS if not a.names or f.name in a.names]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = scratch_copy(a.at, Path(folder))
        for fault in chosen:
            start = time.time()
            found = verdict(fault, copy, a.seconds, a.pytest.split(), a.without)
            counts[found.split()[0]] += 1
            print(f"{fault.name:24s} {time.time() - start:5.0f} s  {found}", flush=True)
    print(", ".join(f"{n} {what}" for what, n in counts.items()))


if __name__ == "__main__":
    main()
