"""What of a fundamental group can be held against a covering and against H₁: a check for `CoverWitness`.

Nothing here uses the code that made the group: its elements are counted again by sympy's enumeration of cosets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from sympy.combinatorics.coset_table import coset_enumeration_r
from sympy.combinatorics.fp_groups import FpGroup
from sympy.combinatorics.free_groups import free_group

from aatc.passes.analysis.chains.verify_integers import Column, divisor_chain, integral, invariants

Permutation = np.ndarray
COSETS = 5000


def presents(group: Any, base: tuple[np.ndarray, ...], cover: tuple[np.ndarray, ...], sheets: int) -> bool:
    """Whether ``group``, a `FundamentalGroup`, is about the complex ``base`` and fits its ``cover``: edges of the
    spanning tree carry nothing, generators can move the sheets so that every edge moves them by its word and no
    relator moves any, the largest commutative quotient is H₁, and there are as many elements as sheets. ValueError
    where they cannot be counted."""
    edges = _edges_of(group, base)
    if edges is None or not _words_fit(group):
        return False
    moves = _moves(cover, sheets)
    words, identity = group.edge_words, np.arange(sheets)
    steps = {e: moves.get(pair, identity - 1) for e, pair in edges.items()}
    if any(sorted(step.tolist()) != list(range(sheets)) for step in steps.values()):
        return False
    if any(words[e] or steps[e].tolist() != identity.tolist() for e in group.tree):
        return False
    if not _spans(group.tree, edges, base):
        return False
    letters: dict[int, Permutation] = {}
    for e, word in words.items():
        if len(word) == 1:
            letters[word[0]], letters[-word[0]] = steps[e], np.argsort(steps[e])
    told = [(word, steps[e]) for e, word in words.items()] + [(w, identity) for w in group.presentation.relators]
    for word, step in told:
        if all(g in letters for g in word) and _moved(word, letters, sheets).tolist() != step.tolist():
            return False
    return _quotient(group.presentation) == _first_homology(base) and _order(group.presentation, sheets) == sheets


def _edges_of(group: Any, base: tuple[np.ndarray, ...]) -> dict[int, tuple[int, int]] | None:
    """The edges of the base point's component, place in the complex → ends in ``base``; None where that is not the
    component, or other edges have words."""
    cells = group.complex.cells
    vertices, edges = cells[0][:, 0], cells[1] if len(cells) > 1 else np.zeros((0, 2), dtype=np.int64)
    if group.base not in vertices:
        return None
    near: dict[int, list[int]] = {}
    for a, b in edges.tolist():
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    inside, waiting = {int(group.base)}, [int(group.base)]
    while waiting:
        new = set(near.get(waiting.pop(), ())) - inside
        inside |= new
        waiting += new
    place = {v: n for n, v in enumerate(sorted(inside))}
    own = [[[place[v] for v in c] for c in x.tolist() if c[0] in inside] for x in cells]
    if [x for x in own if x] != [x.tolist() for x in base]:
        return None
    found = {e: (place[a], place[b]) for e, (a, b) in enumerate(edges.tolist()) if a in inside}
    return found if found.keys() == group.edge_words.keys() and set(group.tree) <= found.keys() else None


def _words_fit(group: Any) -> bool:
    """Whether all words are of letters ±1, …, ± the number of generators."""
    words = [*group.edge_words.values(), *group.presentation.relators]
    letters = [g for word in words for g in word]
    count = group.presentation.generators
    whole = integral(np.array([count, *letters, *group.tree], dtype=object))
    return whole and all(1 <= abs(g) <= count for g in letters)


def _moves(cover: tuple[np.ndarray, ...], sheets: int) -> dict[tuple[int, int], Permutation]:
    """For every edge below, which sheet over its second end each sheet over its first is joined to."""
    found: dict[tuple[int, int], Permutation] = {}
    for a, b in cover[1].tolist() if len(cover) > 1 else ():
        found.setdefault((a // sheets, b // sheets), np.full(sheets, -1))[a % sheets] = b % sheets
    return found


def _spans(tree: Iterable[int], edges: dict[int, tuple[int, int]], base: tuple[np.ndarray, ...]) -> bool:
    """Whether the tree's edges join all vertices, as few as can."""
    root = list(range(len(base[0])))

    def find(v: int) -> int:
        while root[v] != v:
            v = root[v]
        return v

    joined = 0
    for e in tree:
        a, b = (find(v) for v in edges[e])
        if a == b:
            return False
        root[a], joined = b, joined + 1
    return joined == len(root) - 1


def _moved(word: Iterable[int], letters: dict[int, Permutation], sheets: int) -> Permutation:
    at = np.arange(sheets)
    for g in word:
        at = letters[g][at]
    return at


def _quotient(presentation: Any) -> tuple[int, list[int]]:
    """(rank, torsion) of the presentation with all generators made to commute."""
    columns: list[Column] = []
    for word in presentation.relators:
        column: Column = {}
        for g in word:
            column[abs(g)] = column.get(abs(g), 0) + (1 if g > 0 else -1)
        columns.append({g: v for g, v in column.items() if v})
    factors = invariants(columns)[1]
    return presentation.generators - len(factors), divisor_chain(t for t in factors if t > 1)


def _order(presentation: Any, expected: int) -> int:
    """The number of elements. ValueError where ``COSETS``, and a hundred for each that is expected, do not suffice."""
    if not presentation.generators:
        return 1
    free, *letters = free_group(" ".join(f"x{g}" for g in range(1, presentation.generators + 1)))
    relators = [
        math.prod((letters[abs(g) - 1] ** (1 if g > 0 else -1) for g in word), start=free.identity)
        for word in presentation.relators
    ]
    table = coset_enumeration_r(FpGroup(free, relators), [], max_cosets=COSETS + 100 * expected)
    table.compress()
    return len(table.table)


def _first_homology(base: tuple[np.ndarray, ...]) -> tuple[int, list[int]]:
    """(rank, torsion) of H₁ of a connected complex."""
    edges = [tuple(c) for c in base[1].tolist()] if len(base) > 1 else []
    place = {edge: n for n, edge in enumerate(edges)}
    triangles = base[2].tolist() if len(base) > 2 else []
    factors = invariants({place[b, c]: 1, place[a, c]: -1, place[a, b]: 1} for a, b, c in triangles)[1]
    return len(edges) - (len(base[0]) - 1) - len(factors), divisor_chain(t for t in factors if t > 1)
