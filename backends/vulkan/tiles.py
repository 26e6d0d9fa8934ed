"""What a tile is while a kernel is written: registers of the threads, a copy in shared memory, or a place to read from.

Which form a tile has follows from the letters of its two inner axes. ``r`` stands for the axis whose blocks the
workgroup's rows are, ``c`` for the one whose blocks its columns are.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Form of a tile -> how its registers are counted: rows of a thread, columns of a thread, vectors of features.
FORMS = ("one", "row", "col", "pair", "rowvec", "colvec", "vec", "matrix")


@dataclass
class Source:
    """Where a tile lies in the arena: ``base`` is the same for the workgroup; ``strides`` by letter: r, c and d, and e
    of a matrix (in words; "1" for neighbours). ``aligned``: whether vectors of four features are vectors of memory."""

    base: str
    strides: dict[str, str]
    kind: str
    aligned: bool = False


@dataclass
class Staged:
    """A copy in shared memory: rows of ``stride`` vectors."""

    name: str
    stride: int


@dataclass
class Tile:
    """``letters`` of the second and third axis; ``kind`` of the elements: f, i or b; ``width``: features, 1 where there
    are none. ``items``: texts of what a thread holds, None until somebody reads them."""

    letters: tuple[str, str]
    form: str
    kind: str
    width: int = 1
    items: list[str] | None = None
    source: Source | None = None
    staged: Staged | None = None
    factors: list[tuple[Tile, Tile]] | None = None  # of a matrix: vectors of rows, the sum of whose products it is


def form_of(letters: tuple[str, str], rows: str, cols: str) -> str:
    """The form of a tile of these letters; ``rows`` and ``cols`` are the letters of the workgroup's axes."""
    known = {rows: "r", cols: "c", "1": "1", "d": "d", "e": "e"}
    first, second = (known.get(x, "?") for x in letters)
    both = "".join(sorted(first + second))
    return {
        "11": "one", "1r": "row", "1c": "col", "cr": "pair", "dr": "rowvec", "cd": "colvec", "1d": "vec",
        "de": "matrix", "1e": "vec", "er": "rowvec", "ce": "colvec",
    }.get(both, "")  # fmt: skip
