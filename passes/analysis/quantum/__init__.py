"""Quantum: states, evolution, measurement, entanglement, geometry and path integrals in finite dimensions.

The checks of witnesses are loaded with the package, so that every witness of it can be verified.
"""

from aatc.passes.analysis.quantum import verify_paths, verify_states

__all__ = ["verify_paths", "verify_states"]
