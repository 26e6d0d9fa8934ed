"""Pictures show the numbers they were given, name their axes, and refuse what they cannot draw."""

import math
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

from aatc.geometry.dynamics.bifurcation import BifurcationDiagram, bifurcation_diagram
from aatc.geometry.dynamics.hamiltonian import HamiltonianSystem
from aatc.geometry.dynamics.reaction_diffusion import Grid, ReactionDiffusion
from aatc.geometry.dynamics.reaction_terms import Schnakenberg
from aatc.geometry.flows.attention_flow import AttentionFlow
from aatc.geometry.flows.conformal_flow import ConformalFlow
from aatc.geometry.flows.flow_trajectory import Singularity
from aatc.geometry.flows.graph_curvature import forman_ricci
from aatc.geometry.flows.invariant_family import InvariantFamily, round_sphere
from aatc.geometry.flows.ricci_flow import GeometricFlow
from aatc.geometry.manifolds.riemannian import RiemannianStructure
from aatc.report import (
    Dispersion,
    MissingLibraryError,
    PictureError,
    Surface,
    attention_figure,
    bifurcation_figure,
    canvas,
    curvature_graph_figure,
    flow_figure,
    geodesic_figure,
    hamiltonian_figure,
    radial_spectrum,
    turing_figure,
    turning_angle,
)

pytest.importorskip("matplotlib")


def save(figure, folder: Path) -> int:
    """The bytes of the figure's PNG."""
    path = folder / "figure.png"
    figure.savefig(path, dpi=40)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return path.stat().st_size


def named_axes(figure) -> None:
    """Every panel names both of its axes, and every colour bar its values."""
    for axes in figure.axes:
        names = [axes.get_xlabel(), axes.get_ylabel()]
        assert all(names) if not hasattr(axes, "_colorbar") else any(names), axes.get_title()


def line(axes, label: str) -> np.ndarray:
    (found,) = [item for item in axes.lines if item.get_label() == label]
    return np.stack(found.get_data(), -1)


def arrows(axes, label: str) -> np.ndarray:
    """The starts and the vectors, (m, 2, 3), of a quiver in space."""
    (found,) = [item for item in axes.collections if item.get_label() == label]
    # Three lines each, the shafts first, from the tip to the start.
    shafts = np.array(found._segments3d)[: len(found._segments3d) // 3]
    return np.stack((shafts[:, 1], shafts[:, 0] - shafts[:, 1]), 1)


def latitude(colatitude: float, steps: int = 64) -> tuple[Surface, Tensor, Tensor]:
    """A circle of latitude of the unit sphere, and a vector carried round it."""
    sphere = Surface.sphere()
    around = torch.linspace(0, 2 * math.pi, steps + 1, dtype=torch.float64)
    points = torch.stack((torch.full_like(around, colatitude), around), -1)
    carried = sphere.structure.parallel_transport(
        lambda t: torch.stack((torch.full_like(t, colatitude), 2 * math.pi * t)),
        torch.tensor([1.0, 0.0], dtype=torch.float64),
        steps=steps,
    )
    return sphere, points, carried[:, None]


@pytest.mark.parametrize("surface", [Surface.torus(2.0, 0.7), Surface.sphere(1.5)])
def test_the_metric_of_a_surface_is_that_of_its_embedding(surface):
    points = torch.rand(7, 2, dtype=torch.float64) + 0.4
    induced = Surface.of(surface.embedding, surface.extent).structure
    torch.testing.assert_close(surface.structure.metric_tensor(points), induced.metric_tensor(points))
    torch.testing.assert_close(surface.structure.christoffel_symbols(points), induced.christoffel_symbols(points))


def test_a_vector_that_vanishes_has_not_turned():
    sphere, points, carried = latitude(0.8, 16)
    with pytest.raises(PictureError, match="vanishes"):
        turning_angle(sphere, points, 0 * carried[:, 0])


@pytest.mark.parametrize("colatitude", [0.3, 0.8, 1.1])
def test_the_turn_of_a_vector_is_the_area_of_the_cap(colatitude):
    sphere, points, carried = latitude(colatitude, 256)
    area, vectors = 2 * math.pi * (1 - math.cos(colatitude)), carried[:, 0]
    assert math.remainder(turning_angle(sphere, points, vectors) - area, 2 * math.pi) == pytest.approx(0, abs=1e-7)
    # The other way round, the other sense.
    back = turning_angle(sphere, points.flip(0), vectors.flip(0))
    assert math.remainder(back + area, 2 * math.pi) == pytest.approx(0, abs=1e-7)


def test_a_geodesic_is_drawn_on_its_surface_with_the_frame_that_was_carried(tmp_path):
    torus = Surface.torus()
    times = torch.linspace(0, 3, 25, dtype=torch.float64)
    start, velocity = torch.tensor([[0.4, 0.0], [1.0, 0.3]], dtype=torch.float64)
    path = torus.structure.geodesic_flow(start, velocity, times, method="rk4")
    frame = torus.structure.parallel_transport(path, torch.eye(2, dtype=torch.float64))
    figure = geodesic_figure(path, torus, frame=frame, arrows=5, title="torus")
    (axes,) = figure.axes
    curve = next(item for item in axes.lines if item.get_label() == "geodesic")
    np.testing.assert_allclose(np.stack(curve.get_data_3d(), -1), torus.embedding(path.points).numpy())
    shown = torus.push(path.points, frame)[::6]
    drawn = np.stack([arrows(axes, f"carried vector {k}") for k in (1, 2)], 1)
    np.testing.assert_allclose(drawn[:, 0, 0], torus.embedding(path.points[::6]).numpy())
    # One scale for all arrows.
    scale = np.linalg.norm(drawn[0, 0, 1]) / float(shown[0, 0].norm())
    np.testing.assert_allclose(drawn[:, :, 1], scale * shown.numpy(), atol=1e-12)
    # One unit of length is as long along all three axes.
    sides = np.ptp((axes.get_xlim3d(), axes.get_ylim3d(), axes.get_zlim3d()), axis=1)
    np.testing.assert_allclose(axes._box_aspect / sides, np.full(3, axes._box_aspect[0] / sides[0]))
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_zlabel()) == ("x", "y", "z") and axes.get_title() == "torus"
    assert save(figure, tmp_path) > 4000


