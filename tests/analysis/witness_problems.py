"""Results of every kind, three problems each, that `test_corrupted_witnesses` corrupts."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import networkx as nx
import numpy as np

from aatc.passes.analysis.arithmetic.canonical_height import canonical_height
from aatc.passes.analysis.arithmetic.motivic import motivic_class
from aatc.passes.analysis.arithmetic.projective_map import polynomial_map
from aatc.passes.analysis.arithmetic.verify_graphs import CyclesWitness
from aatc.passes.analysis.arithmetic.zeta import ihara_polynomial
from aatc.passes.analysis.chains import spaces
from aatc.passes.analysis.chains.complexes import ChainComplex, flag_complex, threshold_complex
from aatc.passes.analysis.chains.homology import minimal_model
from aatc.passes.analysis.chains.spectral_sequence import levels_by_weight, spectral_sequence
from aatc.passes.analysis.cohomology.characteristic import chern_number, link_phases
from aatc.passes.analysis.cohomology.cohomology import cocycle_witness
from aatc.passes.analysis.cohomology.hodge import hodge_decomposition
from aatc.passes.analysis.cohomology.persistence import filtration_persistence, rips_values
from aatc.passes.analysis.homotopy.infinity import InfinityAttention
from aatc.passes.analysis.homotopy.model_category import AttentionModel
from aatc.passes.analysis.homotopy.path_space import AttentionPath
from aatc.passes.analysis.homotopy.simplicial_attention import preorder_category
from aatc.passes.analysis.homotopy.simplicial_sets import nerve
from aatc.passes.analysis.homotopy.verify_components import WeightsWitness
from aatc.passes.analysis.information.contraction import dobrushin_coefficient, doeblin_bound
from aatc.passes.analysis.information.information import information_flow_metrics
from aatc.passes.analysis.information.markov import stationary_distributions
from aatc.passes.analysis.information.stability import perturbation_response, softmax_jacobian_norm
from aatc.passes.analysis.information.verify_chain import (
    DoeblinWitness,
    PeriodWitness,
    StabilityWitness,
    StationaryWitness,
)
from aatc.passes.analysis.information.verify_information import FigureWitness, JacobianWitness, RowsWitness
from aatc.passes.analysis.result import Result
from tests.analysis.test_infinity import coloured


def pattern(seed: int, n: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(n), n)


def split_pattern(seed: int) -> np.ndarray:
    """Two recurrent classes and a transient state."""
    rng, out = np.random.default_rng(seed), np.zeros((7, 7))
    out[:3, :3], out[3:6, 3:6] = rng.dirichlet(np.ones(3), 3), rng.dirichlet(np.ones(3), 3)
    out[6] = rng.dirichlet(np.ones(7))
    return out


def reversible(seed: int, n: int = 8) -> np.ndarray:
    weights = np.random.default_rng(seed).uniform(0.1, 1, (n, n))
    weights = weights + weights.T
    return weights / weights.sum(1, keepdims=True)


def causal(seed: int) -> np.ndarray:
    weights = np.tril(np.random.default_rng(seed).uniform(0.1, 1, (7, 7)))
    return weights / weights.sum(1, keepdims=True)


def twisted(seed: int) -> ChainComplex:
    """Free parts and torsion in random bases."""
    rng = np.random.default_rng(seed)
    one, two = np.eye(4, dtype=np.int64), np.eye(3, dtype=np.int64)
    for _ in range(6):
        i, j = rng.choice(4, 2, replace=False)
        one[i] += one[j]
        i, j = rng.choice(3, 2, replace=False)
        two[:, i] += two[:, j]
    diagonal = np.zeros((4, 3), dtype=np.int64)
    diagonal[0, 0], diagonal[1, 1] = 1, int(rng.integers(2, 7))
    return ChainComplex([one @ diagonal @ two])


def weights_of(seed: int, n: int = 7) -> np.ndarray:
    return np.round(np.random.default_rng(seed).uniform(0.05, 1, (n, n)), 3)


def filtered(seed: int) -> Result[Any]:
    d = np.random.default_rng(seed).integers(1, 60, (6, 6)).astype(float)
    d = np.triu(d, 1) + np.triu(d, 1).T
    x = flag_complex(d <= 45, 2)
    return filtration_persistence(x, rips_values(x, d), (2, 3, 5)[seed], representatives=True)


def pages(seed: int) -> Result[Any]:
    w = weights_of(seed, 6)
    x = threshold_complex(w, 0.5, 2)
    return spectral_sequence(x, levels_by_weight(x, w, [0.9, 0.75, 0.6, 0.5]), ("F2", "Q", "F3")[seed])


def chern(seed: int) -> Result[Any]:
    rng = np.random.default_rng(seed)
    sphere = spaces.sphere(2)
    states = rng.normal(size=(sphere.count(0), 2)) + 1j * rng.normal(size=(sphere.count(0), 2))
    return chern_number(sphere, link_phases(sphere, states))


def hodge(seed: int) -> Result[Any]:
    rng, torus = np.random.default_rng(seed), spaces.torus()
    weights = [10.0 ** rng.uniform(-2, 2, c) for c in torus.counts]
    return hodge_decomposition(torus, 1, 10.0 ** (4 - 6 * seed) * rng.normal(size=torus.count(1)), weights)


def poset(seed: int) -> Any:
    relation = np.triu(np.random.default_rng(seed).uniform(size=(5, 5)) < 0.6, 1)
    relation[:, -1] = True
    return preorder_category(relation)


def circle_poset(seed: int) -> Any:
    n = 2 + seed
    relation = np.zeros((2 * n, 2 * n), dtype=bool)
    for i in range(n):
        relation[i, n + i] = relation[i, n + (i + 1) % n] = True
    return preorder_category(relation)


def lift(seed: int) -> Result[Any]:
    model = AttentionModel(("Q", 3, 2)[seed])
    target = (spaces.simplex(2), spaces.sphere(1), spaces.simplex(1))[seed]
    f = model.attention_map(spaces.sphere(1), target, {0: 0, 1: 1, 2: (2, 2, 1)[seed]})
    return model.factor_map(f)


def factorization(place: int) -> Callable[[int], Result[Any]]:
    def make(seed: int) -> Result[Any]:
        model = AttentionModel(("Q", 3, 2)[seed])
        f = model.attention_map(
            spaces.sphere(1), spaces.simplex(2), dict(enumerate([(0, 1, 2), (1, 1, 0), (2, 0, 0)][seed]))
        )
        return model.model_factorization(f)[place]

    return make


@cache
def two_colours(length: int) -> Any:
    ends = [(0, ((x,), ())) for x in (0, 1)]
    return InfinityAttention(coloured(length, 2, 3), top=3).quasi_structure(*ends)


def homotopic(seed: int) -> Result[Any]:
    quasi = two_colours(1).value
    x, y = quasi.ends
    f, g = quasi.arrows(x, y)[:2]
    return (quasi.homotopic(f, g), quasi.homotopic(g, f), quasi.homotopic(f, f))[seed]


def composites(seed: int) -> Result[Any]:
    quasi = two_colours(1).value
    x, y = quasi.ends
    return quasi.compose(quasi.arrows(x, x)[seed % 2], quasi.arrows(x, y)[seed // 2])


def quasicategory(seed: int) -> Result[Any]:
    relation = np.triu(np.ones((2 + seed, 2 + seed), dtype=bool))
    return InfinityAttention(nerve(preorder_category(relation), 3)).quasi_structure((0, "object"), (1, "object"))


def graph(seed: int) -> Any:
    return nx.gnp_random_graph(7 + 7 * seed, (0.5, 0.3, 0.2)[seed], seed=seed)


def cycles(graph: Any, length: int) -> Result[Any]:
    zeta = ihara_polynomial(nx.to_numpy_array(graph, dtype=int))
    return Result(zeta.value.primes(length), "P0", witness=CyclesWitness(zeta.witness, length))


def tall(seed: int) -> Result[Any]:
    """Chordal, and beyond what counting all colourings reaches."""
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.integers(0, 60, (24, 2)), axis=1)
    overlap = (ends[:, :1] < ends[:, 1]) & (ends[:, 0] < ends[:, 1:])
    np.fill_diagonal(overlap, False)
    return motivic_class(overlap | overlap.T)


def grid(seed: int) -> Result[Any]:
    """Not chordal, with more vertices than counting reaches."""
    return motivic_class(nx.convert_node_labels_to_integers(nx.grid_2d_graph(3, 7 + seed)))


def flow(seed: int) -> Result[Any]:
    if seed == 2:
        return information_flow_metrics(split_pattern(1), 3, initial=np.full(7, 1 / 7))
    return information_flow_metrics(pattern(seed), 3)


def figure(name: str) -> Callable[[int], Result[Any]]:
    def make(seed: int) -> Result[Any]:
        a = pattern(seed)
        found = information_flow_metrics(a, 3).value
        value = float(getattr(found, name))
        return Result(value, "P2", 1e-10, 0.0, FigureWitness(a, found.stationary, name, value, 3))

    return make


def rows(name: str) -> Callable[[int], Result[Any]]:
    def make(seed: int) -> Result[Any]:
        a = pattern(seed)
        entropy = -(a * np.log(a)).sum(1)
        found = {"mean_row_entropy": entropy.mean(), "least_row_entropy": entropy.min(),
                 "edge_utilisation": np.exp(entropy).mean() / 7}  # fmt: skip
        return Result(float(found[name]), "P2", 1e-12, 0.0, RowsWitness(a, name))

    return make


def response(seed: int) -> Result[Any]:
    rng = np.random.default_rng(seed)
    values = None if seed == 0 else rng.normal(size=(7, 3))
    return perturbation_response(pattern(seed), rng.normal(size=(7, 7)), values)


def found_path(seed: int) -> Result[Any]:
    return AttentionPath(pattern(seed, 6), 0.02).compute_path(0, 4)


def canonical(seed: int) -> Result[Any]:
    return canonical_height(polynomial_map([1, 0, (-2, 1, 2)[seed]]), (3, 2, 1)[seed])


def cocycles(seed: int) -> Result[Any]:
    chain = (twisted(1), twisted(4), minimal_model(spaces.klein_bottle()).chain)[seed]
    k = (1, 1, 2)[seed]
    w = cocycle_witness(minimal_model(chain), k, "Z")
    return Result(None, "P1", witness=w)


def jacobian(seed: int) -> Result[Any]:
    a = pattern(seed)
    return Result(float(softmax_jacobian_norm(a).max()), "P2", 1e-12, 0.0, JacobianWitness(a, 1e-12))


def of_laws(seed: int) -> Result[Any]:
    a = (split_pattern(0), pattern(1), split_pattern(2))[seed]
    laws = stationary_distributions(a)
    return Result(laws, "P2", 1e-12, 0.0, StationaryWitness(a, laws))


def recurrent(seed: int) -> Result[Any]:
    found = of_laws(seed)
    return dataclasses.replace(found, value=len(found.value), proof_level="P1")


def periodic(seed: int) -> Result[Any]:
    n = (3, 4, 6)[seed]
    return Result(n, "P1", witness=PeriodWitness(np.roll(np.eye(n), 1, axis=1)))


def contraction(seed: int) -> Result[Any]:
    return dobrushin_coefficient(pattern(seed))


def stability(seed: int) -> Result[Any]:
    found = contraction(seed)
    return Result(1 - found.value, "P2", 1e-14, 0.0, StabilityWitness(found.witness))


def doeblin(seed: int) -> Result[Any]:
    bound = float(doeblin_bound(pattern(seed)))
    return Result(bound, "P2", 1e-14, 0.0, DoeblinWitness(pattern(seed), bound))


def component_count(seed: int) -> Result[Any]:
    group = np.arange(6) // (2, 3, 6)[seed]
    return Result((3, 2, 1)[seed], "P1", witness=WeightsWitness((group[:, None] == group).astype(float), 0.5))
