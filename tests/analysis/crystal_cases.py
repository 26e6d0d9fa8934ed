"""Patterns, lattices and crystals that the tests of the crystal family draw."""

import numpy as np

#: Operations in halves of the conventional cell, (a, b, c, d, s, t) for (x, y) → (ax + by + s/2, cx + dy + t/2), from
#: the International Tables; and the shape of the cell.
ITA = {
    "p1": ("any", []),
    "p2": ("any", [(-1, 0, 0, -1, 0, 0)]),
    "pm": ("box", [(-1, 0, 0, 1, 0, 0)]),
    "pg": ("box", [(-1, 0, 0, 1, 0, 1)]),
    "cm": ("box", [(-1, 0, 0, 1, 0, 0), (1, 0, 0, 1, 1, 1)]),
    "pmm": ("box", [(-1, 0, 0, -1, 0, 0), (-1, 0, 0, 1, 0, 0)]),
    "pmg": ("box", [(-1, 0, 0, -1, 0, 0), (-1, 0, 0, 1, 1, 0)]),
    "pgg": ("box", [(-1, 0, 0, -1, 0, 0), (-1, 0, 0, 1, 1, 1)]),
    "cmm": ("box", [(-1, 0, 0, -1, 0, 0), (-1, 0, 0, 1, 0, 0), (1, 0, 0, 1, 1, 1)]),
    "p4": ("square", [(0, -1, 1, 0, 0, 0)]),
    "p4m": ("square", [(0, -1, 1, 0, 0, 0), (-1, 0, 0, 1, 0, 0)]),
    "p4g": ("square", [(0, -1, 1, 0, 0, 0), (-1, 0, 0, 1, 1, 1)]),
    "p3": ("hexagonal", [(0, -1, 1, -1, 0, 0)]),
    "p3m1": ("hexagonal", [(0, -1, 1, -1, 0, 0), (0, -1, -1, 0, 0, 0)]),
    "p31m": ("hexagonal", [(0, -1, 1, -1, 0, 0), (0, 1, 1, 0, 0, 0)]),
    "p6": ("hexagonal", [(1, -1, 1, 0, 0, 0)]),
    "p6m": ("hexagonal", [(1, -1, 1, 0, 0, 0), (0, 1, 1, 0, 0, 0)]),
}


def orbits(n: int, m: int, operations, shear: int = 0) -> np.ndarray:
    """The number of each point's orbit in a cell of n × m points, (n, m), of the lattice of (n, shear) and (0, m)."""
    labels = np.arange(n * m).reshape(n, m)
    x, y = np.indices((n, m))
    while True:
        before = labels
        for a, b, c, d, s, t in operations:
            u, v = a * x + b * y + s * n // 2, c * x + d * y + t * m // 2
            u, v = u % n, (v - u // n * shear) % m
            least = np.minimum(labels, labels[u, v])
            labels = least.copy()
            labels[u, v] = least
            labels = np.minimum(labels, least)
        if np.array_equal(before, labels):
            return labels


def wallpaper(name: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A window of a pattern with this group, its motif, size, origin and window drawn; and its sampling."""
    shape, operations = ITA[name]
    n, m = (2 * int(x) for x in rng.integers(3, 7, 2))
    if shape in ("square", "hexagonal"):
        m = n
    elif n == m:
        m += 2
    shear = int(rng.integers(1, m)) if shape == "any" else 0
    labels = orbits(n, m, operations, shear)
    _, labels = np.unique(labels, return_inverse=True)
    labels = labels.reshape(n, m)
    kind = rng.integers(3)
    motif = rng.permutation(labels.max() + 1) if kind == 0 else rng.standard_normal(labels.max() + 1)
    if kind == 2:
        motif = np.exp(motif)
    window = [int(rng.integers(2 * k + 1, 3 * k + 2)) for k in (n, m)]
    origin = rng.integers(0, 50, 2)
    i, j = np.arange(window[0])[:, None] + origin[0], np.arange(window[1])[None, :] + origin[1]
    return motif[labels[i % n, (j - i // n * shear) % m]], "hexagonal" if shape == "hexagonal" else "square"


def planar_lattice(kind: str, rng: np.random.Generator, shortest: float) -> np.ndarray:
    """A basis (2, 2) of a lattice of this class in any direction, its reduced basis at least 12 % off every other
    class, and its shortest vector as given."""
    if kind == "square":
        length, angle = 1.0, np.pi / 2
    elif kind == "hexagonal":
        length, angle = 1.0, 2 * np.pi / 3
    elif kind == "rectangular":
        length, angle = rng.uniform(1.15, 1.7), np.pi / 2
    elif kind == "centred rectangular":
        if rng.random() < 0.5:  # a rhombus whose cosine is far from 0 and from ½
            length, angle = 1.0, np.arccos(-rng.uniform(0.14, 0.41))
        else:  # twice |a · b| is a²
            length = rng.uniform(1.15, 1.7)
            angle = np.arccos(-0.5 / length)
    else:
        while True:
            length, cosine = rng.uniform(1.15, 1.7), rng.uniform(0.14, 0.6)
            if 2 * cosine * length < 0.85:
                break
        angle = np.arccos(-cosine)
    turn = rng.uniform(0, np.pi)
    return shortest * np.array(
        [[np.cos(turn), np.sin(turn)], length * np.array([np.cos(turn + angle), np.sin(turn + angle)])]
    )


def crystal_image(basis: np.ndarray, size: int, rng: np.random.Generator, noise: float) -> np.ndarray:
    """Blobs of drawn weights and widths at drawn places of each cell, one of them in windows below 32, of variance 1,
    plus noise of the given variance."""
    x = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), axis=-1).reshape(-1, 2)
    short = np.linalg.norm(basis[0])
    image = np.zeros(len(x))
    for _ in range(int(rng.integers(1, 4)) if size >= 32 else 1):
        width = max(0.8, short * (rng.uniform(0.14, 0.22) if size >= 32 else rng.uniform(0.2, 0.28)))
        image += rng.uniform(0.4, 1) * _blobs((x - rng.uniform(0, 20, 2)) @ np.linalg.inv(basis), basis, width)
    image = (image - image.mean()) / image.std()
    return (image + np.sqrt(noise) * rng.standard_normal(len(x))).reshape(size, size)


def _blobs(fractions: np.ndarray, basis: np.ndarray, width: float) -> np.ndarray:
    """Gaussians at all points of a lattice, at points given by fractions of its basis."""
    rest = fractions - np.floor(fractions)
    total = np.zeros(len(rest))
    for h in range(-2, 4):
        for k in range(-2, 4):
            total += np.exp(-(((rest - (h, k)) @ basis) ** 2).sum(1) / (2 * width**2))
    return total


def lattice_draw(seed: int, sizes, decibels) -> tuple[str, int, np.ndarray]:
    """(class, size, image): each class, size and signal-to-noise ratio by turns, a dozen cells or more in the window,
    and 14 samples a cell or more."""
    kind = ("oblique", "rectangular", "centred rectangular", "square", "hexagonal")[seed % 5]
    size, noise = sizes[seed // 5 % len(sizes)], 10 ** (-decibels[seed % len(decibels)] / 10)
    rng = np.random.default_rng([seed, size])
    basis = planar_lattice(kind, rng, 1.0)
    cells = np.exp(rng.uniform(np.log(12), np.log(min(400, size**2 / 14))))
    basis *= np.sqrt(size**2 / cells / abs(np.linalg.det(basis)))
    return kind, size, crystal_image(basis, size, rng, noise)