def test_the_holonomy_of_a_loop_is_written_and_needs_a_loop_and_a_frame():
    sphere, points, carried = latitude(0.8)
    figure = geodesic_figure(points, sphere, frame=carried, holonomy=True)
    assert f"{2 * math.pi * (1 - math.cos(0.8)):+.4f} rad" in figure.axes[0].get_title()
    with pytest.raises(PictureError, match="loop"):
        geodesic_figure(points[:-3], sphere, frame=carried[:-3], holonomy=True)
    with pytest.raises(PictureError, match="frame"):
        geodesic_figure(points, sphere, holonomy=True)


def test_a_flow_of_metrics_shows_volume_curvature_and_the_singular_time(tmp_path):
    family = InvariantFamily(round_sphere, torch.tensor([[0.0, 0.0, 0.0], [0.4, 0.1, 0.2]], dtype=torch.float64))
    flow = GeometricFlow(ricci=family)
    trajectory = flow.evolve(family.metric(torch.ones(1, dtype=torch.float64)), 0.2, 20)
    (singular,) = flow.detect_singularities(trajectory, 5.0)
    figure = flow_figure(trajectory, snapshots=3, singular=[singular])
    first, volume, scalar, _ = figure.axes
    names = [item.get_label() for item in first.lines]
    assert names == ["t = 0", "t = 0.1", "t = 0.2"]
    # The volume of a sphere of radius² 1 − 4t goes with the power 3/2, at every sample alike.
    np.testing.assert_allclose(line(first, "t = 0.1")[:, 1], 0.6**1.5, rtol=1e-6)
    np.testing.assert_allclose(line(volume, "volume")[:, 1], [float(r.volume) for r in trajectory.invariants])
    # The scalar curvature of the 3-sphere of radius² 1 − 4t is 6/(1 − 4t).
    np.testing.assert_allclose(line(scalar, "mean")[:, 1], 6 / (1 - 4 * line(scalar, "mean")[:, 0]), rtol=1e-6)
    assert line(volume, "extinction")[0, 0] == pytest.approx(0.25, abs=1e-9)
    named_axes(figure)
    assert save(figure, tmp_path) > 4000


def test_a_conformal_flow_shows_images_of_one_range_and_a_total_curvature_that_stays(tmp_path):
    x = torch.arange(12, dtype=torch.float64) * (2 * math.pi / 12)
    u = 0.2 * x.sin()[:, None] * x.cos()
    trajectory = ConformalFlow((2 * math.pi, 2 * math.pi)).evolve(u, 0.5, 60, every=20)
    figure = flow_figure(trajectory, snapshots=4)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 4 and len({image.get_clim() for image in images}) == 1
    for image, factor in zip(images, trajectory.factors):
        np.testing.assert_array_equal(image.get_array(), factor.numpy())
    total = next(axes for axes in figure.axes if axes.get_ylabel() == "total curvature ∫K dA,\ndeviation from 0")
    np.testing.assert_allclose(line(total, "∫K dA")[:, 1], 0, atol=1e-12)
    named_axes(figure)
    assert save(figure, tmp_path) > 4000


