"""Herding: rows picked one by one so that their mean stays near a target (Welling 2009), or an order of all
rows in which every beginning has nearly the mean of all."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

GRAM = 4096
"""Rows up to which all inner products are taken at once (128 MiB), at twice the speed or more of one row
after another; beyond, they are not kept."""


def herd(x: Any, block: int | None = None) -> NDArray[np.int64]:
    """A permutation whose prefix sums stay near the mean: the next row is always the one that leaves the sum
    of the first t nearest to t times the mean of all; the lower one where several do.

    Takes O(n^2 d), or O(n block d), and memory for one copy of x in float64.

    Args:
        x: (n, d) rows, such as gradients, in any unit; scale each to length 1 where only directions count.
        block: rows that are chosen from at a time, as they come: the next ones only when all of these have
            their place. All at once unless given.

    Returns:
        (n,) rows in their order.

    Raises:
        ValueError: when a value is not finite, x is not a matrix, or a block has no row.

    >>> herd(np.array([[1.0], [1.0], [-1.0], [-1.0]])).tolist()
    [0, 2, 1, 3]
    """
    if block is not None and block < 1:
        raise ValueError(f"A block needs at least one row; found {block}.")
    x = np.array(x, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"Expected a row of numbers for each sample, (n, d); found shape {x.shape}.")
    if not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))[0]
        raise ValueError(f"Row {bad} holds a value that is not finite.")
    x -= x.mean(axis=0) if len(x) else 0.0
    order, total = [np.empty(0, dtype=np.int64)], np.zeros(x.shape[1])
    for start in range(0, len(x), block or max(1, len(x))):
        rows = x[start : start + (block or len(x))]
        order.append(start + _herded(rows, total))
        total += rows.sum(axis=0)
    return np.concatenate(order)


def _herded(x: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows in the order in which they leave the sum, which is `total` before them, shortest."""
    gram = x @ x.T if len(x) <= GRAM else None
    order = np.empty(len(x), dtype=np.int64)
    # ||sum + x_j||^2 less ||sum||^2; every pick changes it by twice its inner product with j.
    grown = np.einsum("nd,nd->n", x, x) + 2 * (x @ total)
    for place in range(len(x)):
        pick = order[place] = np.argmin(grown)
        grown += 2 * (x @ x[pick] if gram is None else gram[pick])
        grown[pick] = np.inf
    return order


def herd_towards(x: Any, target: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Rows in the order picked, each once: the mean of the first n nears the target as fast as 1/n where the
    target lies among them.

    Args:
        x: (N, k).
        target: (k,).
        count: at most N.

    Raises:
        ValueError: when there are fewer rows.

    >>> herd_towards(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.array([0.5, 0.5]), 2).tolist()
    [0, 2]
    """
    if not 0 <= count <= len(x):
        raise ValueError(f"Of {len(x)} rows, {count} cannot be picked.")
    x = np.asarray(x, dtype=np.float32)
    owed, free = np.zeros(x.shape[1]), np.ones(len(x), dtype=bool)
    picks = np.empty(count, dtype=np.int64)
    for number in range(count):
        owed += target
        scores = np.where(free, x @ owed.astype(np.float32), -np.inf)
        picks[number] = np.argmax(scores)
        free[picks[number]] = False
        owed -= x[picks[number]]
    return picks
