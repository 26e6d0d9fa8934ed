"""Operations and bytes of one attention step, eager and tiled: counts, not times.

An operation is one multiplication, addition, division, comparison or exponential; a product of n×d and d×m matrices
takes 2nmd. Traffic is what moves between memory and chip when every intermediate of the eager program is written
and read once, and when the tiled program keeps one tile of each operand on the chip.
"""

from __future__ import annotations

from dataclasses import dataclass

from aatc.passes.analysis.result import AnalysisError


@dataclass(frozen=True)
class AttentionComplexity:
    """Counts for all heads and batch entries together.

    - ``score_flops``, ``value_flops``: the two matrix products; ``softmax_flops``: the rest.
    - ``input_bytes`` of Q, K and V, ``output_bytes`` of O.
    - ``intermediate_bytes``: the most that exists besides inputs and output at any time.
    - ``traffic_bytes``: read and written in all.
    """

    score_flops: int
    softmax_flops: int
    value_flops: int
    input_bytes: int
    output_bytes: int
    intermediate_bytes: int
    traffic_bytes: int

    @property
    def matmul_flops(self) -> int:
        return self.score_flops + self.value_flops

    @property
    def flops(self) -> int:
        return self.matmul_flops + self.softmax_flops

    @property
    def peak_bytes(self) -> int:
        return self.input_bytes + self.output_bytes + self.intermediate_bytes

    @property
    def intensity(self) -> float:
        """Operations per byte of traffic."""
        return self.flops / self.traffic_bytes


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise AnalysisError(f"{name} is a whole number, at least 1, not {size!r}")


def complexity_analysis(
    n: int,
    d: int,
    h: int = 1,
    *,
    keys: int | None = None,
    value_dim: int | None = None,
    batch: int = 1,
    itemsize: int = 4,
) -> AttentionComplexity:
    """Eager attention of n queries on ``keys`` keys (n unless given) with ``h`` heads of d channels each.

    softmax: scaling, row maximum, subtraction, exponential, row sum and division, 6 operations an entry less 2 a row.
    Intermediates: scores and weights together. Traffic: Q, K in, S out; S in, P out; P, V in, O out. The seed's count
    gave n²d for a product that takes 2n²d, forgot the heads, and left V out of the memory. Raises `AnalysisError`.
    """
    m, d_v = n if keys is None else keys, d if value_dim is None else value_dim
    _positive(n=n, d=d, h=h, keys=m, value_dim=d_v, batch=batch, itemsize=itemsize)
    groups = batch * h
    inputs, entries, outputs = n * d + m * d + m * d_v, n * m, n * d_v
    return AttentionComplexity(
        score_flops=groups * 2 * n * m * d,
        softmax_flops=groups * (6 * n * m - 2 * n),
        value_flops=groups * 2 * n * m * d_v,
        input_bytes=groups * itemsize * inputs,
        output_bytes=groups * itemsize * outputs,
        intermediate_bytes=groups * itemsize * 2 * entries,
        traffic_bytes=groups * itemsize * (inputs + outputs + 4 * entries),
    )


def tiled_complexity_analysis(
    n: int,
    d: int,
    h: int = 1,
    *,
    tile: tuple[int, int] = (64, 64),
    keys: int | None = None,
    value_dim: int | None = None,
    batch: int = 1,
    itemsize: int = 4,
) -> AttentionComplexity:
    """Tiled attention with running row maxima and sums, tiles of ``tile`` = (queries, keys) tokens; the rest as in
    `complexity_analysis`.

    For each tile of queries, Q and O move once and all of K and V once. Besides the eager operations on the entries,
    each row of each tile takes 2d_v + 5 to rescale and add to the running sum and the d_v running outputs, and each
    row d_v divisions at the end in place of one per entry. Intermediates: one tile of scores and of weights, the
    two running vectors, and the running output, of one head at a time. Raises `AnalysisError`.
    """
    m, d_v = n if keys is None else keys, d if value_dim is None else value_dim
    if len(tile) != 2:
        raise AnalysisError(f"a tile is a number of queries and one of keys, not {tile}")
    _positive(n=n, d=d, h=h, keys=m, value_dim=d_v, batch=batch, itemsize=itemsize, queries_a_tile=tile[0])
    _positive(keys_a_tile=tile[1])
    groups = batch * h
    across, down = -(-m // tile[1]), -(-n // tile[0])
    rows, columns = min(tile[0], n), min(tile[1], m)
    return AttentionComplexity(
        score_flops=groups * 2 * n * m * d,
        softmax_flops=groups * (5 * n * m - 2 * n * across + n * across * (2 * d_v + 5) + n * d_v),
        value_flops=groups * 2 * n * m * d_v,
        input_bytes=groups * itemsize * (n * d + m * d + m * d_v),
        output_bytes=groups * itemsize * n * d_v,
        intermediate_bytes=itemsize * (2 * rows * columns + 2 * rows + rows * d_v),
        traffic_bytes=groups * itemsize * (n * d + n * d_v + down * m * (d + d_v)),
    )
