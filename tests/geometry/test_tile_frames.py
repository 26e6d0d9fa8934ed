"""Frames of flat connections, and the bounds on any frames where the connection is curved."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.geometry import PointShapeError
from aatc.geometry.bundles.tile_frames import HolonomyError, tile_frames
from aatc.geometry.bundles.tile_transport import TileError
from tests.geometry.manifold_cases import close, seeds

F64 = torch.float64


def orthogonal(generator, *shape):
    return torch.linalg.qr(torch.randn(*shape, generator=generator, dtype=F64)).Q


def invertible(generator, *shape):
    return torch.linalg.matrix_exp(0.4 * torch.randn(*shape, generator=generator, dtype=F64))


def quotients(frames, edges):
    return frames[..., edges[:, 0], :, :] @ torch.linalg.inv(frames[..., edges[:, 1], :, :])


def errors(frames, edges, transports):
    """The largest spectral distance between a transport and the frames' quotient."""
    return torch.linalg.matrix_norm(transports - quotients(frames, edges), ord=2).amax().item()


def all_pairs(count):
    return torch.tensor(list(itertools.permutations(range(count), 2)))


@settings(max_examples=6)
@given(seed=seeds, count=st.integers(2, 7), batch=st.sampled_from([(), (2,)]), extra=st.integers(0, 6))
def test_a_flat_connection_is_the_quotients_of_the_frames_found(seed, count, batch, extra):
    generator = torch.Generator().manual_seed(seed)
    true = invertible(generator, *batch, count, 3, 3)
    tree = torch.tensor([(i, int(torch.randint(i, (), generator=generator))) for i in range(1, count)])
    edges = torch.cat([tree, torch.randint(count, (extra, 2), generator=generator)])
    edges = torch.where(torch.rand(len(edges), 1, generator=generator) < 0.5, edges, edges.flip(-1))
    found = tile_frames(edges, quotients(true, edges), count)
    assert found.residual < 1e-10 and found.frames.shape == true.shape
    close(quotients(found.frames, edges), quotients(true, edges))
    close(found.frames, true @ torch.linalg.inv(true[..., :1, :, :]))


@settings(max_examples=6)
@given(seed=seeds)
def test_tokens_without_a_way_between_them_have_frames_of_their_own(seed):
    generator = torch.Generator().manual_seed(seed)
    true = orthogonal(generator, 5, 3, 3)
    edges = torch.tensor([[0, 3], [4, 1]])
    found = tile_frames(edges, quotients(true, edges), 5)
    close(quotients(found.frames, edges), quotients(true, edges))
    close(found.frames[[0, 1, 2]], torch.eye(3, dtype=F64))
    assert found.cycle == () and found.lower_bound == 0 and found.isometric_bound == 0


@settings(max_examples=6)
@given(seed=seeds, count=st.integers(3, 6), turn=st.floats(0.05, 1.5))
def test_of_orthogonal_transports_no_orthogonal_frames_come_closer_than_a_third_of_the_triangle_defect(
    seed, count, turn
):
    generator = torch.Generator().manual_seed(seed)
    true = orthogonal(generator, count, 3, 3)
    edges = all_pairs(count)
    transports = quotients(true, edges)
    skew = torch.zeros(3, 3, dtype=F64)
    skew[0, 1], skew[1, 0] = -turn, turn
    wrong = int(torch.randint(len(edges), (), generator=generator))
    back = int((edges == edges[wrong].flip(-1)).all(-1).nonzero())
    bent = transports.clone()
    bent[wrong] = bent[wrong] @ torch.linalg.matrix_exp(skew)
    bent[back] = bent[wrong].mT
    with pytest.raises(HolonomyError, match="not flat") as caught:
        tile_frames(edges, bent, count)
    frames = caught.value.frames
    close(frames.residual, 2 * math.sin(turn / 2))
    assert len(frames.cycle) == 3 and set(edges[wrong].tolist()) <= set(frames.cycle)
    close(torch.tensor(frames.isometric_bound, dtype=F64), frames.residual / 3)
    for candidate in (true, frames.frames, orthogonal(generator, count, 3, 3)):
        assert errors(candidate, edges, bent) >= frames.isometric_bound - 1e-12


def test_a_third_of_the_defect_is_reached_up_to_its_square_by_sharing_the_angle():
    angle = 0.3
    edges = torch.tensor([[0, 1], [1, 2], [2, 0]])
    third = torch.tensor(angle / 3, dtype=F64)
    turn = torch.stack([torch.stack([third.cos(), -third.sin()]), torch.stack([third.sin(), third.cos()])])
    with pytest.raises(HolonomyError) as caught:
        tile_frames(edges, turn.expand(3, 2, 2), 3)
    frames = caught.value.frames
    best = errors(torch.eye(2, dtype=F64).expand(3, 2, 2), edges, turn.expand(3, 2, 2))
    assert frames.isometric_bound <= best <= frames.isometric_bound * (1 + angle**2)
    assert frames.lower_bound < frames.isometric_bound


