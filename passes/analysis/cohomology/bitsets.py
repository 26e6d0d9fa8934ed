"""Sets of small integers as rows of bits: (m, words) of uint64, member k being bit k mod 64 of word k // 64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Sets = NDArray[np.uint64]
Index = NDArray[np.int64]
_ONE = np.uint64(1)


def words(size: int) -> int:
    """How many words a set of numbers below ``size`` takes."""
    return -(-size // 64)


def from_mask(mask: NDArray[np.bool_]) -> Sets:
    """The sets of the columns that are true in each row of (m, n)."""
    bytes_of = np.zeros((len(mask), 8 * words(mask.shape[1])), np.uint8)
    packed = np.packbits(mask, axis=1, bitorder="little")
    bytes_of[:, : packed.shape[1]] = packed
    return bytes_of.view("<u8").astype(np.uint64, copy=False)


def bit(members: Index) -> Any:
    """The word that holds each member alone."""
    return _ONE << (members & 63).astype(np.uint64)


def include(sets: Sets, rows: Index, members: Index) -> None:
    """Put ``members[i]`` into the set ``rows[i]``, for all i."""
    np.bitwise_or.at(sets, (rows, members >> 6), bit(members))


def toggle(sets: Sets, rows: Index, members: Index) -> None:
    """Put ``members[i]`` into the set ``rows[i]``, or take it out, for one i after another."""
    np.bitwise_xor.at(sets, (rows, members >> 6), bit(members))


def _lowest_bit(one_word: Any) -> Any:
    return one_word & (~one_word + _ONE)


def _place(single: Any) -> Any:
    return np.bitwise_count(single - _ONE).astype(np.int64)


def lowest(sets: Sets) -> Index:
    """The least member of every set; none may be empty."""
    word = (sets != 0).argmax(axis=1)
    return np.asarray(64 * word + _place(_lowest_bit(sets[np.arange(len(sets)), word])), np.int64)


def members(sets: Sets) -> tuple[Index, Index]:
    """All pairs of a row and a member of its set, in no order."""
    rows, word = np.nonzero(sets)
    left = sets[rows, word]
    parts = [(rows[:0], word[:0])]
    while len(left):
        least = _lowest_bit(left)
        parts.append((rows, 64 * word + _place(least)))
        left = left ^ least
        more = left != 0
        rows, word, left = rows[more], word[more], left[more]
    return np.concatenate([r for r, _ in parts]), np.concatenate([k for _, k in parts])
