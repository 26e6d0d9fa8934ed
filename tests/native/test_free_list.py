"""Free spans against a set of free cells."""

from hypothesis import given, settings
from hypothesis import strategies as st

from aatc.backends.native.free_list import FreeList

#: Segments as [start, end): the first two touch.
SEGMENTS = {"a": (0, 40), "b": (40, 64), "c": (100, 132)}


def runs(cells: set[int]) -> list[tuple[int, int]]:
    """Spans of free cells, none over the border of two segments."""
    found = []
    for low, high in SEGMENTS.values():
        start = None
        for n in range(low, high + 1):
            if n < high and n in cells:
                start = n if start is None else start
            elif start is not None:
                found.append((start, n))
                start = None
    return found


steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 45), st.sampled_from([1, 2, 8])),
        st.tuples(st.just("give"), st.integers(0, 30), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
@settings(deadline=None)
def test_spans_are_those_of_a_set_of_cells(steps):
    spans: FreeList[str] = FreeList()
    cells: set[int] = set()
    for segment, (low, high) in SEGMENTS.items():
        assert spans.add(low, high, segment) == (low, high)
        cells |= set(range(low, high))
    taken: list[tuple[int, int, str]] = []
    for what, n, alignment in steps:
        if what == "take":
            fitting = [(e - s, s) for s, e in runs(cells) if -(-s // alignment) * alignment + n <= e]
            found = spans.take(n, alignment)
            if not fitting:
                assert found is None
                continue
            start = min(fitting)[1]
            at, segment = found
            assert at == -(-start // alignment) * alignment
            assert SEGMENTS[segment][0] <= at < SEGMENTS[segment][1]
            cells -= set(range(at, at + n))
            taken.append((at, at + n, segment))
        elif taken:
            start, end, segment = taken.pop(n % len(taken))
            cells |= set(range(start, end))
            merged = spans.add(start, end, segment)
            assert merged == next((s, e) for s, e in runs(cells) if s <= start < e)
        lengths = [e - s for s, e in runs(cells)]
        assert (len(spans), spans.bytes, spans.largest) == (len(lengths), len(cells), max(lengths, default=0))


def test_a_span_is_forgotten():
    spans: FreeList[int] = FreeList()
    spans.add(0, 10, 1)
    spans.add(20, 25, 1)
    spans.remove(0)
    assert (len(spans), spans.bytes, spans.largest) == (1, 5, 5)
    assert spans.take(6, 1) is None
    assert spans.add(10, 20, 1) == (10, 25)
