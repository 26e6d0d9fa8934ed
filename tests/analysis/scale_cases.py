"""Chains, charges and fractals that tests of the scale family share."""

import numpy as np
from hypothesis import strategies as st

from aatc.passes.analysis.scale.anomaly import charge_table


def chain(seed, n, sparse=0.0):
    """Rows of Dirichlet laws, a share of the entries 0; every state steps to the next one: there is one class."""
    rng = np.random.default_rng(seed)
    a = rng.dirichlet(np.full(n, 0.5), n) * (rng.random((n, n)) >= sparse)
    a[np.arange(n), (np.arange(n) + 1) % n] += 0.1
    return a / a.sum(1, keepdims=True)


#: Chains of one recurrent class.
chains = st.builds(chain, st.integers(0, 10**6), st.integers(2, 14), st.sampled_from([0.0, 0.5, 0.9]))


def stationary(a):
    """By least squares."""
    n = len(a)
    system = np.concatenate([a.T - np.eye(n), np.ones((1, n))])
    return np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=None)[0]


def generation(right_handed_neutrino=False):
    """One generation of the Standard Model: hypercharge, and baryon less lepton number."""
    fields = [  # Y, B − L, chirality, multiplicity, SU(2), SU(3)
        ("1/6", "1/3", 1, 6, ("1/2", 3), ("1/2", 2)),
        ("2/3", "1/3", -1, 3, (0, 1), ("1/2", 1)),
        ("-1/3", "1/3", -1, 3, (0, 1), ("1/2", 1)),
        ("-1/2", -1, 1, 2, ("1/2", 1), (0, 1)),
        (-1, -1, -1, 1, (0, 1), (0, 1)),
    ]
    if right_handed_neutrino:
        fields.append((0, -1, -1, 1, (0, 1), (0, 1)))
    columns = list(zip(*fields))
    return charge_table(
        [list(f[:2]) for f in fields], chirality=columns[2], multiplicity=columns[3], names=("Y", "B−L"),
        indices={"SU(2)": columns[4], "SU(3)": columns[5]},
    )  # fmt: skip


def cantor(depth):
    """The middle thirds left out, ``depth`` times: (3^depth,)."""
    cells = np.ones(1, dtype=bool)
    for _ in range(depth):
        cells = np.concatenate([cells, np.zeros_like(cells), cells])
    return cells


def carpet(depth):
    """Sierpiński's carpet, (3^depth, 3^depth)."""
    cells = np.ones((1, 1), dtype=bool)
    hole = np.ones((3, 3), dtype=bool)
    hole[1, 1] = False
    for _ in range(depth):
        cells = np.kron(hole, cells)
    return cells


def by_distance(n, exponent):
    """Weights that fall as (1 + distance)^−exponent."""
    apart = np.abs(np.arange(n)[:, None] - np.arange(n))
    w = (1.0 + apart) ** -exponent
    return w / w.sum(1, keepdims=True)
