"""Pictures of renormalisation flows show the numbers that they are given."""

import numpy as np
import pytest
import torch

import aatc
from aatc.analysis import scale
from aatc.report import PictureError, head_flows, rg_flow_figure

pytest.importorskip("matplotlib")


def marks(axes):
    return {(round(float(x), 4), round(float(y), 4)) for line in axes.lines for x, y in [line.get_data()]
            if len(x) == 1 for x, y in [(x[0], y[0])]}  # fmt: skip


def test_one_coupling_steps_between_the_map_and_the_diagonal():
    one = scale.migdal_kadanoff()
    flow = scale.map_flow(one, [0.31], 4).value
    points = scale.fixed_points(one).value
    figure = rg_flow_figure(flow, points, labels=["from 0.31"], title="bonds that are moved")
    figure.canvas.draw()
    (axes,) = figure.axes
    curve = next(line for line in axes.lines if line.get_label() == "R(x)")
    x, y = curve.get_data()
    np.testing.assert_allclose(y, np.log(np.cosh(4 * x)) / 2, atol=1e-9)
    steps = next(line for line in axes.lines if line.get_label() == "from 0.31")
    x, y = steps.get_data()
    k = flow.couplings[:, 0]
    np.testing.assert_allclose(x, np.repeat(k, 2)[:-1])
    np.testing.assert_allclose(y[1::2], k[1:])
    np.testing.assert_allclose(y[2::2], x[2::2])
    assert (0.3047, 0.3047) in marks(axes) and (0.0, 0.0) in marks(axes)


def test_two_couplings_flow_in_their_plane():
    one = scale.ising_chain_in_field()
    flows = [scale.map_flow(one, s, 5).value for s in ([0.02, 0.98], [0.05, 0.9])]
    figure = rg_flow_figure(flows, scale.fixed_points(one, starts=[[0.1, 0.99]]).value)
    figure.canvas.draw()
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[1].get_xydata(), flows[1].couplings)
    arrows = axes.collections[0]
    place = 17 * 8 + 8
    x, y = arrows.get_offsets()[place]
    moved = one([x, y]).numpy() - [x, y]
    spans = np.array([1.0, 0.9])
    assert np.cross([*(moved / spans), 0], [arrows.U[place], arrows.V[place], 0])[2] == pytest.approx(0, abs=1e-9)
    assert arrows.U[place] * moved[0] > 0


def test_heads_flow_by_what_leaves_their_blocks():
    torch._dynamo.reset()
    q = torch.randn(1, 3, 20, 8, generator=torch.Generator().manual_seed(0))
    analysis = aatc.analyze(lambda q: aatc.attend(q, q, q, metric=aatc.metrics.DotProduct()), q, "scale")
    names, flows = head_flows(analysis)
    assert names == [f"attend0 head {h}" for h in range(3)]
    for head, flow in enumerate(flows):
        np.testing.assert_array_equal(flow.couplings[:, 0], analysis["attend0", "block_escape", head].value)
        np.testing.assert_array_equal(flow.scales, [1, 2, 4, 8, 16])
    figure = rg_flow_figure(flows, labels=names)
    figure.canvas.draw()
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[2].get_xydata()[:, 1], flows[2].couplings[:, 0])
    assert axes.get_yscale() == "log" and axes.lines[2].get_label() == names[2]
    two = scale.renormalization_flow(np.full((8, 8), 1 / 8), np.arange(8.0)).value
    assert [axes.get_ylabel() for axes in rg_flow_figure(two).axes] == ["variance", "energy"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: rg_flow_figure([]),
        lambda: rg_flow_figure([1.0]),
        lambda: rg_flow_figure(scale.map_flow(scale.ising_chain(), [0.5]).value, labels=["a", "b"]),
        lambda: rg_flow_figure([scale.map_flow(scale.ising_chain(), [0.5]).value for _ in range(2)]),
        lambda: rg_flow_figure(scale.map_flow(scale.RenormalizationMap(torch.sin), [0.5]).value),
        lambda: rg_flow_figure(scale.map_flow(scale.ising_chain(), [0.5]).value, window=[(1, 0)]),
        lambda: rg_flow_figure(scale.map_flow(scale.doubling_operator(5), [-1.5, 0, 0, 0, 0], 1).value),
        lambda: head_flows(aatc.analyze_weights(np.full((1, 1, 4, 4), 0.25), passes="quantum")),
    ],
)
def test_what_is_no_picture_is_refused(call):
    with pytest.raises(PictureError):
        call()
