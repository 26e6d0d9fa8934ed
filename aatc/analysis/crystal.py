"""Crystal: lattices and symmetries of patterns, Brillouin zones, bands and their topology, phonons."""

from aatc.passes.analysis.crystal.bands import (
    BandStructure,
    BandTopology,
    Crystal,
    ToeplitzPart,
    as_crystal,
    band_structure,
    crystal,
    path_of,
    sublattices,
    toeplitz_part,
    winding_number,
)
from aatc.passes.analysis.crystal.brillouin import BrillouinZone, brillouin_zones
from aatc.passes.analysis.crystal.detection import detect_lattice
from aatc.passes.analysis.crystal.lattices import (
    BravaisLattice,
    CrystalError,
    basis_of,
    canonical_basis,
    cell_volume,
    deviations,
    high_symmetry_points,
    planar_class,
    reciprocal_basis,
    reduced_basis,
    sampling_basis,
)
from aatc.passes.analysis.crystal.phonons import PhononSpectrum, acoustic_sum, phonon_modes, springs
from aatc.passes.analysis.crystal.refraction import RefractionSystem
from aatc.passes.analysis.crystal.wallpaper import (
    SymmetryGroup,
    SymmetryOperation,
    compose,
    compute_symmetries,
    isometries,
)

__all__ = [
    "BandStructure",
    "BandTopology",
    "BravaisLattice",
    "BrillouinZone",
    "Crystal",
    "CrystalError",
    "PhononSpectrum",
    "RefractionSystem",
    "SymmetryGroup",
    "SymmetryOperation",
    "ToeplitzPart",
    "acoustic_sum",
    "as_crystal",
    "band_structure",
    "basis_of",
    "brillouin_zones",
    "canonical_basis",
    "cell_volume",
    "compose",
    "compute_symmetries",
    "crystal",
    "detect_lattice",
    "deviations",
    "high_symmetry_points",
    "isometries",
    "path_of",
    "phonon_modes",
    "planar_class",
    "reciprocal_basis",
    "reduced_basis",
    "sampling_basis",
    "springs",
    "sublattices",
    "toeplitz_part",
    "winding_number",
]
