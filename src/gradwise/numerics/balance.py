"""How far the prefixes of an order stray from the whole, and orders that do not stray too far."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def imbalance(x: ArrayLike, order: NDArray[np.integer]) -> float:
    """How far an order's prefix sums stray from their share of the whole, at worst.

    Of S_t, the sum over the first t rows of x_u - mean(x), the longest, in units of what a random order has
    at its middle on average: sqrt(sum of |x_u - mean(x)|^2) / 2. So 0 is perfect, about 1 is random, and
    sorting by group approaches sqrt(n).

    Args:
        x: (n, d) features of the units, such as mean gradients or one-hot domains.
        order: (n,) a permutation.

    >>> groups = np.array([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 8)
    >>> imbalance(groups, np.arange(16)), imbalance(groups, np.arange(16).reshape(2, 8).T.ravel())
    (4.0, 0.5)
    """
    centred, scale = _centred(x)
    if not scale:
        return 0.0
    return float(np.linalg.norm(np.cumsum(centred[np.asarray(order)], axis=0), axis=1).max() / scale)


class Balance:
    """Places units one by one so that prefixes keep within a limit.

    Args:
        x: (n, d) as in `imbalance`.
        limit: on `imbalance`; None for no limit.
    """

    def __init__(self, x: ArrayLike, limit: float | None) -> None:
        self.centred, self.scale = _centred(x)
        self.limit = limit
        self.total = np.zeros(self.centred.shape[1])

    def place(
        self, preferred: Sequence[int], count: int, precedences: NDArray[np.bool_] | None = None
    ) -> list[int]:
        """The first `count` of some units, see `balanced`.

        Args:
            preferred: (m,) units in the order wished for.
            count: how many, at most m.
            precedences: (m, m) by places in `preferred`.
        """
        left, placed = list(range(len(preferred))), []
        units = np.asarray(preferred, dtype=np.int64)
        for _ in range(count):
            free = [i for i in left if precedences is None or not precedences[left, i].any()]
            chosen = free[self._first_within(units[free])]
            self.total = self.total + self.centred[units[chosen]]
            placed.append(int(units[chosen]))
            left.remove(chosen)
        return placed

    def _first_within(self, units: NDArray[np.int64]) -> int:
        if self.limit is None:
            return 0
        lengths = np.linalg.norm(self.total + self.centred[units], axis=1)
        within = np.flatnonzero(lengths <= self.limit * self.scale * (1 + 1e-9))
        return int(within[0]) if within.size else int(np.argmin(lengths))


def balanced(
    x: ArrayLike, order: ArrayLike, limit: float, precedences: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """The order nearest to one that is preferred whose prefixes keep within a limit, place by place.

    Every place is given to the first in the preferred order that may come and keeps the prefix within
    `limit`; where none does, to the one that comes nearest, so that the limit is a promise only as far as
    that choice can keep it: `imbalance` tells. Precedences hold in any case.

    Args:
        x: (n, d) as in `imbalance`.
        order: (n,) the preferred permutation.
        limit: on `imbalance`.
        precedences: (n, n) True at [i, j] where i must come before j; acyclic.

    Returns:
        (n,) a permutation.

    >>> groups = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
    >>> balanced(groups, range(8), limit=0.5).tolist()
    [0, 4, 1, 5, 2, 6, 3, 7]
    """
    wish = np.asarray(order, dtype=np.int64)
    own = None if precedences is None else precedences[np.ix_(wish, wish)]
    return np.array(Balance(x, limit).place(wish.tolist(), len(wish), own), dtype=np.int64)


def _centred(x: ArrayLike) -> tuple[NDArray[np.float64], float]:
    rows = np.asarray(x, dtype=np.float64)
    centred = rows - rows.mean(axis=0) if len(rows) else rows
    return centred, float(np.sqrt((centred**2).sum()) / 2)
