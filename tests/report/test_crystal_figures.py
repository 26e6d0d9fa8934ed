"""Pictures of lattices, zones and bands show the numbers that they are given."""

import numpy as np
import pytest

from aatc.analysis.crystal import band_structure, brillouin_zones, crystal, detect_lattice, path_of
from aatc.report import PictureError, bands_figure, brillouin_figure, lattice_figure

pytest.importorskip("matplotlib")


def test_points_of_a_lattice_lie_over_equal_entries():
    pattern = np.tile(np.random.default_rng(0).standard_normal((4, 5)), (5, 5))
    figure = lattice_figure(pattern, detect_lattice(pattern), title="tiles")
    figure.canvas.draw()
    points = figure.axes[0].lines[0]
    entries = pattern[points.get_ydata().astype(int), points.get_xdata().astype(int)]
    assert len(entries) == 25 and len(set(entries.tolist())) == 1
    for other in (np.tri(12), np.random.default_rng(0).standard_normal((16, 16))):
        lattice_figure(other, detect_lattice(other)).canvas.draw()


def test_zones_and_bands_are_drawn_as_they_are():
    zones = brillouin_zones(np.eye(2), 3)
    figure = brillouin_figure(zones)
    figure.canvas.draw()
    assert len(figure.axes[0].patches) == sum(len(z.pieces) for z in zones.value)
    path = path_of([[0, 0], [np.pi, 0], [np.pi, np.pi]], 6)
    bands = band_structure(crystal({(0, 0): 0.0, (1, 0): -1.0, (0, 1): -1.0}), path)
    figure = bands_figure(bands, (0, 6, 12), ("Γ", "X", "M"))
    figure.canvas.draw()
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), bands.value.energies[:, 0])
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["Γ", "X", "M"]
    bands_figure(band_structure(np.eye(6, k=-1), grid=8)).canvas.draw()


@pytest.mark.parametrize(
    "call",
    [
        lambda: lattice_figure(np.eye(3), "square"),
        lambda: brillouin_figure(()),
        lambda: brillouin_figure(brillouin_zones(np.eye(3))),
        lambda: bands_figure(band_structure(np.eye(4), grid=8), (0,), ()),
        lambda: bands_figure(band_structure(np.eye(4), grid=8), (9,), ("X",)),
    ],
)
def test_what_is_no_picture_is_refused(call):
    with pytest.raises(PictureError):
        call()
