"""Pictures of what aatc.geometry and the analyses compute, as matplotlib figures that need no display.

Every function takes tensors or result objects and returns a `matplotlib.figure.Figure`: save it with its ``savefig``.
matplotlib is an extra, loaded by the first picture: ``pip install "aatc[report]"``.
"""

from aatc.report.attention import attention_figure
from aatc.report.bifurcation import bifurcation_figure
from aatc.report.canvas import MissingLibraryError, PictureError
from aatc.report.crystal import bands_figure, brillouin_figure, lattice_figure
from aatc.report.flow import flow_figure
from aatc.report.graph import curvature_graph_figure
from aatc.report.pattern import Dispersion, RadialSpectrum, radial_spectrum, turing_figure
from aatc.report.phase import hamiltonian_figure
from aatc.report.quantum import bloch_figure, entropy_figure, head_table
from aatc.report.scale import head_flows, rg_flow_figure
from aatc.report.surface import Surface, geodesic_figure, turning_angle

__all__ = [
    "Dispersion",
    "MissingLibraryError",
    "PictureError",
    "RadialSpectrum",
    "Surface",
    "attention_figure",
    "bands_figure",
    "bifurcation_figure",
    "bloch_figure",
    "brillouin_figure",
    "curvature_graph_figure",
    "entropy_figure",
    "flow_figure",
    "geodesic_figure",
    "hamiltonian_figure",
    "head_flows",
    "head_table",
    "lattice_figure",
    "radial_spectrum",
    "rg_flow_figure",
    "turing_figure",
    "turning_angle",
]