def rows(count: int = 6) -> Tensor:
    return torch.randn(count, count, dtype=torch.float64).softmax(-1)


def attention_trajectory(field: Tensor):
    edges = torch.tensor([[i, i + 1] for i in range(len(field) - 1)])
    return AttentionFlow("simplex", edges=edges).evolve_attention(field, 1.0, 8, every=2)


def test_an_attention_flow_shows_every_energy_over_the_whole_time():
    trajectory = attention_trajectory(rows())
    figure = flow_figure(trajectory, snapshots=2)
    energy = next(axes for axes in figure.axes if axes.get_ylabel() == "energy")
    np.testing.assert_allclose(line(energy, "energy")[:, 0], np.arange(9) / 8)
    np.testing.assert_allclose(line(energy, "energy")[:, 1], trajectory.energies.numpy())
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), trajectory.final.numpy())


def test_a_batch_of_flows_and_other_objects_are_refused():
    u = torch.zeros(2, 8, 8, dtype=torch.float64)
    with pytest.raises(PictureError, match="one element of a batch"):
        flow_figure(ConformalFlow((1.0, 1.0)).evolve(u, 1e-4, 1))
    with pytest.raises(PictureError, match="no flow"):
        flow_figure(rows())


def test_an_infinite_singular_time_is_left_out():
    trajectory = attention_trajectory(rows())
    figure = flow_figure(trajectory, singular=[Singularity("collapse", (), math.inf, 1.0)])
    energy = next(axes for axes in figure.axes if axes.get_ylabel() == "energy")
    assert [item.get_label() for item in energy.lines] == ["energy"]


@pytest.fixture(scope="module")
def pitchfork() -> BifurcationDiagram:
    """u' = μu − u³ from μ = −1 to 1."""
    start = torch.zeros(1, dtype=torch.float64)
    return bifurcation_diagram(lambda u, mu: mu * u - u**3, start, (-1.0, 1.0))


def test_branches_are_solid_where_stable_and_dashed_where_not_and_meet_at_the_point(pitchfork, tmp_path):
    figure = bifurcation_figure(pitchfork, 0, parameter="μ", label="u")
    (axes,) = figure.axes
    solid, dashed = axes.lines[0], axes.lines[1]
    assert solid.get_linestyle() == "-" and dashed.get_linestyle() == "--"
    # The rest u = 0 is stable for μ < 0 alone.
    stable, unstable = (np.stack(item.get_data(), -1) for item in (solid, dashed))
    assert np.nanmin(stable[:, 0]) == -1 and np.nanmax(stable[:, 0]) == pytest.approx(0, abs=1e-8)
    assert np.nanmin(unstable[:, 0]) == pytest.approx(0, abs=1e-8) and np.nanmax(unstable[:, 0]) == 1
    born = np.stack(axes.lines[2].get_data(), -1)
    born = born[np.isfinite(born).all(1)]
    np.testing.assert_allclose(born[:, 1] ** 2, born[:, 0], atol=1e-8)
    assert np.isnan(axes.lines[3].get_ydata()).all()
    assert [text.get_text() for text in axes.texts] == [f"supercritical pitchfork\n{pitchfork.points[0].parameter:.4g}"]
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"stable", "unstable"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("μ", "u")
    assert save(figure, tmp_path) > 2000


def test_a_diagram_shows_the_norm_a_component_or_a_measure(pitchfork):
    branch = pitchfork.branches[1]
    for options, values in (
        ({}, branch.states[:, 0].abs()),
        ({"component": 0}, branch.states[:, 0]),
        ({"measure": lambda states: 2 * states[:, 0]}, 2 * branch.states[:, 0]),
    ):
        drawn = bifurcation_figure(pitchfork, **options).axes[0].lines[2].get_ydata()
        assert set(values.tolist()) <= set(drawn.tolist())
    with pytest.raises(PictureError, match="one of them"):
        bifurcation_figure(pitchfork, 0, measure=lambda states: states[:, 0])
    with pytest.raises(PictureError, match="no entry"):
        bifurcation_figure(pitchfork, 3)


