"""Homotopy: components, fundamental groups, higher groups, rational homotopy, spectral sequences."""

from aatc.passes.analysis.fundamental_group import (
    FundamentalGroup,
    fundamental_group,
)
from aatc.passes.analysis.homotopy_groups import (
    HomotopyGroups,
    PersistentComponents,
    abelian,
    components,
    gamma,
    homotopy_groups,
    persistent_components,
)
from aatc.passes.analysis.presentation import (
    Presentation,
    canonical,
    coset_table,
    cyclically_reduced,
    inverse,
    reduced,
)
from aatc.passes.analysis.rational_homotopy import (
    Generator,
    RationalModel,
    homotopy_ranks,
    rational_homotopy,
    simply_connected,
)
from aatc.passes.analysis.spectral_sequence import (
    FiltrationWitness,
    Page,
    Pair,
    SpectralAttention,
    SpectralSequence,
    levels_by_map,
    levels_by_weight,
    spectral_sequence,
)

__all__ = [
    "FiltrationWitness",
    "FundamentalGroup",
    "Generator",
    "HomotopyGroups",
    "Page",
    "Pair",
    "PersistentComponents",
    "Presentation",
    "RationalModel",
    "SpectralAttention",
    "SpectralSequence",
    "abelian",
    "canonical",
    "components",
    "coset_table",
    "cyclically_reduced",
    "fundamental_group",
    "gamma",
    "homotopy_groups",
    "homotopy_ranks",
    "inverse",
    "levels_by_map",
    "levels_by_weight",
    "persistent_components",
    "rational_homotopy",
    "reduced",
    "simply_connected",
    "spectral_sequence",
]
