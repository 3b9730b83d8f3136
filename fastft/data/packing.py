"""Choose which examples share a packed row: best-fit decreasing over the whole data set, on a histogram of lengths.

It places equal lengths together, so that the time depends on the number of different lengths, not of examples
(best-fit decreasing: Johnson 1973; for training: Ding et al. 2024, arXiv 2404.10830). It never cuts an example.
"""

from __future__ import annotations

from collections.abc import Sequence

# The lengths in one row, newest first: (length, how many of it, the earlier content).
_Content = tuple[int, int, "_Content"] | None


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """For each packed row of at most `capacity` tokens, the indices of its examples in `lengths` (tokens).

    Every index is in exactly one row. Within a row the longest example comes first.

    Raises:
        ValueError: an example is longer than `capacity`, or not longer than 0.
    """
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    if by_length and (max(by_length) > capacity or min(by_length) < 1):
        raise ValueError(f"examples of {min(by_length)} to {max(by_length)} tokens do not fit rows of {capacity}")
    packed = []
    for content, count in _fill({length: len(indices) for length, indices in by_length.items()}, capacity):
        for _ in range(count):
            row: list[int] = []
            entry = content
            while entry is not None:
                length, times, entry = entry
                waiting = by_length[length]
                row[:0] = [waiting.pop() for _ in range(times)]
            packed.append(row)
    return packed


def _fill(histogram: dict[int, int], capacity: int) -> list[tuple[_Content, int]]:
    """The kinds of rows: the content of each kind, and how many rows have it."""
    open_rows: dict[int, list[tuple[_Content, int]]] = {capacity: []}
    # Bit s is set where rows with s free tokens are open: the tightest fit is its lowest bit from the length on.
    spaces = 0
    for length in sorted(histogram, reverse=True):
        left = histogram[length]
        while left:
            fitting = spaces >> length
            if fitting:
                space = length + (fitting & -fitting).bit_length() - 1
                content, count = open_rows[space].pop()
                if not open_rows[space]:
                    spaces &= ~(1 << space)
            else:
                space, content, count = capacity, None, -(-left // (capacity // length))
            # Best fit puts equal examples into one row until no more fit, then into the next.
            each = space // length
            full = min(count, left // each)
            parts = [(full, each)]
            if full < count:
                rest = left - full * each
                parts += [(1, rest), (count - full - 1, 0)] if rest else [(count - full, 0)]
            for rows, times in parts:
                if not rows:
                    continue
                remaining = space - times * length
                kind = ((length, times, content) if times else content, rows)
                open_rows.setdefault(remaining, []).append(kind)
                if remaining:
                    spaces |= 1 << remaining
                left -= rows * times
    return [kind for kinds in open_rows.values() for kind in kinds if kind[0] is not None]
