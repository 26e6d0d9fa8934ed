"""`RefractionSystem`: symmetries, lattices, Brillouin zones, bands and phonons of patterns and crystals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aatc.passes.analysis.crystal.bands import Crystal, band_structure
from aatc.passes.analysis.crystal.brillouin import brillouin_zones
from aatc.passes.analysis.crystal.detection import detect_lattice
from aatc.passes.analysis.crystal.lattices import sampling_basis
from aatc.passes.analysis.crystal.phonons import phonon_modes, springs
from aatc.passes.analysis.crystal.wallpaper import compute_symmetries
from aatc.passes.analysis.result import Result


@dataclass(frozen=True)
class RefractionSystem:
    """The crystallography of arrays (n, m): attention patterns, masks, biases, or any other.

    ``sampling``: where their points lie, "square", "hexagonal", or the two steps (2, 2); ``level``: the probability
    that noise alone shows a lattice; ``tolerance`` for the shape of one found in noise. The seed's names are kept, with
    two corrections: bands and phonons are those of a crystal with hoppings or force constants, which a pattern alone
    has not: of a square array the Toeplitz part is taken; and nothing is refracted, for there is no wave from outside.
    """

    sampling: Any = "square"
    level: float = 1e-3
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        sampling_basis(self.sampling)

    def compute_symmetries(self, pattern: Any) -> Result[Any]:
        """The wallpaper group of a pattern that repeats exactly: see `compute_symmetries`. `CrystalError`."""
        return compute_symmetries(pattern, sampling=self.sampling)

    def detect_lattice(self, pattern: Any, method: str = "auto") -> Result[Any]:
        """The translations of a pattern, exact or in noise: see `detect_lattice`. `CrystalError`."""
        return detect_lattice(
            pattern, sampling=self.sampling, method=method, level=self.level, tolerance=self.tolerance
        )

    def brillouin_zones(self, lattice: Any, count: int = 1) -> Result[Any]:
        """The first zones of a lattice: see `brillouin_zones`. `CrystalError`."""
        return brillouin_zones(lattice, count)

    def band_structure(
        self, crystal: Crystal | Mapping[Any, Any] | Any, points: Any = None, *, grid: int = 48, energy: float = 0.0
    ) -> Result[Any]:
        """Bands and their topology: see `band_structure`. `CrystalError`."""
        return band_structure(crystal, points, grid=grid, energy=energy)

    def phonon_modes(
        self, crystal: Crystal | Mapping[Any, Any] | Any, masses: Any = 1.0, points: Any = None, *, grid: int = 32,
        components: int = 1,
    ) -> Result[Any]:  # fmt: skip
        """Frequencies of a crystal of force constants, or of a square array taken for `springs`: see `phonon_modes`.
        `CrystalError`."""
        forces = crystal if isinstance(crystal, Crystal | Mapping) else springs(crystal)
        return phonon_modes(forces, masses, points, grid=grid, components=components)
