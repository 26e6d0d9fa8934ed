"""The rules of all pictures: signed colours, deviations of constants, peaks where they are seen, no text cut off."""

import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch

from aatc.geometry.dynamics.bifurcation import bifurcation_diagram
from aatc.geometry.dynamics.hamiltonian import HamiltonianSystem
from aatc.geometry.dynamics.reaction_diffusion import Grid, ReactionDiffusion
from aatc.geometry.dynamics.reaction_terms import Schnakenberg
from aatc.geometry.flows.attention_flow import AttentionTrajectory
from aatc.geometry.flows.conformal_flow import ConformalFlow
from aatc.geometry.flows.graph_curvature import EdgeCurvature, forman_ricci
from aatc.geometry.flows.invariant_family import InvariantFamily, round_sphere
from aatc.geometry.flows.ricci_flow import GeometricFlow
from aatc.report import (
    Dispersion,
    Surface,
    attention_figure,
    bifurcation_figure,
    bloch_figure,
    curvature_graph_figure,
    entropy_figure,
    flow_figure,
    geodesic_figure,
    hamiltonian_figure,
    radial_spectrum,
    turing_figure,
)
from aatc.report.canvas import colours, constant_of

pytest.importorskip("matplotlib")

LONG = "a title that says much more of what is seen than one line of a picture has room for, " * 2


def sphere_flow(points, steps=12):
    family = InvariantFamily(round_sphere, torch.tensor(points, dtype=torch.float64))
    return GeometricFlow(ricci=family).evolve(family.metric(torch.ones(1, dtype=torch.float64)), 0.2, steps)


def torus_flow(size=10, height=0.2):
    x = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
    u = 0.05 + height * x.sin()[:, None] * x.cos()
    return ConformalFlow((2 * math.pi, 2 * math.pi)).evolve(u, 0.2, 20, every=10)


def graph(values=None):
    """A graph with its Forman curvature, or with these."""
    curvature = forman_ricci(nx.barbell_graph(4, 1))
    if values is None:
        return curvature
    return EdgeCurvature(curvature.graph, values.expand(curvature.curvature.shape).clone())


def positions(curvature):
    return torch.rand(len(curvature.graph.nodes), 2, dtype=torch.float64)


