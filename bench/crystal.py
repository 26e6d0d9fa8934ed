"""Count how many drawn lattices and wallpaper groups are found, and how often noise alone shows one.

python -m bench.crystal                  # some minutes on one thread
python -m bench.crystal --draws 40
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

if not __package__:  # run as a file: the checkout takes the place of this folder on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

SIZES = (16, 24, 32, 48, 64, 96, 128, 256)


def lattices(draws: int, sizes: tuple[int, ...], decibels: tuple[int, ...]) -> str:
    from aatc.analysis.crystal import detect_lattice
    from tests.analysis.crystal_cases import lattice_draw

    wrong: Counter[tuple[str, str]] = Counter()
    for seed in range(draws):
        kind, _, image = lattice_draw(seed, sizes, decibels)
        found = detect_lattice(image).value.bravais
        wrong[kind, found] += found != kind
    misses = {f"{a} taken for {b}": n for (a, b), n in wrong.items() if n}
    return f"{draws - sum(wrong.values())} of {draws} right {misses or ''}"


def noise(draws: int) -> str:
    from aatc.analysis.crystal import detect_lattice

    false = 0
    for seed in range(draws):
        rng = np.random.default_rng([seed, 77])
        false += detect_lattice(rng.standard_normal((SIZES[seed % len(SIZES)],) * 2)).value.rank > 0
    return f"{false} of {draws} false"


def groups(draws: int) -> str:
    from aatc.analysis.crystal import compute_symmetries
    from tests.analysis.crystal_cases import ITA, wallpaper

    right = 0
    for place, name in enumerate(ITA):
        for seed in range(draws):
            pattern, sampling = wallpaper(name, np.random.default_rng([seed, place, 1]))
            right += compute_symmetries(pattern, sampling=sampling).value.name == name
    return f"{right} of {len(ITA) * draws} right"


def main(draws: Annotated[int, typer.Option(help="Draws of each row.")] = 200) -> None:
    print(f"lattices, sizes {SIZES[0]} to {SIZES[-1]}, 0 to 10 dB: {lattices(draws, SIZES, (0, 3, 10))}", flush=True)
    for size in SIZES:
        print(f"lattices, size {size}, 0 dB: {lattices(draws, (size,), (0,))}", flush=True)
    print(f"noise alone: {noise(draws)}", flush=True)
    print(f"wallpaper groups: {groups(max(1, draws // 10))}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.run(main)
