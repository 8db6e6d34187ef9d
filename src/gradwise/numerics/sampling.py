"""Random choices that a seed repeats exactly, on plain arrays."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def successive_draw(probabilities: ArrayLike, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` distinct items one after another, each time in proportion to what is left.

    Done in one pass with exponential clocks (Efraimidis and Spirakis 2006): item i rings at a time distributed as
    Exp(p_i), and the first `count` to ring are exactly a successive draw. `Generator.choice(replace=False)` is not:
    it draws in rounds and throws repeats away, which shifts the inclusion probabilities.

    Args:
        probabilities: (n,) non-negative, summing to anything positive. Items of weight zero are never drawn.
        count: how many to draw, at most the number of positive weights.

    Returns:
        (count,) indices in the order drawn.

    >>> successive_draw([0.0, 1.0, 0.0], 1, np.random.default_rng(0))
    array([1])
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 1 or not np.all(np.isfinite(p)) or np.any(p < 0):
        raise ValueError(f"probabilities must be one row of finite numbers >= 0, found {p!r}")
    if not 0 <= count <= np.count_nonzero(p):
        raise ValueError(f"cannot draw {count} distinct items from {np.count_nonzero(p)} of positive weight")
    with np.errstate(divide="ignore"):
        rings_at = rng.exponential(size=p.size) / p
    return np.argsort(rings_at, kind="stable")[:count]


def multiplicities(weights: ArrayLike, total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Turn real weights into whole numbers of copies that add up to `total`.

    Systematic sampling: one random offset, then a comb of equally spaced teeth over the cumulated weights. Item i
    gets floor or ceil of total * w_i / sum(w), and exactly that in expectation.

    Args:
        weights: (n,) non-negative with a positive sum.
        total: the number of copies in all.

    Returns:
        (n,) copies of each item.

    >>> multiplicities([1.0, 1.0, 2.0], 4, np.random.default_rng(0))
    array([1, 1, 2])
    """
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 1 or not np.all(np.isfinite(w)) or np.any(w < 0) or w.sum() <= 0:
        raise ValueError("weights must be finite, non-negative and not all zero")
    ends = np.cumsum(w) * (total / w.sum())
    # Rounding in the cumulated sum must not lose or invent a copy of items that owe a whole number of them.
    whole = np.round(ends)
    ends = np.where(np.abs(ends - whole) < 1e-9 * max(total, 1), whole, ends)
    ends[-1] = total
    # 1 - u lies in (0, 1]: an offset of exactly zero would give a copy too many.
    teeth_passed = np.floor(ends - (1.0 - rng.random())).astype(np.int64) + 1
    return np.diff(teeth_passed, prepend=0)


def interleaved(groups: ArrayLike) -> NDArray[np.int64]:
    """Order items so that every prefix holds each group in proportion, items of a group keeping their order.

    The j-th of a group's c items is placed at (j + 1/2) / c of the way through; ties go to the group met first.

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
    return np.lexsort((first[codes], (rank + 0.5) / sizes[codes]))
