"""Orders over units: a window at a time, each as good as the graph allows, none out of balance."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradwise.numerics import linear_order
from gradwise.numerics.balance import Balance

TIE = 1e-6
"""Bonus for keeping two units in their given order, as a fraction of the largest worth; it breaks ties."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Orders some units at a time and commits the first of them.

    Args: as the fields; `worth` and `before` are over the nodes that units stand for.
    """

    node: NDArray[np.int64]
    """(units,) node of each unit."""

    worth: NDArray[np.float64]
    """(nodes, nodes) what it is worth to have i before j."""

    before: NDArray[np.bool_]
    """(nodes, nodes) True where i must come before j; acyclic."""

    window: int | None
    """Units ordered together; None for all."""

    commit: int
    """How many of them are committed before the next are considered."""

    seed: int = 0

    _orders: dict[tuple[int, ...], NDArray[np.int64]] = field(default_factory=dict)

    def order(
        self,
        base: NDArray[np.int64],
        features: NDArray[np.float64],
        limit: float | None,
        first: int | None = None,
    ) -> NDArray[np.int64]:
        """(n,) the units of `base` in the order to be trained on.

        Args:
            base: (n,) units in the order in which they come into the window.
            features: (units, d) of all units, whose prefix sums are kept in balance.
            limit: on their imbalance, see `gradwise.numerics.balance`.
            first: units to be placed at least; the others follow as they came. If unset, all of them.
        """
        balance = Balance(features, limit)
        placed: list[int] = []
        waiting, at = [], 0
        size = len(base) if self.window is None else self.window
        enough = len(base) if first is None else min(first, len(base))
        while len(placed) < enough:
            more = size - len(waiting)
            waiting += base[at : at + more].tolist()
            at += more
            wish = [waiting[place] for place in self._best(waiting)]
            # Only the first are committed: the rest is ordered again together with what comes next.
            count = min(self.commit, len(wish)) if at < len(base) else len(wish)
            nodes = self.node[wish]
            committed = balance.place(wish, count, self.before[np.ix_(nodes, nodes)])
            placed += committed
            gone = set(committed)
            waiting = [unit for unit in waiting if unit not in gone]
        return np.concatenate([np.array([*placed, *waiting], dtype=np.int64), base[at:]])

    def value(self, order: NDArray[np.int64]) -> float:
        """Sum of `worth` over pairs of units that are at most a window apart."""
        nodes, reach = self.node[order], len(order) if self.window is None else self.window
        return float(
            sum(self.worth[nodes[:-gap], nodes[gap:]].sum() for gap in range(1, min(reach, len(nodes))))
        )

    def _best(self, units: list[int]) -> NDArray[np.int64]:
        """Places of the units in the best order; what the graph does not care about stays as it came."""
        nodes = tuple(self.node[units].tolist())
        # Windows of the same groups come again and again, and their best order is the same.
        if nodes not in self._orders:
            square = np.ix_(nodes, nodes)
            worth = self.worth[square]
            # Far below anything measured: it decides only between orders that the graph values alike.
            as_they_came = np.triu(np.full(worth.shape, TIE * (np.abs(worth).max() or 1.0)), 1)
            self._orders[nodes] = linear_order(
                worth + as_they_came, seed=self.seed, precedences=self.before[square]
            )
        return self._orders[nodes]
