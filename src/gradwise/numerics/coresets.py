"""Coresets by simple greedy rules: herding (Welling 2009) and k-center (Gonzalez 1985)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradwise.numerics.kernels import compiled
from gradwise.numerics.nearest import UnitRows, cosine, unit

GRAM = 4096
"""Rows up to which `herd` keeps all inner products (128 MiB), which takes half the time or less."""


def herd(x: ArrayLike, block: int | None = None) -> NDArray[np.int64]:
    """An order of all rows in which every prefix has nearly the mean of all.

    The next row is always the one that brings the sum of the first t rows nearest to t times the mean; the
    lower id wins ties. Takes O(n^2 d) time, or O(n block d), and a copy of x in float64.

    Args:
        x: (n, d) rows, such as gradients, in any unit; scale them to length 1 if only directions matter.
        block: rows to choose from at a time. The next block starts when all rows of one are placed. The
            default is all rows.

    Returns:
        (n,) ids of the rows in their order.

    Raises:
        ValueError: a value is not finite, x is not a matrix, or a block has no row.

    >>> herd(np.array([[1.0], [1.0], [-1.0], [-1.0]])).tolist()
    [0, 2, 1, 3]
    """
    if block is not None and block < 1:
        raise ValueError(f"A block needs at least one row; found {block}.")
    centred = np.array(x, dtype=np.float64)
    if centred.ndim != 2:
        raise ValueError(
            f"Expected a matrix with a row for each sample, (n, d); found shape {centred.shape}."
        )
    if not np.isfinite(centred).all():
        row = np.flatnonzero(~np.isfinite(centred).all(axis=1))[0]
        raise ValueError(f"Row {row} holds a value that is not finite.")
    # Around the mean the aim is a sum of zero, so that a prefix has the mean of all rows when its sum
    # vanishes.
    centred -= centred.mean(axis=0) if len(centred) else 0.0
    order, total = [np.empty(0, dtype=np.int64)], np.zeros(centred.shape[1])
    block = block or max(1, len(centred))
    for start in range(0, len(centred), block):
        rows = centred[start : start + block]
        order.append(start + _shortest_sums(rows, total))
        total += rows.sum(axis=0)
    return np.concatenate(order)


def _shortest_sums(x: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows in the order that keeps the sum shortest, which starts at `total`."""
    gram = x @ x.T if len(x) <= GRAM else None
    order = np.empty(len(x), dtype=np.int64)
    # ||sum + x_j||^2 - ||sum||^2, to which every pick adds twice its inner product with x_j.
    growth = np.einsum("nd,nd->n", x, x) + 2 * (x @ total)
    for place in range(len(x)):
        pick = order[place] = np.argmin(growth)
        growth += 2 * (x @ x[pick] if gram is None else gram[pick])
        growth[pick] = np.inf
    return order


def herd_towards(x: ArrayLike, target: ArrayLike, count: int) -> NDArray[np.int64]:
    """Distinct rows whose mean is near a target, in the order picked.

    The mean of the first n picks nears the target as fast as 1/n if the target lies in the rows' convex hull.

    Args:
        x: (N, k).
        target: (k,).
        count: picks, at most N.

    Raises:
        ValueError: there are fewer rows than picks.

    >>> herd_towards(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.array([0.5, 0.5]), 2).tolist()
    [0, 2]
    """
    x, target = np.asarray(x, dtype=np.float32), np.asarray(target)
    _check_count(count, len(x))
    owed, free = np.zeros(x.shape[1]), np.ones(len(x), dtype=np.bool_)
    picks = np.empty(count, dtype=np.int64)
    for number in range(count):
        # Each pick owes one more target; what it gives is taken off. The sum of the picks then stays near n
        # times the target, so that the error of the mean falls as 1/n.
        owed += target
        scores = np.where(free, x @ owed.astype(np.float32), -np.inf)
        picks[number] = np.argmax(scores)
        free[picks[number]] = False
        owed -= x[picks[number]]
    return picks


def k_center(x: ArrayLike, count: int) -> NDArray[np.int64]:
    """Rows that leave no other row far away, in the order picked.

    The first pick is the row nearest to the mean by cosine. Each further one is the row farthest from all
    picks; the lower id wins ties. The largest angle to a pick is at most twice the best possible (Gonzalez
    1985).

    Args:
        x: (N, h); lengths do not matter.
        count: picks, at most N.

    Raises:
        ValueError: a value is not finite, or there are fewer rows than picks.

    >>> k_center(np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]), 2).tolist()
    [0, 2]
    """
    rows = unit(x)
    _check_count(count, len(rows))
    mean = unit(rows.mean(axis=0, dtype=np.float64)[None])[0]
    return _farthest_first(rows, mean, count)


def _check_count(count: int, rows: int) -> None:
    if not 0 <= count <= rows:
        raise ValueError(f"Cannot pick {count} of {rows} rows.")


@compiled
def _farthest_first(rows: UnitRows, mean: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    picks = np.empty(count, dtype=np.int64)
    nearness = np.empty(len(rows), dtype=np.float32)
    for i in range(len(rows)):
        # Negated: the smallest value then marks the row nearest to the mean, and later the farthest row.
        nearness[i] = -cosine(rows[i], mean)
    for number in range(count):
        pick = np.argmin(nearness)
        picks[number] = pick
        for i in range(len(rows)):
            near = cosine(rows[i], rows[pick])
            if number == 0 or near > nearness[i]:
                nearness[i] = near
        # Above every cosine, so that no row is picked twice.
        nearness[pick] = np.float32(2)
    return picks
