"""Draws many attentions, collects what fails instead of stopping, and prints it: ``python -m tests.fuzz.survey``.

    python -m tests.fuzz.survey --start 0 --count 5000 --out findings.txt --off fill-inf,empty

Seeds are numbers: ``--start 17 --count 1`` draws the same attention again.
"""

from __future__ import annotations

import argparse
import random
import time
import traceback
from collections import Counter

import torch

from tests.fuzz.check import COUNTS, check_attention, check_compiled, check_spoiled, described
from tests.fuzz.smaller import failure, kind_of, smaller
from tests.fuzz.strategies import OFF, Case, draw_case, spoilable


def check(case: Case, a: argparse.Namespace) -> None:
    if a.compiled:
        check_compiled(case, dynamic=bool(case.seed_of_tensors % 2), backend=a.backend)
    elif a.spoiled:
        if case.mask is not None:
            check_spoiled(case, random.Random(case.seed_of_tensors).choice(spoilable(case)), a.backend)
    else:
        check_attention(case, stages=not a.no_stages, backend=a.backend)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--start", type=int, default=0)
    p.add_argument("--count", type=int, default=100)
    p.add_argument("--out")
    p.add_argument("--off", default=",".join(sorted(OFF)))
    p.add_argument("--dtypes", default="float64,float32,bfloat16,float16")
    p.add_argument("--backend", default="auto")
    p.add_argument("--compiled", action="store_true", help="through aatc.compile")
    p.add_argument("--spoiled", action="store_true", help="with numbers that are not finite under the mask")
    p.add_argument("--no-stages", action="store_true")
    p.add_argument("--smaller", type=int, default=0, help="so many of each kind are made smaller")
    p.add_argument("--verbose", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    first: dict[str, list[int]] = {}
    began = time.time()
    for seed in range(a.start, a.start + a.count):
        case = draw_case(random.Random(seed), frozenset(a.off.split(",")), tuple(a.dtypes.split(",")))
        try:
            torch.manual_seed(0)
            check(case, a)
        except Exception as raised:
            error: Exception | None = raised
            kind = kind_of(error)
            found[kind] += 1
            if a.smaller and found[kind] <= a.smaller:
                case = smaller(case, lambda c, kind=kind: kind_of(failure(c, lambda c: check(c, a))) == kind)
                error = failure(case, lambda c: check(c, a))
            first.setdefault(kind, []).append(seed)
            text = f"--- seed {seed}: {kind}\n{error}\n{described(case)}\n"
            if a.verbose:
                print(text, "".join(traceback.format_exception(raised)))
            if a.out:
                with open(a.out, "a") as f:
                    f.write(text + "\n")
    print(f"{a.count} draws in {time.time() - began:.0f} s, {sum(found.values())} failed; {dict(COUNTS)}")
    for kind, n in found.most_common():
        print(f"{n:5d}  {kind}  seeds {first[kind][:6]}")


if __name__ == "__main__":
    main()
