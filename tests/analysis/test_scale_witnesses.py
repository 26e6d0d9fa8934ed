"""Every result of the scale family is checked by its witness, and no corrupted value, claim or data passes."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch

from aatc.analysis import scale
from aatc.passes.analysis.result import AnalysisError, verify
from aatc.passes.analysis.scale.scale_pass import _blocks, _dimension
from aatc.passes.analysis.scale.verify_scale import RECOMPUTE, ScaleWitness
from tests.analysis.claim_corruptions import accepted, remember
from tests.analysis.scale_cases import cantor, chain, generation

#: Corruptions of each result, and how many of them are of its data.
DRAWS, OF_DATA = 200, 30

A, LONG = chain(1, 12), chain(2, 40)
LABELS = np.array([0, 1, 0, 2, 2, 1, 0, 3, 3, 1, 2, 3])
COARSER = np.array([0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0])
BROWNIAN = np.random.default_rng(0).standard_normal(300).cumsum()


def block(item):
    return {**_blocks(LONG, LONG, ()), **_dimension(LONG, LONG, ())}[item]


MAKERS = {
    "averages": lambda: scale.scale_connection(A, LABELS, COARSER),
    "averages of a given law": lambda: scale.scale_connection(A, 2, 6, measure=np.arange(1, 13) / 78),
    "complements": lambda: scale.scale_connection(A, np.array([0, 1, 4, 7]), np.array([1, 4]), scheme="complement"),
    "steps": lambda: scale.scale_connection(A, 2, 6, scheme="steps"),
    "cocycle": lambda: scale.cocycle_defect(A, (1, LABELS, COARSER)),
    "lumpability": lambda: scale.lumpability_defect(A, LABELS),
    "flow of escape": lambda: scale.renormalization_flow(A, "escape"),
    "flow of entropy": lambda: scale.renormalization_flow(A, "entropy_rate", scheme="complement"),
    "flow of defects": lambda: scale.renormalization_flow(A, "defect", scales=(1, 3, 6)),
    "flow of a function": lambda: scale.renormalization_flow(A, lambda a, mu: np.trace(a) + mu[0], scheme="steps"),
    "flow of values": lambda: scale.renormalization_flow(A, np.arange(12.0) ** 0.5),
    "flow of couplings": lambda: scale.map_flow(scale.ising_chain_in_field(), [0.05, 0.9], 4),
    "flow of a map": lambda: scale.map_flow(scale.RenormalizationMap(lambda x: 1.7 * torch.sin(x)), [0.4], 9),
    "fixed points of one coupling": lambda: scale.fixed_points(scale.migdal_kadanoff()),
    "fixed points of two": lambda: scale.fixed_points(scale.ising_chain_in_field(), starts=[[0.1, 0.99]]),
    "fixed points of a map": lambda: scale.fixed_points(
        scale.RenormalizationMap(lambda x: torch.stack([x[0] ** 2 - x[1], x[0] / 2 + x[1] ** 3]), 3.0, ("x", "y")),
        starts=[[0.1, 0.1], [1.0, 1.0], [-1.0, 1.0]],
    ),
    "Feigenbaum": lambda: scale.fixed_points(scale.doubling_operator(6)),
    "line": lambda: scale.scaling_exponent([1, 2, 4, 8], [1.0, 2.1, 4.3, 7.7]),
    "boxes": lambda: scale.box_dimension(cantor(5), base=3),
    "increments": lambda: scale.hurst_exponent(BROWNIAN),
    "escape exponent": lambda: scale.escape_exponent(LONG),
    "invariants": lambda: scale.scale_invariants(LONG),
    "charges": lambda: scale.anomaly_polynomial(generation()),
    "tiling": lambda: scale.anomaly_polynomial(scale.tiled_lattice([[3, 1], [0, 5]], (4, 6))),
    "tiling of one period": lambda: scale.anomaly_polynomial(scale.tiled_lattice([[3, 3]], 4)),
    "row block_escape": lambda: block("block_escape"),
    "row half_escape_block": lambda: block("half_escape_block"),
    "row pooling_defect": lambda: block("pooling_defect"),
    "row escape_exponent": lambda: block("escape_exponent"),
    "row escape_exponent_interval": lambda: block("escape_exponent_interval"),
    "row box_dimension": lambda: block("box_dimension"),
    "row box_dimension_interval": lambda: block("box_dimension_interval"),
}  # fmt: skip


def test_there_is_a_maker_for_every_kind():
    assert {make().witness.kind for make in MAKERS.values()} == set(RECOMPUTE)


@pytest.mark.parametrize("name", MAKERS)
def test_results_are_what_their_witnesses_say(name):
    found = MAKERS[name]()
    assert found.residual <= found.tolerance <= 1e-6
    assert found.verify() <= found.tolerance and verify(found.witness) <= found.tolerance


@pytest.fixture
def remembered(monkeypatch):
    remember(monkeypatch, RECOMPUTE)


@pytest.mark.parametrize("name", MAKERS)
def test_no_corrupted_result_is_accepted(name, remembered):
    assert accepted(MAKERS[name](), np.random.default_rng(len(name)), DRAWS, OF_DATA) == []


def test_values_of_another_kind_do_not_pass():
    good = MAKERS["averages"]()
    for value in (None, 1.0, "average", MAKERS["lumpability"]().value, ()):
        assert dataclasses.replace(good, value=value).verify() == np.inf
    witness = good.witness
    for kind in set(RECOMPUTE) - {witness.kind}:
        assert verify(ScaleWitness(kind, witness.data, witness.claim)) == np.inf
    assert verify(ScaleWitness(witness.kind, {}, witness.claim)) == np.inf
    with pytest.raises(AnalysisError, match="kind"):
        verify(ScaleWitness("oracle", witness.data, witness.claim))


def test_lists_of_fixed_points_are_in_order_and_without_repetition():
    good = MAKERS["fixed points of one coupling"]()
    data, claim = good.witness.data, good.witness.claim
    for order in ([1, 0], [0, 0, 1], [0, 1, 1]):
        shuffled = {**data, **{k: tuple(data[k][i] for i in order) for k in ("points", "jacobians")}}
        lies = ScaleWitness("fixed_points", shuffled, tuple(claim[i] for i in order))
        assert verify(lies) == np.inf


def test_claims_that_follow_from_unsound_data_do_not_pass():
    """Data that is no chain, no table, no map of its name, with the very value that it gives."""
    found = MAKERS["row pooling_defect"]().witness
    lies = ScaleWitness(found.kind, {"pattern": 2 * LONG}, 2 * found.claim)
    assert verify(lies) == np.inf
    found = MAKERS["charges"]().witness
    table = {**found.data["table"], "multiplicity": (0,) * 5}
    zero = {
        **found.claim,
        "cubic": tuple((abc, Fraction(0)) for abc, _ in found.claim["cubic"]),
        "linear": (Fraction(0),) * 2,
    }
    assert verify(ScaleWitness("charges", {"table": table}, zero)) == np.inf
    cubes = scale.RenormalizationMap(lambda t: t**3, 2.0, ("tanh K",), ((0.0, 1.0),), "ising_chain", (2,))
    assert scale.map_flow(cubes, [0.5], 3).verify() == np.inf
    assert scale.fixed_points(cubes).verify() == np.inf


def test_derivatives_and_points_that_are_not_the_map_s_do_not_pass():
    """With the eigenvalues, exponents and kinds that follow from them."""
    good = scale.fixed_points(scale.ising_chain(), starts=[[1.0]])
    (claim,) = good.witness.claim
    for x, slope in ((1.0, 4.0), (1.0, 2.0001), (0.99, 1.98), (0.5, 1.0)):
        jacobian, exponent = np.array([[slope]]), np.log2(slope)
        kind, isolated = ("marginal", False) if slope == 1 else ("repulsive", True)
        wrong = {
            "couplings": np.array([x]), "jacobian": jacobian, "eigenvalues": np.array([slope + 0j]),
            "exponents": np.array([exponent]), "kind": kind, "isolated": isolated,
        }  # fmt: skip
        assert set(wrong) == set(claim)
        data = {**good.witness.data, "points": (wrong["couplings"],), "jacobians": (jacobian,)}
        assert verify(ScaleWitness("fixed_points", data, (wrong,))) == np.inf
