"""Crystal: lattices and symmetries of patterns, Brillouin zones, bands and their topology, phonons.

The checks of witnesses are loaded with the package, so that every witness of it can be verified.
"""

from aatc.passes.analysis.crystal import verify_bands, verify_lattices

__all__ = ["verify_bands", "verify_lattices"]
