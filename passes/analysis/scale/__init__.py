"""Scale: coarse-graining of chains, renormalisation maps and their fixed points, anomalies, scaling exponents.

The checks of witnesses are loaded with the package, so that every witness of it can be verified.
"""

from aatc.passes.analysis.scale import verify_anomalies, verify_chains, verify_exponents, verify_maps

__all__ = ["verify_anomalies", "verify_chains", "verify_exponents", "verify_maps"]
