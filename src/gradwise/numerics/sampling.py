"""Choices that come out the same every time: even ones, and random ones that a seed repeats exactly; on plain
arrays."""

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_LOOK = 0x100CA7
"""Keeps the draw of `looked_at` apart from the other random streams of a seed."""


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """(min(count, most),) of the numbers below `count`, ascending and evenly spread.

    The first is among them, and of two or more the last.

    >>> evenly(10, 4).tolist(), evenly(3, 4).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def looked_at(pool: int, count: int, domain: NDArray[Any] | None, seed: int) -> NDArray[np.int64]:
    """(count,) samples of a pool, ascending, drawn at random with every domain in proportion.

    Args:
        pool: samples that there are.
        count: how many to draw; all where there are no more.
        domain: (pool,) any labels, or None for one draw from all.
        seed: the same draw again.

    >>> looked_at(4, 2, np.array(["a", "a", "b", "b"]), seed=0).tolist()
    [1, 2]
    """
    mixed = np.random.default_rng([seed, _LOOK]).permutation(pool)
    if domain is not None:
        mixed = mixed[interleaved(domain[mixed])]
    return np.sort(mixed[:count])


def successive_draw(
    probabilities: ArrayLike, count: int, rng: np.random.Generator, *, logs: bool = False
) -> NDArray[np.int64]:
    """Draw `count` distinct items one after another, each time in proportion to what is left.

    Done in one pass with exponential clocks (Efraimidis and Spirakis 2006): item i rings at a time
    distributed as Exp(p_i), and the first `count` to ring are exactly a successive draw. In logarithms, where
    no weight is too small to be drawn after all larger ones.

    Args:
        probabilities: (n,) non-negative, summing to anything positive. Items of weight zero are never drawn.
        count: how many to draw, at most the number of positive weights.
        rng: moved on by n exponential variates.
        logs: `probabilities` are logarithms of weights; -inf is a weight of zero.

    Returns:
        (count,) indices in the order drawn.

    >>> successive_draw([0.0, 1.0, 0.0], 1, np.random.default_rng(0))
    array([1])
    """
    log_p = np.asarray(probabilities, dtype=np.float64)
    if not logs:
        if np.any(log_p < 0):
            raise ValueError(f"probabilities must be one row of finite numbers >= 0, found {log_p!r}")
        with np.errstate(divide="ignore"):
            log_p = np.log(log_p)
    if log_p.ndim != 1 or np.any(np.isnan(log_p) | (log_p == np.inf)):
        raise ValueError(f"probabilities must be one row of finite numbers >= 0, found {probabilities!r}")
    positive = np.count_nonzero(log_p > -np.inf)
    if not 0 <= count <= positive:
        raise ValueError(f"cannot draw {count} distinct items from {positive} of positive weight")
    with np.errstate(divide="ignore"):
        log_rings_at = np.log(rng.exponential(size=log_p.size)) - log_p
    return np.argsort(log_rings_at, kind="stable")[:count]


def multiplicities(weights: ArrayLike, total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Turn real weights into whole numbers of copies that add up to `total`.

    Systematic sampling: one random offset, then a comb of equally spaced teeth over the cumulated weights.
    Item i gets floor or ceil of total * w_i / sum(w), and exactly that in expectation.

    Args:
        weights: (n,) non-negative with a positive sum.
        total: the number of copies in all.

    Returns:
        (n,) copies of each item.

    >>> multiplicities([1.0, 1.0, 2.0], 4, np.random.default_rng(0))
    array([1, 1, 2])
    """
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 1 or not np.all(np.isfinite(w)) or np.any(w < 0) or not np.any(w):
        raise ValueError("weights must be finite, non-negative and not all zero")
    w = w / w.max()  # so that neither huge nor tiny weights leave the range of floats on the way
    ends = np.cumsum(w) * (total / w.sum())
    # Rounding in the cumulated sum must not lose or invent a copy of items that owe a whole number of them.
    whole = np.round(ends)
    ends = np.where(np.abs(ends - whole) < 1e-9 * max(total, 1), whole, ends)
    ends[-1] = total
    # The comb's first tooth stands at 1 - u in (0, 1]; floor(ends + u) would round up where u is all but 1.
    teeth_passed = np.floor(ends).astype(np.int64) + (ends % 1 >= 1 - rng.random())
    return np.diff(teeth_passed, prepend=0)


def interleaved(groups: ArrayLike) -> NDArray[np.int64]:
    """Order items so that every prefix holds each group in proportion, items of a group keeping their order.

    In every prefix of k items each group has less than one item more or fewer than k times its share. The
    j-th of a group of share s may come no earlier than place floor(j / s) and no later than place ceil((j +
    1) / s) - 1; taking the most urgent item that may come keeps to all of these windows (Steiner and Yeomans
    1993). Of equally urgent ones the first takes its place whose turn came earlier, then the one whose group
    was met first.

    Args:
        groups: (n,) any labels.

    Returns:
        (n,) a permutation.

    >>> interleaved(["a", "a", "a", "a", "b", "b"])
    array([0, 4, 1, 2, 5, 3])
    """
    _, first, codes, sizes = np.unique(
        np.asarray(groups), return_index=True, return_inverse=True, return_counts=True
    )
    by_group = np.argsort(codes, kind="stable")
    rank = np.empty(codes.size, dtype=np.int64)
    rank[by_group] = np.arange(codes.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    size = sizes[codes]
    earliest, latest = rank * codes.size // size, -(-(rank + 1) * codes.size // size) - 1
    by_turn = np.lexsort((first[codes], earliest))
    coming = zip(
        *(of[by_turn].tolist() for of in (earliest, latest, first[codes])), by_turn.tolist(), strict=True
    )
    return _most_urgent_first(coming, codes.size)


def _most_urgent_first(coming: Iterator[tuple[int, int, int, int]], places: int) -> NDArray[np.int64]:
    """Fill the places in turn from (earliest place, latest place, tie-breaker, item), which come by earliest
    place."""
    order = np.empty(places, dtype=np.int64)
    waiting: list[tuple[int, int, int, int]] = []
    following = next(coming, None)
    for place in range(places):
        while following is not None and following[0] <= place:
            earliest, latest, tie, item = following
            heapq.heappush(waiting, (latest, earliest, tie, item))
            following = next(coming, None)
        order[place] = heapq.heappop(waiting)[-1]
    return order
