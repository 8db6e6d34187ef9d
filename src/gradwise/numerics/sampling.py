"""Reproducible choices of items: evenly spaced, stratified, weighted, and in proportional order."""

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradwise.numerics.streams import stream


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """(min(count, most),) evenly spaced numbers below `count`, ascending, the first and the last among them.

    A single number is the first.

    >>> evenly(10, 4).tolist(), evenly(3, 4).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def stratified_sample(pool: int, count: int, domain: ArrayLike | None, seed: int) -> NDArray[np.int64]:
    """(min(count, pool),) random ids of a pool, ascending, each domain in proportion to its size.

    Args:
        pool: number of samples.
        count: ids to draw.
        domain: (pool,) label of each sample, or None for a single domain.
        seed: the same seed draws the same ids.

    >>> stratified_sample(4, 2, np.array(["a", "a", "b", "b"]), seed=0).tolist()
    [0, 3]
    """
    shuffled = stream(seed, "stratified sample").permutation(pool)
    if domain is not None:
        # Every prefix of interleaved groups has them in proportion, so that any count is stratified.
        shuffled = shuffled[interleaved(np.asarray(domain)[shuffled])]
    return np.sort(shuffled[:count])


def successive_draw(
    probabilities: ArrayLike, count: int, rng: np.random.Generator, *, logs: bool = False
) -> NDArray[np.int64]:
    """Draw `count` distinct items one after another, each in proportion to the weights that are left.

    Exponential clocks do this at once (Efraimidis and Spirakis 2006): item i rings at a time distributed as
    Exp(p_i), and the order of the first `count` rings is distributed as a successive draw. The times are
    compared as logarithms, so that no positive weight is too small to be drawn after all larger ones.

    Args:
        probabilities: (n,) weights >= 0; they need not add up to 1. Items of weight zero are never drawn.
        count: items to draw, at most the number of positive weights.
        rng: advanced by n exponential variates.
        logs: whether `probabilities` are logarithms of the weights; -inf is a weight of zero.

    Returns:
        (count,) indices in the order drawn.

    Raises:
        ValueError: a weight is negative or not finite, or there are too few positive ones.

    >>> successive_draw([0.0, 1.0, 0.0], 1, np.random.default_rng(0))
    array([1])
    """
    log_p = np.asarray(probabilities, dtype=np.float64)
    if not logs:
        if np.any(log_p < 0):
            raise ValueError(f"probabilities must be a vector of finite numbers >= 0; found {log_p!r}.")
        with np.errstate(divide="ignore"):
            log_p = np.log(log_p)
    if log_p.ndim != 1 or np.any(np.isnan(log_p) | (log_p == np.inf)):
        raise ValueError(f"probabilities must be a vector of finite numbers >= 0; found {probabilities!r}.")
    positive = np.count_nonzero(log_p > -np.inf)
    if not 0 <= count <= positive:
        raise ValueError(f"Cannot draw {count} distinct items; {positive} have a positive weight.")
    with np.errstate(divide="ignore"):
        log_times = np.log(rng.exponential(size=log_p.size)) - log_p
    return np.argsort(log_times, kind="stable")[:count]


def multiplicities(weights: ArrayLike, total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Turn real weights into numbers of copies that add up to `total`.

    Systematic sampling: equally spaced teeth with one random offset are laid over the cumulative weights.
    Item i gets floor or ceil of total * w_i / sum(w) copies, and exactly that number in expectation.

    Args:
        weights: (n,) non-negative with a positive sum.
        total: copies of all items together.
        rng: source of the offset.

    Returns:
        (n,) copies of each item.

    Raises:
        ValueError: a weight is negative or not finite, or all are zero.

    >>> multiplicities([1.0, 1.0, 2.0], 4, np.random.default_rng(0))
    array([1, 1, 2])
    """
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 1 or not np.all(np.isfinite(w)) or np.any(w < 0) or not np.any(w):
        raise ValueError("weights must be finite, non-negative and not all zero.")
    w = w / w.max()  # the sum of huge weights overflows, the quotient of tiny ones underflows
    ends: NDArray[np.float64] = np.cumsum(w) * (total / float(w.sum()))
    # Rounding in the cumulative sum must not lose or add a copy where an item's share is a whole number.
    whole = np.round(ends)
    ends = np.where(np.abs(ends - whole) < 1e-9 * max(total, 1), whole, ends)
    ends[-1] = total
    # The first tooth stands at 1 - u in (0, 1]. floor(ends + u) would round up for u just below 1.
    teeth = np.floor(ends).astype(np.int64) + (ends % 1 >= 1 - rng.random())
    return np.diff(teeth, prepend=0)


def interleaved(groups: ArrayLike) -> NDArray[np.int64]:
    """Order items so that every prefix holds each group in proportion and groups keep their order.

    In a prefix of k items each group deviates from k times its share by less than one item. Item j of a group
    with share s may come no earlier than place floor(j / s) and no later than ceil((j + 1) / s) - 1. Taking
    the most urgent item that may come meets all of these windows (Steiner and Yeomans 1993). Ties go to the
    item with the earlier window, then to the group that occurs first.

    Args:
        groups: (n,) labels.

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
    by_window = np.lexsort((first[codes], earliest))
    items = zip(
        *(values[by_window].tolist() for values in (earliest, latest, first[codes])),
        by_window.tolist(),
        strict=True,
    )
    return _most_urgent_first(items, codes.size)


def _most_urgent_first(items: Iterator[tuple[int, int, int, int]], places: int) -> NDArray[np.int64]:
    """Fill places from (earliest place, latest place, tie-breaker, id), which ascend by earliest place."""
    order = np.empty(places, dtype=np.int64)
    waiting: list[tuple[int, int, int, int]] = []
    upcoming = next(items, None)
    for place in range(places):
        while upcoming is not None and upcoming[0] <= place:
            earliest, latest, tie_breaker, item = upcoming
            heapq.heappush(waiting, (latest, earliest, tie_breaker, item))
            upcoming = next(items, None)
        order[place] = heapq.heappop(waiting)[-1]
    return order
