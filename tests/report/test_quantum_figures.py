"""Pictures of Bloch vectors and of entropies show the numbers that they are given."""

import io

import numpy as np
import pytest
import torch

import aatc
from aatc.passes.analysis.quantum.entropy import bloch_vector
from aatc.passes.analysis.quantum.states import mixed_state, pure_state
from aatc.report import PictureError, bloch_figure, entropy_figure, head_table

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def analysis():
    torch._dynamo.reset()
    torch.manual_seed(0)
    q = torch.randn(1, 3, 20, 8)
    return aatc.analyze(lambda q: aatc.attend(q, q, q, metric=aatc.metrics.DotProduct()), q, ("quantum",))


def test_bloch_vectors_stand_where_their_states_are():
    states = [pure_state([1.0, 0.0]), pure_state([0.5**0.5, 0.5**0.5 * 1j]), mixed_state(np.eye(2) / 2)]
    vectors = torch.stack([bloch_vector(s) for s in states])
    figure = bloch_figure(vectors, ["up", "along y", "mixed"], title="three states")
    figure.savefig(io.BytesIO())
    side = next(axes for axes in figure.axes if axes.get_xlabel() == "⟨Y⟩")
    shown = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in side.lines[1:]}
    for name, expected in (("up", (0, 1)), ("along y", (1, 0)), ("mixed", (0, 0))):
        np.testing.assert_allclose(shown[name], expected, atol=1e-12)
    assert len(bloch_figure(vectors[0]).axes) == 3


def test_entropies_stand_in_their_rows(analysis):
    names, table = head_table(analysis, "query_key_entropy")
    assert names == ["attend0"] and table.shape == (1, 3)
    for head in range(3):
        assert table[0, head].item() == analysis["attend0", "query_key_entropy", head].value
    values = head_table(analysis, "value_entropy")[1]
    values[0, 1] = float("nan")
    figure = entropy_figure({"queries and keys": table, "values": values}, names, bound=np.log(20))
    figure.savefig(io.BytesIO())
    texts = [[t.get_text() for t in axes.texts] for axes in figure.axes[:2]]
    assert texts == [[f"{x:.2f}" for x in table[0]], [f"{x:.2f}" for x in values[0, [0, 2]]]]
    assert figure.axes[0].images[0].get_clim() == (0.0, np.log(20))


@pytest.mark.parametrize(
    "call",
    [
        lambda: bloch_figure(torch.tensor([0.9, 0.9, 0.0])),
        lambda: bloch_figure(torch.zeros(2, 2)),
        lambda: bloch_figure(torch.zeros(2, 3), ["one"]),
        lambda: bloch_figure(torch.full((3,), float("nan"))),
        lambda: entropy_figure(torch.zeros(3)),
        lambda: entropy_figure(torch.full((1, 2), float("nan"))),
        lambda: entropy_figure({}),
        lambda: entropy_figure(torch.zeros(2, 2), ["one"]),
    ],
)
def test_what_is_no_picture_is_refused(call):
    with pytest.raises(PictureError):
        call()


def test_items_that_are_not_there_are_refused(analysis):
    with pytest.raises(PictureError, match="quantum"):
        head_table(analysis, "spin")