def test_a_fold_is_drawn_to_its_turn():
    # u' = μ + u²: both branches end at the fold in (0, 0), the lower one stable.
    start = torch.tensor([-1.0], dtype=torch.float64)
    diagram = bifurcation_diagram(lambda u, mu: mu + u * u, start, (-1.0, 1.0))
    axes = bifurcation_figure(diagram, 0).axes[0]
    for item, low, high in ((axes.lines[0], -1, 0), (axes.lines[1], 0, 1)):
        assert np.nanmin(item.get_ydata()) == pytest.approx(low, abs=1e-6)
        assert np.nanmax(item.get_ydata()) == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize("boundary", ["periodic", "neumann"])
@pytest.mark.parametrize("sizes", [(12, 16), (9, 10), (15,)])
def test_the_rings_of_a_spectrum_sum_to_the_variance(boundary, sizes):
    field = torch.randn(sizes, dtype=torch.float64)
    spectrum = radial_spectrum(field, Grid((3.0, 5.0)[: len(sizes)], boundary))
    assert float(spectrum.power.sum()) == pytest.approx(float(field.var(correction=0)), rel=1e-12)


@pytest.mark.parametrize("waves", [2, 5])
def test_the_peak_of_a_wave_is_its_wavenumber(waves):
    grid = Grid((6.0, 6.0))
    x, _ = grid.coordinates((24, 24))
    field = (2 * math.pi * waves / 6 * x).cos()
    assert radial_spectrum(field, grid).peak == pytest.approx(2 * math.pi * waves / 6, rel=1e-12)


def test_a_uniform_field_has_no_wave():
    assert radial_spectrum(torch.ones(8, dtype=torch.float64), Grid((6.0,))).peak == 0.0
    figure = turing_figure(torch.ones(2, 8, dtype=torch.float64), Grid((6.0,)))
    assert "wavelength ∞" in " ".join(text.get_text() for text in figure.axes[1].get_legend().get_texts())


def test_a_pattern_is_shown_beside_the_growth_that_theory_predicts(tmp_path):
    grid, reaction = Grid((20.0, 30.0)), Schnakenberg()
    system = ReactionDiffusion(reaction, torch.tensor([1.0, 20.0], dtype=torch.float64), grid)
    dispersion = Dispersion.of(system, reaction.steady_states()[0])
    field = torch.rand(2, 10, 15, dtype=torch.float64)
    figure = turing_figure(field, grid, dispersion=dispersion, species=1)
    image = figure.axes[0].images[0]
    np.testing.assert_array_equal(image.get_array(), field[1].numpy())
    assert tuple(image.get_extent()) == (0, 30, 0, 20)
    growth = next(axes for axes in figure.axes if "growth" in axes.get_ylabel())
    np.testing.assert_array_equal(growth.lines[0].get_ydata(), dispersion.growth.numpy())
    predicted = dispersion.conditions
    assert line(growth, f"fastest growth: wavelength {predicted.wavelength:.3g}")[0, 0] == predicted.wavenumber
    # The curve itself crosses zero at the ends of the band.
    k, rate = growth.lines[0].get_data()
    assert k[rate > 0].min() == pytest.approx(predicted.band[0], abs=2 * k[1])
    assert k[rate > 0].max() == pytest.approx(predicted.band[1], abs=2 * k[1])
    named_axes(figure)
    assert save(figure, tmp_path) > 4000


def test_a_pattern_on_a_line_shows_every_species():
    grid = Grid((4.0,), "neumann")
    field = torch.rand(2, 16, dtype=torch.float64)
    axes = turing_figure(field, grid, names=("activator", "substrate")).axes[0]
    np.testing.assert_array_equal(line(axes, "substrate")[:, 1], field[1].numpy())
    np.testing.assert_array_equal(line(axes, "activator")[:, 0], grid.coordinates((16,))[0].numpy())
    with pytest.raises(PictureError, match="species"):
        turing_figure(field, grid, species=2)


def test_attention_before_and_after_has_one_range_and_true_entropies(tmp_path):
    before, after = rows(), rows()
    figure = attention_figure(before, after, torch.tensor([3.0, 2.0, 1.5]), time=0.5)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert images[0].get_clim() == images[1].get_clim() == (0.0, float(torch.stack((before, after)).max()))
    entropy = next(axes for axes in figure.axes if "entropy" in axes.get_ylabel())
    np.testing.assert_allclose(line(entropy, "after")[:, 1], -(after * after.log()).sum(-1).numpy())
    energy = next(axes for axes in figure.axes if "energy" in axes.get_ylabel())
    np.testing.assert_array_equal(np.stack(energy.lines[0].get_data(), -1), [[0, 3], [0.25, 2], [0.5, 1.5]])
    named_axes(figure)
    assert save(figure, tmp_path) > 4000