def draw_on_pixels(figure):
    """Draw, so that everything has its place; the canvas that a figure is made with draws nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()


def panel(figure, name):
    return next(axes for axes in figure.axes if name in axes.get_ylabel())


def mappable(axes):
    """The image, or the edges, of a panel."""
    return axes.images[0] if axes.images else axes.collections[0]


def rows(n=6):
    return torch.rand(n, n, dtype=torch.float64).softmax(-1)


# --- signed values -----------------------------------------------------------------------------------------
SIGNED = {
    "conformal": lambda: flow_figure(torus_flow(), snapshots=2),
    "attention": lambda: flow_figure(
        AttentionTrajectory(torch.arange(3.0), torch.randn(3, 4, 5) - 0.3, torch.tensor([3.0, 2.0, 1.0]))
    ),
    "graph": lambda: (lambda c: curvature_graph_figure(c, positions(c)))(graph(torch.randn(14) - 0.2)),
    "pattern": lambda: turing_figure(torch.randn(2, 6, 7) + 0.2, Grid((2.0, 3.0))),
    "entropies": lambda: entropy_figure(torch.tensor([[-0.3, 0.2, 1.1]])),
}


@pytest.mark.parametrize("draw", SIGNED.values(), ids=SIGNED)
def test_zero_is_in_the_middle_of_the_colours_of_signed_values(draw):
    drawn = mappable(draw().axes[0])
    low, high = drawn.get_clim()
    assert low == -high < 0 and high >= np.abs(drawn.get_array()).max()
    # The two ends differ in hue, mirror each other in lightness about the middle, and zero has none.
    below, middle, above = (np.array(drawn.cmap(drawn.norm(x))[:3]) for x in (low, 0.0, high))
    assert below[2] - below[0] > 0.4 and above[0] - above[2] > 0.4 and np.ptp(middle) < 0.02


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_values_of_one_sign_use_the_whole_of_a_map_of_one_direction(shift):
    values = np.random.default_rng(0).uniform(0.2, 0.9, (4, 5)) * shift
    look = colours(values)
    assert (look["vmin"], look["vmax"]) == (values.min(), values.max())
    # Rounding below zero is no sign.
    values.flat[3] = -1e-17 * shift
    assert colours(values)["cmap"] == look["cmap"] != colours(values - values.mean())["cmap"]


def test_edges_of_curvature_zero_up_to_rounding_are_not_dashed():
    flat = graph(1e-17 * torch.tensor([1.0, -1.0, 0.5, -0.5] * 5, dtype=torch.float64)[:14])
    edges = curvature_graph_figure(flat, positions(flat)).axes[0].collections[0]
    assert all(pattern is None for _, pattern in edges.get_linestyle())


def test_the_number_in_a_cell_is_seen_on_its_colour():
    figure = entropy_figure(torch.tensor([[-1.0, 0.0, 0.4, 1.0]]))
    image = figure.axes[0].images[0]
    for text, value in zip(figure.axes[0].texts, (-1.0, 0.0, 0.4, 1.0)):
        luminance = float(np.dot(image.cmap(image.norm(value))[:3], (0.2126, 0.7152, 0.0722)))
        assert abs(luminance - (text.get_color() == "white")) > 0.4


# --- constants ---------------------------------------------------------------------------------------------
def test_what_is_a_constant():
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, 50)
    assert constant_of([42.9 + 1e-9 * noise]) == 42.9 + 1e-9 * noise[0]
    assert constant_of([42.9 + 1e-3 * noise]) is None
    assert constant_of([np.full(3, 2.0), np.full(4, 2.1)]) is None
    assert constant_of([np.array([np.nan, 2.0]), np.full(4, 2.0)]) == 2.0
    # Small numbers that vary are no constant, unless they are what is left of large ones.
    assert constant_of([1e-13 * noise]) is None and constant_of([1e-13 * noise], 5.0) == 0.0
    assert constant_of([np.zeros(3)]) == 0.0 and constant_of([np.full(3, np.nan)]) is None


def test_conserved_quantities_are_drawn_by_their_deviations():
    trajectory = torus_flow()
    figure = flow_figure(trajectory)
    area, total = panel(figure, "area"), panel(figure, "∫K dA")
    start = float(trajectory.areas[0])
    assert area.get_ylabel() == f"area,\ndeviation from {start:.6g}"
    np.testing.assert_array_equal(area.lines[0].get_ydata(), (trajectory.areas - start).numpy())
    # The axis is as high as the deviations, and its labels are small numbers, not start + offset.
    assert np.ptp(area.get_ylim()) <= 2 * np.ptp(area.lines[0].get_ydata()) < 1e-6 * start
    assert total.get_ylabel().endswith("deviation from 0")
    np.testing.assert_array_equal(total.lines[0].get_ydata(), trajectory.total_curvature.numpy())
    # What changes is drawn as it is.
    gauss = panel(figure, "Gauss curvature K")
    assert gauss.get_ylabel() == "Gauss curvature K"
    np.testing.assert_array_equal(gauss.lines[0].get_ydata(), trajectory.max_curvature.numpy())


def test_a_uniform_state_of_a_flow_is_drawn_by_its_deviations():
    figure = flow_figure(torus_flow(height=0.0))
    label = next(axes.get_ylabel() for axes in figure.axes if hasattr(axes, "_colorbar"))
    assert label == "conformal factor u,\ndeviation from 0.05"
    assert all(np.abs(axes.images[0].get_array()).max() < 1e-12 for axes in figure.axes if axes.images)


def test_constant_curves_of_every_picture_are_deviations():
    rough = 2.5 + 1e-12 * torch.randn(1, 12, dtype=torch.float64)
    pattern = turing_figure(rough, Grid((6.0,))).axes[0]
    uniform = torch.full((6, 6), 1 / 6, dtype=torch.float64)
    attention = attention_figure(uniform, uniform, 1.5 + 1e-12 * torch.rand(4, dtype=torch.float64))
    diagram = bifurcation_diagram(
        lambda u, mu: (mu - 3) * (u - 2), torch.full((1,), 2.0, dtype=torch.float64), (-1.0, 1.0)
    )
    branches = bifurcation_figure(diagram, 0).axes[0]
    for axes, constant in (
        (pattern, float(rough[0, 0])),
        (panel(attention, "entropy"), math.log(6)),
        (panel(attention, "energy"), 1.5),
        (branches, 2.0),
    ):
        assert axes.get_ylabel().endswith(f"deviation from {constant:.6g}"), axes.get_ylabel()
        drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
        assert np.nanmax(np.abs(drawn)) < 1e-9
    np.testing.assert_allclose(pattern.lines[0].get_ydata(), (rough[0] - rough[0, 0]).numpy(), atol=0)


def test_a_constant_curvature_of_edges_has_one_bar_and_one_colour():
    curvature = graph(0.25 + 1e-16 * torch.randn(14, dtype=torch.float64))
    figure = curvature_graph_figure(curvature, positions(curvature))
    assert sum(bar.get_height() > 0 for bar in panel(figure, "edges").patches) == 1
    assert any(axes.get_ylabel().endswith("deviation from 0.25") for axes in figure.axes)


# --- charts ------------------------------------------------------------------------------------------------
def test_a_homogeneous_flow_looks_the_same_at_every_point_of_its_chart():
    """A round sphere has no special points; √det g of its stereographic chart falls from 8 to 0 with the distance."""
    figure = flow_figure(sphere_flow([[0.0, 0.0, 0.0], [0.5, 0.2, -0.1], [3.0, -0.7, 0.3]]))
    for line in figure.axes[0].lines:
        growth = np.asarray(line.get_ydata())
        t = float(line.get_label().removeprefix("t = "))
        # The radius squared is 1 − 4t, and the volume its power 3/2. Times are rounded to three digits.
        np.testing.assert_allclose(growth, (1 - 4 * t) ** 1.5, rtol=0.02)
        assert np.ptp(growth) < 1e-10
        # The points of a chart come in no order that a line could follow.
        assert line.get_linestyle() == "None" and line.get_marker() not in ("", "None")


# --- wavelengths -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("species", [0, 1])
@pytest.mark.parametrize("boundary", ["periodic", "neumann"])
def test_the_wavelength_that_is_named_is_that_of_the_highest_point_seen(boundary, species):
    side, reaction = 40.0, Schnakenberg()
    grid = Grid((side, side), boundary)
    # Two neighbouring rings: a mean over them lies where there is no peak.
    x = grid.coordinates((32, 32))[0]
    step = math.pi / side * (2 if boundary == "periodic" else 1)
    field = (4 * step * x).cos() + 0.9 * (3 * step * x).cos() + 0.01 * torch.randn(2, 32, 32, dtype=torch.float64)
    dispersion = Dispersion.of(
        ReactionDiffusion(reaction, torch.tensor([1.0, 20.0], dtype=torch.float64), grid), reaction.steady_states()[0]
    )
    figure = turing_figure(field, grid, dispersion=dispersion, species=species)
    axes = panel(figure, "power")
    k, power = axes.lines[0].get_data()
    top = float(k[np.argmax(power)])
    assert top == pytest.approx(4 * step)
    (mark,) = [line for line in axes.lines if line.get_label().startswith("pattern: wavelength")]
    assert mark.get_xdata()[0] == top and mark.get_label() == f"pattern: wavelength {2 * math.pi / top:.3g}"
    assert axes.get_xlim()[0] <= top <= axes.get_xlim()[1] and power.max() < axes.get_ylim()[1]
    # Words over a curve hide it.
    draw_on_pixels(figure)
    growth = panel(figure, "growth")
    box = growth.get_legend().get_window_extent()
    assert not any(box.contains(*point) for point in growth.transData.transform(growth.lines[0].get_xydata()))


def test_rounding_has_no_wavelength():
    for dtype in (torch.float32, torch.float64):
        rounding = 3 + 3 * torch.finfo(dtype).eps * torch.randint(-1, 2, (9, 8)).to(dtype)
        assert rounding.unique().numel() > 1
        assert radial_spectrum(rounding, Grid((2.0, 2.0))).peak == 0


# --- margins -----------------------------------------------------------------------------------------------
def _long_attention():
    return attention_figure(rows(), rows(), torch.tensor([3.0, 2.0, 1.5]), title=LONG)


def _long_turing():
    grid, reaction = Grid((20.0, 30.0)), Schnakenberg()
    system = ReactionDiffusion(reaction, torch.tensor([1.0, 20.0], dtype=torch.float64), grid)
    return turing_figure(
        torch.rand(2, 10, 15, dtype=torch.float64),
        grid,
        dispersion=Dispersion.of(system, reaction.steady_states()[0]),
        title=LONG,
    )


def _long_bifurcation():
    diagram = bifurcation_diagram(lambda u, mu: mu * u - u**3, torch.zeros(1, dtype=torch.float64), (-1.0, 0.05))
    return bifurcation_figure(diagram, 0, title=LONG)


def _long_pendulum():
    system = HamiltonianSystem.separable(lambda p: 0.5 * p.square().sum(-1), lambda q: 0.5 * q.square().sum(-1))
    start = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)
    return hamiltonian_figure(system, {"leapfrog": system.trajectory(*start, 0.1, 20)}, 0.1, title=LONG)


def _long_geodesic():
    torus = Surface.torus()
    start, velocity = torch.tensor([[0.4, 0.0], [1.0, 0.3]], dtype=torch.float64)
    path = torus.structure.geodesic_flow(start, velocity, torch.linspace(0, 2, 9, dtype=torch.float64), method="rk4")
    frame = torus.structure.parallel_transport(path, torch.eye(2, dtype=torch.float64))
    return geodesic_figure(path, torus, frame=frame, title=LONG)


FIGURES = {
    "attention": _long_attention,
    "bifurcation": _long_bifurcation,
    "bloch": lambda: bloch_figure(torch.eye(3), ["a label of some length"] * 3, title=LONG),
    "conformal": lambda: flow_figure(torus_flow(), snapshots=2, title=LONG),
    "entropy": lambda: entropy_figure({"queries and keys": torch.rand(2, 3)}, ["the first attention", "1"], title=LONG),
    "geodesic": _long_geodesic,
    "graph": lambda: (lambda c: curvature_graph_figure(c, positions(c), title=LONG))(graph()),
    "pendulum": _long_pendulum,
    "sphere": lambda: flow_figure(sphere_flow([[0.0, 0.0, 0.0], [0.5, 0.2, -0.1]]), title=LONG),
    "turing": _long_turing,
}


def words(figure):
    """The titles and the names of axes that are shown, with their boxes in pixels."""
    draw_on_pixels(figure)
    shown = [figure._suptitle] if figure._suptitle else []
    for axes in figure.axes:
        labels = [axes.xaxis.label, axes.yaxis.label]
        shown += [axes.title, *(labels if axes.axison or getattr(axes, "_axis3don", False) else [])]
    return [(text.get_text(), text.get_window_extent()) for text in shown if text.get_text()]


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_nothing_is_cut_off_and_no_words_stand_on_others(draw):
    figure = draw()
    named = words(figure)
    assert any("a title that says" in text for text, _ in named)
    everything, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert everything.x0 >= 0 and everything.y0 >= 0 and everything.x1 <= width and everything.y1 <= height, everything
    for (one, box), (other, second) in itertools.combinations(named, 2):
        assert not box.overlaps(second), (one, other)


def test_a_graph_fills_its_panel():
    curvature = graph()
    places = torch.tensor([0.1, 1.0]) * positions(curvature)
    figure = curvature_graph_figure(curvature, places)
    draw_on_pixels(figure)
    plane = figure.axes[0]
    assert plane.get_window_extent().width > 0.35 * figure.bbox.width
    assert plane.transData.transform([(1, 0)])[0, 0] - plane.transData.transform([(0, 0)])[0, 0] == pytest.approx(
        plane.transData.transform([(0, 1)])[0, 1] - plane.transData.transform([(0, 0)])[0, 1]
    )
