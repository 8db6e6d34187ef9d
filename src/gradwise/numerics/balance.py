"""Balance of an order's prefixes, and placing units so that it stays within a limit."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def imbalance(x: ArrayLike, order: ArrayLike) -> float:
    """Largest distance of an order's prefix sums from their share of the total.

    That is max_t |sum over the first t rows of (x_u - mean(x))|, divided by sqrt(sum_u |x_u - mean(x)|^2) /
    2: the average distance of a random order at its middle. So 0 is perfect balance, a random order has about
    1, and sorting by group approaches sqrt(n).

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
    sums = np.cumsum(centred[np.asarray(order)], axis=0)
    return float(np.linalg.norm(sums, axis=1).max() / scale)


class Balance:
    """Places units one by one, near a preferred order and with balanced prefixes.

    Each place goes to the first preferred unit whose predecessors are placed and that keeps the prefix's
    imbalance within the limit. If there is none, it goes to the unit that exceeds the limit least, so the
    limit can be exceeded; `imbalance` says by how much. Precedences always hold.

    Args:
        x: (n, d) as in `imbalance`.
        limit: on the imbalance; None for no limit.

    >>> groups = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
    >>> Balance(groups, limit=0.5).place(range(8), count=8)
    [0, 4, 1, 5, 2, 6, 3, 7]
    """

    def __init__(self, x: ArrayLike, limit: float | None) -> None:
        self.centred, self.scale = _centred(x)
        self.limit = limit
        self.total = np.zeros(self.centred.shape[1])

    def place(
        self, preferred: Sequence[int], count: int, precedences: NDArray[np.bool_] | None = None
    ) -> list[int]:
        """The next `count` units, which follow those placed before.

        Args:
            preferred: (m,) ids of units in the preferred order.
            count: units to place, at most m.
            precedences: (m, m) True at [i, j] if preferred[i] must come before preferred[j]; acyclic.
        """
        units, placed = np.asarray(preferred, dtype=np.int64), list[int]()
        left = np.ones(len(units), dtype=bool)
        # Counted once and lowered as units are placed: to look through those left again for each place takes
        # time in the cube of a window.
        unplaced = np.zeros(len(units), dtype=np.int64)
        if precedences is not None:
            unplaced = precedences.sum(axis=0)
        for _ in range(count):
            # Only units that no unplaced one must precede: precedences hold even where the limit cannot.
            free = np.flatnonzero(left & (unplaced == 0))
            chosen = free[self._first_within(units[free])]
            self.total = self.total + self.centred[units[chosen]]
            placed.append(int(units[chosen]))
            left[chosen] = False
            if precedences is not None:
                unplaced -= precedences[chosen]
        return placed

    def _first_within(self, units: NDArray[np.int64]) -> int:
        """Place of the first unit within the limit, otherwise of the one that exceeds it least."""
        if self.limit is None:
            return 0
        lengths = np.linalg.norm(self.total + self.centred[units], axis=1)
        # The tolerance keeps orders that meet the limit exactly from depending on rounding.
        within = np.flatnonzero(lengths <= self.limit * self.scale * (1 + 1e-9))
        return int(within[0]) if within.size else int(np.argmin(lengths))


def _centred(x: ArrayLike) -> tuple[NDArray[np.float64], float]:
    """(n, d) rows minus their mean, and the average distance that `imbalance` is measured in."""
    rows = np.asarray(x, dtype=np.float64)
    centred = rows - rows.mean(axis=0) if len(rows) else rows
    return centred, float(np.sqrt((centred**2).sum()) / 2)