@settings(max_examples=6)
@given(seed=seeds, count=st.integers(2, 5), extra=st.integers(1, 4))
def test_no_frames_that_gradient_descent_finds_beat_the_bound_of_general_transports(seed, count, extra):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.cat([all_pairs(count)[: 2 * count], torch.randint(count, (extra, 2), generator=generator)])
    transports = invertible(generator, len(edges), 2, 2)
    with pytest.raises(HolonomyError) as caught:
        tile_frames(edges, transports, count)
    found = caught.value.frames
    assert found.lower_bound > 0
    frames = torch.eye(2, dtype=F64).repeat(count, 1, 1).requires_grad_()
    optimiser = torch.optim.Adam([frames], lr=0.03)
    best = errors(found.frames, edges, transports)
    for _ in range(25):
        optimiser.zero_grad()
        (transports - quotients(frames, edges)).square().sum((-2, -1)).square().sum().backward()
        optimiser.step()
        best = min(best, errors(frames.detach(), edges, transports))
    assert best >= found.lower_bound


def test_the_cycle_runs_over_edges_and_its_transports_compose_to_the_defect():
    generator = torch.Generator().manual_seed(1)
    edges = torch.tensor([[1, 0], [2, 1], [3, 2], [4, 3], [5, 4], [0, 5], [6, 2]])
    transports = orthogonal(generator, 7, 3, 3)
    with pytest.raises(HolonomyError) as caught:
        tile_frames(edges, transports, 7)
    frames = caught.value.frames
    step = {tuple(e): t for e, t in zip(edges.tolist(), transports)}
    step |= {(j, i): t.mT for (i, j), t in step.items()}
    product = torch.eye(3, dtype=F64)
    for i, j in zip(frames.cycle, (*frames.cycle[1:], frames.cycle[0])):
        product = product @ step[i, j]
    assert len(frames.cycle) == 6
    close(torch.linalg.matrix_norm(product - torch.eye(3), ord=2), frames.residual)
    assert abs(frames.isometric_bound - frames.residual.item() / 6) < 1e-12


def test_a_loop_at_one_token_and_a_pair_that_is_not_inverse_are_cycles_too():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
    with pytest.raises(HolonomyError) as caught:
        tile_frames(torch.tensor([[1, 1]]), turn[None], 2)
    assert caught.value.frames.cycle == (1,)
    assert abs(caught.value.frames.isometric_bound - 2**0.5) < 1e-12
    with pytest.raises(HolonomyError) as caught:
        tile_frames(torch.tensor([[0, 1], [1, 0]]), turn.expand(2, 2, 2), 2)
    assert set(caught.value.frames.cycle) == {0, 1}
    close(caught.value.frames.residual, 2.0)


def test_frames_and_residual_have_the_gradients_of_the_differences():
    generator = torch.Generator().manual_seed(3)
    edges = torch.tensor([[0, 1], [2, 1], [2, 3], [3, 0]])
    transports = invertible(generator, 4, 2, 2).requires_grad_()

    def frames(t):
        found = tile_frames(edges, t, 4, atol=100.0)
        return found.frames, found.residual

    assert torch.autograd.gradcheck(frames, (transports,))


def test_a_tolerance_admits_a_small_defect():
    edges = torch.tensor([[0, 1], [1, 0]])
    one = torch.eye(2, dtype=F64).expand(2, 2, 2).clone()
    one[1, 0, 0] += 1e-3
    with pytest.raises(HolonomyError):
        tile_frames(edges, one, 2)
    close(tile_frames(edges, one, 2, atol=1e-2).residual, 1e-3)


def test_what_does_not_fit_is_refused():
    one = torch.eye(2, dtype=F64)[None]
    for edges, transports in (
        (torch.tensor([0, 1]), one),
        (torch.tensor([[0.0, 1.0]]), one),
        (torch.tensor([[0, 1], [1, 0]]), one),
        (torch.tensor([[0, 1]]), one[..., :1]),
    ):
        with pytest.raises(PointShapeError):
            tile_frames(edges, transports, 2)
    with pytest.raises(TileError, match="0 to 1"):
        tile_frames(torch.tensor([[0, 2]]), one, 2)
    with pytest.raises(TileError, match="finite"):
        tile_frames(torch.tensor([[0, 1]]), one * torch.nan, 2)
    for transports in (one.half(), one.long()):
        with pytest.raises(PointShapeError, match="float32 or float64"):
            tile_frames(torch.tensor([[0, 1]]), transports, 2)
    with pytest.raises(PointShapeError, match="integers"):
        tile_frames(torch.tensor([[False, True]]), one, 2)
    for count in (-1, 2.0):
        with pytest.raises(TileError, match="number of tokens"):
            tile_frames(torch.zeros(0, 2, dtype=torch.int64), one[:0], count)


@pytest.mark.parametrize("edge", [[0, 1], [1, 0]])
def test_singular_transports_are_refused(edge):
    with pytest.raises(TileError, match="singular"):
        tile_frames(torch.tensor([edge]), torch.zeros(1, 2, 2, dtype=F64), 2)


def test_an_empty_batch_has_frames_and_no_residual():
    found = tile_frames(torch.tensor([[0, 1], [1, 0]]), torch.zeros(0, 2, 2, 2, dtype=F64), 2)
    assert found.frames.shape == (0, 2, 2, 2) and found.residual == 0 and found.cycle == ()
