"""The runs of columns that blocks of rows visit, against what the kinds of tiles say one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aatc.ir.tilemap import EMPTY, FULL, PARTIAL, TileMap


@given(st.data())
def test_runs_cover_what_is_open_and_nothing_else(data):
    blocks, rows, cols = (data.draw(st.integers(0, most)) for most in (3, 3, 7))
    width = data.draw(st.integers(1, 5))
    cells = data.draw(
        st.lists(st.sampled_from([EMPTY, PARTIAL, FULL]), min_size=(n := blocks * rows * cols), max_size=n)
    )
    kinds = np.array(cells, dtype=np.int8).reshape(blocks, rows, cols)
    m = max(0, cols * width - data.draw(st.integers(0, width - 1)))
    runs = TileMap(kinds, 4, width, 1, (4 * rows, m)).runs()
    assert runs.dtype == np.int32 and runs.shape[:2] == (blocks, rows) and runs.shape[3] == 3
    for block in range(blocks):
        for row in range(rows):
            covered, before = np.full(m, EMPTY), None
            assert runs[block, row, -1].tolist() == [0, 0, 0]
            for first, last, kind in runs[block, row].tolist():
                if kind == EMPTY:
                    break
                assert first % width == 0 and first < last <= m
                assert before is None or before[0] < first or (before[0] == first and before[1] != kind)
                covered[first:last], before = kind, (last, kind)
            assert covered.tolist() == [kinds[block, row, c // width] for c in range(m)]


def test_a_mask_that_is_the_same_for_all_problems_has_one_block_of_runs():
    from aatc.ir.score.expr import index
    from aatc.ir.score.program import Program

    i, j, h = index("i"), index("j"), index("h")
    assert TileMap.of(Program.of(j <= i), [], (3, 2, 8, 8), 4, 4, 1).runs().shape[0] == 1
    assert TileMap.of(Program.of(j <= i + h), [], (3, 2, 8, 8), 4, 4, 1).runs().shape[0] == 6
