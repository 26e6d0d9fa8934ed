"""Finitely presented groups: Tietze moves, abelianisation, coset enumeration.

Generators are 1, 2, …, n; −g is the inverse of g; a word is a tuple of non-zero integers. Sources: Magnus, Karrass,
Solitar, Combinatorial Group Theory, 1966, chapter 1; Holt, Eick, O'Brien, Handbook of Computational Group Theory,
2005, chapter 5 (coset enumeration, HLT strategy with lookahead by coincidences).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aatc.passes.analysis.deadline import proceed
from aatc.passes.analysis.result import AnalysisError, Undecided

Word = tuple[int, ...]
#: Relators longer than this are not substituted into others: Tietze moves would swell the presentation.
LONGEST = 64
# Letters that one elimination may add to the other relators, and that the words of the eliminated generators may have
# for each generator there was: chains of relators such as a_i = a_{i+1}² double them at every step.
_GROWTH, _LETTERS = 1 << 12, 1 << 10


def inverse(word: Word) -> Word:
    return tuple(-g for g in reversed(word))


def reduced(word: Iterable[int]) -> Word:
    """The freely reduced word."""
    out: list[int] = []
    for g in word:
        if out and out[-1] == -g:
            out.pop()
        else:
            out.append(g)
    return tuple(out)


def cyclically_reduced(word: Iterable[int]) -> Word:
    """The freely reduced word without a first letter that its last one undoes."""
    w = reduced(word)
    start, stop = 0, len(w)
    while stop - start > 1 and w[start] == -w[stop - 1]:
        start, stop = start + 1, stop - 1
    return w[start:stop]


@dataclass(frozen=True)
class Presentation:
    """⟨1..generators | relators⟩. ``str`` writes generators as a, b, c, … and inverses as capitals."""

    generators: int
    relators: tuple[Word, ...] = ()

    def __post_init__(self) -> None:
        if self.generators < 0:
            raise AnalysisError(f"a presentation has 0 or more generators, not {self.generators}")
        for w in self.relators:
            if any(g == 0 or abs(g) > self.generators for g in w):
                raise AnalysisError(f"relator {w} has letters beyond ±{self.generators}, or 0")

    def __str__(self) -> str:
        if self.generators > 26:
            return f"⟨{self.generators} generators | {len(self.relators)} relators⟩"
        letters = "abcdefghijklmnopqrstuvwxyz"[: self.generators]
        words = ("".join(letters[g - 1] if g > 0 else letters[-g - 1].upper() for g in w) or "1" for w in self.relators)
        return f"⟨{', '.join(letters)} | {', '.join(words)}⟩"

    @property
    def is_trivially_presented(self) -> bool:
        return self.generators == 0

    @property
    def is_free(self) -> bool:
        """Whether there are no relators: then the group is free on the generators."""
        return not self.relators

    def exponents(self) -> list[list[int]]:
        """Exponent sums, a row per relator: the abelianisation is Zⁿ modulo the rows."""
        rows = []
        for w in self.relators:
            row = [0] * self.generators
            for g in w:
                row[abs(g) - 1] += 1 if g > 0 else -1
            rows.append(row)
        return rows

    def simplified(self, longest: int = LONGEST) -> Presentation:
        """An isomorphic presentation after Tietze moves: generators that a relator expresses by others are eliminated,
        shortest relators first, as long as the words that are put in their place are at most ``longest`` long and
        neither the other relators nor the words of eliminated generators swell."""
        return self.simplification(longest)[0]

    def simplification(self, longest: int = LONGEST) -> tuple[Presentation, tuple[Word, ...]]:
        """The simplified presentation, and the words in its generators that the present generators become."""
        return _Tietze(self, longest).run()

    def order(self, bound: int = 1 << 16) -> int | float | Undecided:
        """The number of elements; infinity where the abelianisation is infinite; `Undecided` when ``bound`` cosets
        did not suffice."""
        table = self.elements(bound)
        return table if isinstance(table, (Undecided, float)) else len(table)

    def elements(self, bound: int = 1 << 16) -> list[list[int]] | float | Undecided:
        """The Cayley graph: row e holds the elements e·1, e·1⁻¹, e·2, …; element 0 is the identity."""
        if self._has_infinite_quotient():
            return float("inf")
        return coset_table(self, (), bound)

    def _has_infinite_quotient(self) -> bool:
        """Whether the abelianisation has positive rank."""
        from aatc.passes.analysis.chains.smith import rank

        return self.generators > (rank(np.array(self.exponents(), dtype=object)) if self.relators else 0)


class _Tietze:
    """Eliminates generators; substitutions are pushed through relators that hold the generator."""

    def __init__(self, p: Presentation, longest: int):
        self.count, self.longest = p.generators, longest
        self.relators: dict[int, Word] = {}
        self.holders: dict[int, set[int]] = {g: set() for g in range(1, p.generators + 1)}
        self.known: set[Word] = set()
        self.queue: deque[int] = deque()
        self.eliminated: list[tuple[int, Word]] = []
        # how often a generator occurs, before cancellation, in the words of all generators there were
        self.uses: dict[int, int] = dict.fromkeys(self.holders, 1)
        self.letters = p.generators
        self.fresh = 0
        for w in sorted(map(cyclically_reduced, p.relators), key=len):
            self._add(w)

    def _add(self, word: Word) -> None:
        word = cyclically_reduced(word)
        if not word:
            return
        turned = canonical(word)
        if turned in self.known:
            return
        self.known.add(turned)
        self.relators[self.fresh] = word
        for g in set(map(abs, word)):
            self.holders[g].add(self.fresh)
        self.queue.append(self.fresh)
        self.fresh += 1

    def _drop(self, index: int) -> Word:
        word = self.relators.pop(index)
        for g in set(map(abs, word)):
            self.holders[g].discard(index)
        self.known.discard(canonical(word))
        return word

    def run(self) -> tuple[Presentation, tuple[Word, ...]]:
        while self.queue:
            batch, self.queue = sorted(self.queue, key=self._length), deque()
            for index in batch:
                proceed()
                if index in self.relators:
                    self._eliminate(index)
        names = {g: n for n, g in enumerate(sorted(self.holders), 1)}
        words = sorted(self.relators.values(), key=lambda w: (len(w), w))
        image: dict[int, Word] = {g: (n,) for g, n in names.items()}
        for g, value in reversed(self.eliminated):
            image[g] = _mapped(value, image)
        new = Presentation(len(names), tuple(_mapped(w, image) for w in words))
        return new, tuple(image[g] for g in range(1, self.count + 1))

    def _length(self, index: int) -> int:
        return len(self.relators.get(index, ()))

    def _eliminate(self, index: int) -> None:
        """Uses the relator to express the generator that is in fewest others and once in it."""
        word = self.relators[index]
        if len(word) > self.longest:
            return
        once = [g for g in word if sum(abs(x) == abs(g) for x in word) == 1]
        if not once:
            return
        g = min(once, key=lambda x: len(self.holders[abs(x)]))
        growth = (len(word) - 2) * (len(self.holders[abs(g)]) - 1)
        if (len(word) > 3 and growth > 4 * self.longest) or self._swells(index, abs(g)):
            return
        self._drop(index)
        at = word.index(g)
        value = inverse(word[at + 1 :] + word[:at])  # g · rest = 1
        value = value if g > 0 else inverse(value)
        self._substitute(abs(g), value)

    def _swells(self, index: int, g: int) -> bool:
        """Whether putting the rest of this relator for g makes other relators or the words of generators too long."""
        more = len(self.relators[index]) - 2
        others = sum(abs(x) == g for n in self.holders[g] if n != index for x in self.relators[n])
        letters = self.letters + self.uses[g] * more
        return more > 0 and (more * others > _GROWTH or letters > _LETTERS * self.count)

    def _substitute(self, g: int, value: Word) -> None:
        back = inverse(value)
        uses = self.uses.pop(g)
        self.letters += uses * (len(value) - 1)
        for x in value:
            self.uses[abs(x)] += uses
        for index in list(self.holders[g]):
            word = self._drop(index)
            out: list[int] = []
            for x in word:
                out.extend(value if x == g else back if x == -g else (x,))
            self._add(tuple(out))
        del self.holders[g]
        self.eliminated.append((g, value))


def _mapped(word: Word, image: Mapping[int, Word]) -> Word:
    return reduced(x for g in word for x in (image[g] if g > 0 else inverse(image[-g])))


def canonical(word: Word) -> Word:
    """The least among the rotations of a cyclic word and of its inverse."""
    return min(_least_rotation(word), _least_rotation(inverse(word)))


def _least_rotation(w: Word) -> Word:
    """In linear time: of two starts that agree in k letters, the worse one and the k starts after it are out."""
    i, j, k, n = 0, 1, 0, len(w)
    while j < n and i < n and k < n:
        a, b = w[(i + k) % n], w[(j + k) % n]
        if a == b:
            k += 1
            continue
        if a > b:
            i += k + 1
        else:
            j += k + 1
        j, k = j + (i == j), 0
    start = min(i, j)
    return w[start:] + w[:start]


def coset_table(p: Presentation, subgroup: Sequence[Word], bound: int = 1 << 16) -> list[list[int]] | Undecided:
    """Right cosets of the subgroup generated by words: row c holds c·1, c·1⁻¹, c·2, …. Coset 0 is the subgroup.

    Relators are scanned at every coset in turn, and gaps are filled by new cosets; `Undecided` when more than
    ``bound`` of them would be alive.
    """
    table = _Cosets(p.generators, bound)
    relators = sorted({cyclically_reduced(w) for w in p.relators} - {()}, key=len)
    try:
        for w in subgroup:
            table.scan(0, reduced(w), fill=True)
        current = 0
        while current < len(table.rows):
            proceed()
            for w in relators:
                if table.parent[current] != current:
                    break
                table.scan(current, w, fill=True)
            if table.parent[current] == current:
                for g in range(2 * p.generators):
                    if table.rows[current][g] < 0:
                        table.define(current, g)
            current += 1
    except _TooMany:
        return Undecided(f"{bound} cosets", "the enumeration did not close")
    return table.compressed()


class _TooMany(Exception):
    pass


class _Cosets:
    """A partial action on cosets with coincidences kept by union–find. Column 2(g−1) is g, 2(g−1)+1 its inverse."""

    def __init__(self, generators: int, bound: int):
        self.width, self.bound, self.alive = 2 * generators, bound, 1
        self.rows: list[list[int]] = [[-1] * self.width]
        self.parent = [0]

    def find(self, c: int) -> int:
        while self.parent[c] != c:
            self.parent[c] = self.parent[self.parent[c]]
            c = self.parent[c]
        return c

    def define(self, c: int, g: int) -> int:
        if self.alive >= self.bound or len(self.rows) >= 8 * self.bound:
            raise _TooMany
        new = len(self.rows)
        self.rows.append([-1] * self.width)
        self.parent.append(new)
        self.alive += 1
        self.rows[c][g], self.rows[new][g ^ 1] = new, c
        return new

    def scan(self, c: int, word: Word, *, fill: bool) -> None:
        """Traces ``word`` from ``c`` forwards and backwards until it closes, deducing or defining what is missing."""
        letters = [2 * (abs(g) - 1) + (g < 0) for g in word]
        rows = self.rows
        first, i, last, j = c, 0, c, len(letters) - 1
        while True:
            while i <= j and rows[first][letters[i]] >= 0:
                first, i = rows[first][letters[i]], i + 1
            if i > j:
                if first != last:
                    self.merge(first, last)
                return
            while j >= i and rows[last][letters[j] ^ 1] >= 0:
                last, j = rows[last][letters[j] ^ 1], j - 1
            if j < i:
                self.merge(first, last)
                return
            if j == i:
                rows[first][letters[i]], rows[last][letters[i] ^ 1] = last, first
                return
            if not fill:
                return
            self.define(first, letters[i])

    def merge(self, a: int, b: int) -> None:
        """Declares two cosets equal, with all that follows."""
        todo = [(a, b)]
        while todo:
            a, b = (self.find(x) for x in todo.pop())
            if a == b:
                continue
            a, b = min(a, b), max(a, b)
            self.parent[b] = a
            self.alive -= 1
            for g in range(self.width):
                to = self.rows[b][g]
                if to < 0:
                    continue
                self.rows[b][g] = -1
                if self.rows[to][g ^ 1] == b:
                    self.rows[to][g ^ 1] = -1
                source, target = self.find(a), self.find(to)
                if self.rows[source][g] >= 0:
                    todo.append((target, self.rows[source][g]))
                elif self.rows[target][g ^ 1] >= 0:
                    todo.append((source, self.rows[target][g ^ 1]))
                else:
                    self.rows[source][g], self.rows[target][g ^ 1] = target, source

    def compressed(self) -> list[list[int]]:
        alive = [c for c in range(len(self.rows)) if self.parent[c] == c]
        name = {c: n for n, c in enumerate(alive)}
        return [[name[self.find(x)] for x in self.rows[c]] for c in alive]
