"""Packing samples into rows without changing their order.

Sorting by length would pack tighter, but the order is the plan's: it decides what is learned when. So a row
is filled with the samples that come next while they fit (next-fit).
"""

import heapq
from itertools import pairwise

import numpy as np

from gradwise.errors import DataError


def pack(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """(R + 1,) int64 offsets of rows of consecutive samples, each as full as the order allows: row `r` holds
    samples `offsets[r]` to `offsets[r + 1] - 1`. `lengths` are tokens per sample, in the plan's order."""
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= max_length:
        bad = int(np.flatnonzero((lengths < 1) | (lengths > max_length))[0])
        raise DataError(
            f"sample {bad} has {lengths[bad]} tokens; a packed row takes 1 to {max_length} per sample"
        )
    ends = np.cumsum(lengths)
    offsets = [0]
    while offsets[-1] < len(lengths):
        start = offsets[-1]
        before = ends[start] - lengths[start]
        # One binary search for each row instead of a step for each sample.
        offsets.append(int(np.searchsorted(ends, before + max_length, side="right")))
    return np.asarray(offsets, dtype=np.int64)


def even_rows(offsets: np.ndarray, rows: int) -> np.ndarray:
    """Split rows in halves until there are `rows` of them, always the one with most samples, the earliest of
    equals. Offsets are as of `pack`. Raises ValueError for fewer rows than given, or more than samples."""
    count, samples = len(offsets) - 1, int(offsets[-1])
    if not count <= rows <= samples:
        raise ValueError(
            f"{count} rows of {samples} samples cannot be split into {rows}; {count} to {samples} can"
        )
    widest = [(-int(end - start), int(start)) for start, end in pairwise(offsets)]
    heapq.heapify(widest)
    for _ in range(rows - count):
        width, start = heapq.heappop(widest)
        # `width` is negative, for the heap's sake: the left half takes the odd sample.
        left = (1 - width) // 2
        heapq.heappush(widest, (-left, start))
        heapq.heappush(widest, (width + left, start + left))
    return np.asarray([*sorted(start for _, start in widest), samples], dtype=np.int64)