def test_scores_and_patterns_of_two_shapes_are_no_attention():
    with pytest.raises(PictureError, match="softmax"):
        attention_figure(rows(), torch.randn(6, 6))
    with pytest.raises(PictureError, match="shapes"):
        attention_figure(rows(6), rows(5))
    with pytest.raises(PictureError, match="not finite"):
        attention_figure(rows(), torch.full((6, 6), math.nan))


def test_a_phase_portrait_shows_the_paths_and_their_energy_errors(tmp_path):
    system = HamiltonianSystem.separable(lambda p: 0.5 * p.square().sum(-1), lambda q: 0.5 * q.square().sum(-1))
    start = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)
    paths = {method: system.trajectory(*start, 0.1, 50, method) for method in ("leapfrog", "yoshida4")}
    figure = hamiltonian_figure(system, paths, 0.1)
    plane, error = figure.axes
    for name, (q, p) in paths.items():
        np.testing.assert_array_equal(line(plane, name), torch.cat((q, p), 1).numpy())
        energy = 0.5 * (q.square() + p.square())[:, 0]
        off = ((energy - 0.5).abs() / 0.5)[1:].clamp_min(1e-17)
        np.testing.assert_allclose(line(error, name)[:, 1], off.numpy(), atol=1e-15)
    assert error.get_yscale() == "log"
    named_axes(figure)
    assert save(figure, tmp_path) > 4000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_are_drawn_where_the_hamiltonian_has_values(dtype):
    mass = torch.ones(1, 1, dtype=dtype)
    system = HamiltonianSystem.separable(
        lambda p: 0.5 * (p @ mass)[..., 0] ** 2, lambda q: q[..., 0] ** 2 - q[..., 0].log()
    )
    start = torch.tensor([0.02], dtype=dtype), torch.tensor([0.0], dtype=dtype)
    figure = hamiltonian_figure(system, {"leapfrog": system.trajectory(*start, 0.01, 300)}, 0.01)
    plane = figure.axes[0]
    assert plane.get_xlim()[0] < 0 and len(plane.collections) == 1
    assert any(len(path.vertices) for path in plane.collections[0].get_paths())


def test_a_graph_is_coloured_by_its_curvature_and_dashed_where_negative(tmp_path):
    network = nx.barbell_graph(4, 1)
    curvature = forman_ricci(network)
    places = torch.randn(len(network), 2, dtype=torch.float64)
    figure = curvature_graph_figure(curvature, places, groups=torch.tensor([0] * 4 + [1] * 5))
    edges = figure.axes[0].collections[0]
    np.testing.assert_array_equal(edges.get_array(), curvature.curvature.numpy())
    np.testing.assert_array_equal(np.array(edges.get_segments()), places[curvature.graph.edges].numpy())
    dashed = [pattern is not None for _, pattern in edges.get_linestyle()]
    assert dashed == (curvature.curvature < 0).tolist() and any(dashed)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["0", "1"]
    bars = next(axes for axes in figure.axes if axes.get_ylabel() == "edges")
    assert sum(bar.get_height() for bar in bars.patches) == len(curvature.curvature)
    assert save(figure, tmp_path) > 4000
    with pytest.raises(PictureError, match="positions"):
        curvature_graph_figure(curvature, places[1:])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (
        lambda: canvas.new_figure(1, 1),
        lambda: attention_figure(rows(), rows()),
        lambda: geodesic_figure(latitude(0.5, 8)[1], Surface.sphere()),
    ):
        with pytest.raises(MissingLibraryError) as caught:
            draw()
        assert caught.value.hint == 'pip install "aatc[report]"' and isinstance(caught.value, ImportError)


def test_the_package_is_imported_without_matplotlib_and_pictures_without_its_global_state():
    program = """
import sys
import torch
import aatc.report
assert "matplotlib" not in sys.modules
aatc.report.attention_figure(torch.eye(3), torch.eye(3))
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_induced_metric_has_the_curvature_of_its_surface():
    # K of the torus at the angle θ round the tube is cos θ/(r (R + r cos θ)).
    torus = Surface.torus(2.0, 0.5)
    induced: RiemannianStructure = Surface.of(torus.embedding, torus.extent).structure
    points = torch.tensor([[0.3, 0.1], [2.0, 1.0]], dtype=torch.float64)
    curvature = induced.curvature_tensor(points).scalar / 2
    exact = points[:, 0].cos() / (0.5 * (2 + 0.5 * points[:, 0].cos()))
    torch.testing.assert_close(curvature, exact)
