"""What is exact holds integers: a half in the place of one is not accepted, nor is a sequence that ends early, nor the
fundamental group of another space."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from aatc.passes.analysis.chains import spaces
from aatc.passes.analysis.chains.complexes import from_maximal_simplices
from aatc.passes.analysis.cohomology.cohomology import cohomology
from aatc.passes.analysis.homotopy.fundamental_group import fundamental_group
from aatc.passes.analysis.homotopy.homotopy_groups import homotopy_groups
from aatc.passes.analysis.homotopy.presentation import Presentation
from aatc.passes.analysis.result import AnalysisError, mismatch
from tests.analysis.corrupted import LABELS
from tests.analysis.test_corrupted_witnesses import KINDS, found, problems

#: What is no statement over Z: an upper bound, and what a mapping complex was made of, which is taken as it is.
FREE = LABELS | {"mixing_time", "resolutions"}
LOOKED_AT = 40


def halves(x: Any, fixed: frozenset[str]) -> Iterator[Any]:
    """Trees with one integer replaced by the next half."""
    if isinstance(x, (int, np.integer)) and not isinstance(x, (bool, np.bool_)):
        yield float(x) + 0.5 if abs(x) < 2**50 else float(x)
    elif sparse.issparse(x):
        if x.nnz and x.dtype.kind in "iu":
            yield type(x)((np.append(x.data[:-1], x.data[-1] + 0.5), x.indices, x.indptr), shape=x.shape)
    elif isinstance(x, np.ndarray):
        entries = x.reshape(-1)
        for i in sorted({0, len(entries) // 2, len(entries) - 1}) if len(entries) else ():
            if x.dtype.kind in "iu" or (x.dtype == object and isinstance(entries[i], int)):
                changed = x.astype(object if x.dtype == object else float)
                changed.flat[i] += 0.5
                yield changed
    else:
        yield from inside(x, fixed, halves)


def shorter(x: Any, fixed: frozenset[str]) -> Iterator[Any]:
    """Trees with one sequence cut off."""
    if isinstance(x, (tuple, list)) or (isinstance(x, np.ndarray) and x.ndim):
        yield from (x[:k] for k in {0, len(x) - 1} if 0 <= k < len(x))
    if not isinstance(x, np.ndarray):
        yield from inside(x, fixed, shorter)


def inside(x: Any, fixed: frozenset[str], change: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        for f in dataclasses.fields(x):
            for part in change(getattr(x, f.name), fixed) if f.init and f.name not in fixed else ():
                try:
                    yield replace(x, **{f.name: part})
                except (ValueError, TypeError):  # refused by the class itself
                    continue
    elif isinstance(x, (tuple, list)):
        for i, each in enumerate(x):
            yield from (type(x)([*x[:i], part, *x[i + 1 :]]) for part in change(each, fixed))
    elif isinstance(x, dict):
        for key in x:
            yield from ({**x, key: part} for part in change(x[key], fixed))


@pytest.mark.parametrize("name", KINDS)
def test_no_half_is_accepted_for_an_integer(name):
    for good in problems(name):
        for part, fixed in (("value", FREE), ("witness", FREE | KINDS[name].problem)):
            for changed in itertools.islice(halves(getattr(good, part), frozenset(fixed)), LOOKED_AT):
                assert not found(replace(good, **{part: changed})) <= good.tolerance, changed


@pytest.mark.parametrize("name", KINDS)
def test_no_sequence_that_ends_early_is_accepted(name):
    for good in problems(name):
        for changed in itertools.islice(shorter(good.value, frozenset(FREE)), LOOKED_AT):
            assert not found(replace(good, value=changed)) <= good.tolerance, changed


@pytest.mark.parametrize("coeff", ["Z", "F2", "F5"])
def test_representatives_are_of_the_ring(coeff):
    good = cohomology(spaces.torus(), coeff)
    assert good.verify() == 0
    for off in (0.5, 1.0, int(coeff[1:] or 0) or np.float64(0)):
        rows = good.value[1].representatives.copy()
        rows[0, 0] += off
        changed = (good.value[0], replace(good.value[1], representatives=rows), *good.value[2:])
        assert replace(good, value=changed).verify() > 0


# --- fundamental groups -------------------------------------------------------------------------------------
FINITE = [spaces.projective_plane(), spaces.moore_space(3), spaces.moore_space(4), spaces.sphere(2),
          spaces.poincare_sphere(), spaces.complex_projective_plane(), from_maximal_simplices([(0, 1, 2)])]  # fmt: skip


def off(good: Any, group: Any) -> float:
    """The deviation with another fundamental group in the value; infinite where it cannot be compared."""
    try:
        return mismatch(good.witness, replace(good.value, fundamental=group))
    except AnalysisError:
        return float("inf")


@pytest.mark.parametrize("place", range(len(FINITE)))
def test_a_group_of_another_space_is_not_accepted(place):
    good = homotopy_groups(FINITE[place])
    assert good.verify() == 0
    own = good.value.fundamental
    for other in FINITE:
        group = fundamental_group(other)
        if other is not FINITE[place]:
            assert off(good, group) > 0
        if group.presentation != own.presentation:
            claimed = replace(own, presentation=group.presentation)
            assert off(good, claimed) > 0


def test_presentations_that_abelianise_alike_are_told_apart_by_the_cover():
    good = homotopy_groups(spaces.poincare_sphere())
    own = good.value.fundamental
    for relators in (own.presentation.relators[:1], ((1,), (2,)), (*own.presentation.relators, (1, 1))):
        claimed = replace(own, presentation=Presentation(own.presentation.generators, relators))
        assert off(good, claimed) > 0


def test_words_of_edges_and_the_tree_are_held_against_the_cover():
    good = homotopy_groups(spaces.projective_plane())
    own = good.value.fundamental
    edge = next(e for e, word in own.edge_words.items() if word)
    for changed in (
        {"edge_words": {**own.edge_words, edge: ()}}, {"edge_words": {**own.edge_words, own.tree[0]: (1,)}},
        {"tree": own.tree[:-1]}, {"tree": (*own.tree[:-1], edge)}, {"base": own.base + 100},
        {"edge_words": {e: w for e, w in own.edge_words.items() if e != edge}},
    ):  # fmt: skip
        assert off(good, replace(own, **changed)) > 0
