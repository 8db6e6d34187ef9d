"""The linear ordering problem, and its other side: cycles broken at little weight (feedback arc set).

    max over permutations   sum of weights[i, j] over all i that come before j

Only the differences c = weights - weights^T matter. They split the items into strongly connected components,
whose order is exact at any size. Each component is then solved by itself: up to 16 items exactly, by a
recursion over subsets (Held and Karp 1962), larger ones by a memetic search (`insertion`). The search is
bounded by a number of moves and reads no clock, so its result does not depend on the machine's speed.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradwise.numerics.insertion import Matrix, evolved
from gradwise.numerics.kernels import compiled
from gradwise.numerics.precedence import (
    Order,
    Relation,
    components,
    linear_extension,
    on_a_cycle,
    reachable,
)
from gradwise.numerics.streams import stream

EXACT = 16
"""Items of a component that is solved exactly, at most: 20 ms, and each further item doubles it."""

MOVES_PER_PAIR, SCANNED = 250, 2_000_000_000
"""Default moves: this many for each pair (i, j), but so few that they scan at most this many places in all.

Two seconds for n = 200. The mean gap to the best known values of 78 published input-output matrices (XLOLIB)
is then 0.146 % at n = 150 and 0.163 % at n = 250."""


def linear_order(
    weights: ArrayLike, seed: int = 0, max_moves: int | None = None, precedences: ArrayLike | None = None
) -> NDArray[np.int64]:
    """A permutation of high value: the optimum if no component has more than 16 items.

    Args:
        weights: (n, n) of any sign and unit; weights[i, j] counts if i comes before j. The diagonal is
            ignored.
        seed: of the search; it does not affect components that are solved exactly.
        max_moves: moves of the search over all components, at most; the default is `default_moves` for each.
        precedences: (n, n) bool, True at [i, j] if i must come before j, whatever the weights.

    Returns:
        (n,) items in their order.

    Raises:
        ValueError: a weight is not finite, shapes differ, or the precedences contradict each other.

    Source: Schiavinotto and Stuetzle (2004), "The linear ordering problem: instances, search space analysis
        and
    algorithms".

    >>> linear_order([[0, 1, 3], [2, 0, 1], [0, 2, 0]]).tolist()
    [0, 2, 1]
    >>> linear_order([[0, 1], [0, 0]], precedences=[[False, False], [True, False]]).tolist()
    [1, 0]
    """
    if max_moves is not None and max_moves < 0:
        raise ValueError(f"max_moves must not be negative; found {max_moves}.")
    problem = _Problem.of(weights, precedences)
    # Between strongly connected components every positive gain points the same way, so that their order is
    # known and only the inside of each is searched.
    parts = components((problem.gains > 0) | problem.before)
    rng = stream(seed, "search for a linear order")
    # Moves are shared out by pairs, since a component's search needs moves in proportion to them.
    pairs = sum(len(part) ** 2 for part in parts if len(part) > EXACT)
    order: list[Order] = []
    for part in parts:
        component = problem.among(part)
        if len(part) <= EXACT:
            places = component.optimum()
        elif max_moves is None:
            places = component.searched(rng, default_moves(len(part)))
        else:
            places = component.searched(rng, max_moves * len(part) ** 2 // pairs)
        order.append(part[places])
    return np.concatenate(order) if order else np.empty(0, dtype=np.int64)


def default_moves(n: int) -> int:
    """Default number of moves for a search among n items.

    >>> default_moves(200)
    10000000
    """
    return min(MOVES_PER_PAIR * n * n, SCANNED // max(n, 1))


def order_value(weights: ArrayLike, order: ArrayLike) -> float:
    """Sum of weights[i, j] over all i that come before j in the order.

    >>> order_value([[0, 1], [5, 0]], [1, 0])
    5.0
    """
    w, order = _square(weights), np.asarray(order)
    if not np.array_equal(np.sort(order), np.arange(len(w))):
        raise ValueError(f"Expected a permutation of {len(w)} items.")
    return float(np.triu(w[np.ix_(order, order)], 1).sum())


def order_bound(weights: ArrayLike) -> float:
    """An upper bound on the value of every order: the sum of the larger weight of each pair.

    >>> order_bound([[0, 1], [5, 0]])
    5.0
    """
    w = _square(weights)
    return float(np.triu(np.maximum(w, w.T), 1).sum())


# ---- cycles ------------------------------------------------------------------------------------------------


class Acyclic(NamedTuple):
    """A graph after its cycles were broken. Shapes: n nodes, m removed arcs."""

    weights: Matrix
    """(n, n) without a cycle; zeros on the diagonal."""
    removed: NDArray[np.int64]
    """(m, 2) from and to, ascending. Each removed arc would close a cycle by itself."""


def break_cycles(weights: ArrayLike, seed: int = 0, max_moves: int | None = None) -> Acyclic:
    """Remove arcs until no cycle is left: the least total weight if no component has more than 16 nodes.

    The arcs that lead backwards in a linear order of high value are candidates. Those that close no cycle are
    put back, the heaviest first. An arc that lies on no cycle is never removed.

    Args:
        weights: (n, n) weights of the arcs, 0 if there is none. The diagonal is ignored.
        seed, max_moves: as in `linear_order`.

    Raises:
        ValueError: a weight is negative or not finite, or the matrix is not square.

    >>> break_cycles([[0, 5, 0], [0, 0, 4], [1, 0, 0]]).removed.tolist()
    [[2, 0]]
    """
    w = _square(weights)
    if np.any(w < 0):
        i, j = np.argwhere(w < 0)[0]
        raise ValueError(f"Weights of arcs must not be negative; the one from {i} to {j} is {w[i, j]}.")
    # Backward arcs of the best order are a feedback arc set of least weight: what an order gains, the arcs
    # that it reverses lose.
    place = np.argsort(linear_order(w, seed, max_moves))
    backwards = (w > 0) & (place[:, None] > place[None, :])
    removed = backwards & ~_harmless(w, backwards)
    return Acyclic(np.where(removed, 0.0, w), np.argwhere(removed))


def _harmless(w: Matrix, backwards: Relation) -> Relation:
    """(n, n) a maximal set of the backward arcs that closes no cycle together with the others."""
    reach = reachable((w > 0) & ~backwards)
    harmless = np.zeros(w.shape, dtype=np.bool_)
    # An arc that closes a cycle now closes it with more arcs as well, so each is examined once.
    starts, ends = np.nonzero(backwards & ~reach.T)
    for arc in np.argsort(-w[starts, ends], kind="stable"):
        i, j = starts[arc], ends[arc]
        if not reach[j, i]:
            harmless[i, j] = True
            sources, targets = reach[:, i].copy(), reach[j].copy()
            sources[i] = targets[j] = True
            reach[np.ix_(sources, targets)] = True
    return harmless


# ---- components --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Problem:
    """Items to be ordered. Shapes: n items."""

    gains: Matrix
    """(n, n) c, antisymmetric: the value of i before j minus that of j before i. The largest lies in 1..2,
    unless all are zero."""
    before: Relation
    """(n, n) i must come before j."""

    @staticmethod
    def of(weights: ArrayLike, precedences: ArrayLike | None) -> "_Problem":
        w = _scaled(_square(weights))
        if precedences is None:
            return _Problem(_scaled(w - w.T), np.zeros(w.shape, dtype=np.bool_))
        before = np.array(precedences)
        if before.shape != w.shape or before.dtype != bool:
            raise ValueError(
                f"Expected precedences of bool in shape {w.shape}; found {before.dtype} in {before.shape}."
            )
        cyclic = on_a_cycle(before)
        if len(cyclic):
            names = ", ".join(map(str, cyclic[:8])) + (", ..." if len(cyclic) > 8 else "")
            raise ValueError(f"Precedences contradict each other: each of {names} must come before itself.")
        return _Problem(_scaled(w - w.T), before)

    def among(self, items: Order) -> "_Problem":
        """The problem restricted to some items."""
        block = np.ix_(items, items)
        return _Problem(self.gains[block], self.before[block])

    @property
    def tolerance(self) -> float:
        """Bound on the rounding error of a sum of gains."""
        n = len(self.gains)
        return n * n * float(np.finfo(np.float64).eps) * float(np.abs(self.gains).max(initial=0))

    def optimum(self) -> Order:
        """The best order, by the recursion over subsets; for at most `EXACT` items."""
        if len(self.gains) == 1:
            return np.zeros(1, dtype=np.int64)
        successors = (self.before * (1 << np.arange(len(self.gains)))).sum(axis=1)
        return _best_by_subsets(self.gains, successors.astype(np.int64), self.tolerance)

    def searched(self, rng: np.random.Generator, moves: int) -> Order:
        """The best order of a search with this many moves."""
        moves = min(moves, 2**62)  # what numba's integers hold
        # Infinite walls let one sum of gains hold both the value and the precedences: no move across one ever
        # gains.
        walls = np.where(self.before, np.inf, np.where(self.before.T, -np.inf, self.gains))
        # No order can do better than the larger weight of every free pair; a search that reaches this stops.
        bound = np.where(self.before, self.gains, np.where(self.before.T, 0, np.maximum(self.gains, 0))).sum()
        # Start with the items of the largest net gain. Becker (1967) sorts by the quotient instead.
        first = linear_extension(self.before, np.argsort(-self.gains.sum(axis=1), kind="stable"))
        return evolved(self.gains, walls, self.before, first, rng, moves, float(bound), self.tolerance)


def _square(weights: ArrayLike) -> Matrix:
    """(n, n) a copy in float64 with zeros on the diagonal.

    Raises:
        ValueError: the matrix is not square, or a weight is not finite.
    """
    w = np.array(weights, dtype=np.float64)
    if w.ndim != 2 or w.shape[0] != w.shape[1]:
        raise ValueError(f"Expected a square matrix of weights; found shape {w.shape}.")
    np.fill_diagonal(w, 0)
    if not np.isfinite(w).all():
        i, j = np.argwhere(~np.isfinite(w))[0]
        raise ValueError(f"Weights must be finite; the one from {i} to {j} is {w[i, j]}.")
    return w


def _scaled(values: Matrix) -> Matrix:
    """The values times a power of two that puts the largest into 1..2. This rounds nothing."""
    largest = float(np.abs(values).max(initial=0))
    return np.ldexp(values, 1 - math.frexp(largest)[1]) if largest else values


@compiled
def _best_by_subsets(gains: Matrix, successors: NDArray[np.int64], tolerance: float) -> Order:
    """best[S] = max over the last item j of S of best[S - j] + sum of gains[i, j] over i in S - j.

    `successors` holds those of each item as bits; an item is the last of S only if none of them is in S.
    """
    n = len(gains)
    best, last = np.full(1 << n, -np.inf), np.zeros(1 << n, dtype=np.int8)
    best[0] = 0.0
    for subset in range(1, 1 << n):
        for j in range(n):
            rest = subset ^ (1 << j)
            if subset >> j & 1 == 0 or subset & successors[j] != 0 or best[rest] == -np.inf:
                continue
            value = best[rest]
            for i in range(n):
                if rest >> i & 1:
                    value += gains[i, j]
            # Only a gain beyond rounding replaces an earlier item, so that equal orders are decided by the
            # lower item on every machine.
            if value > best[subset] + tolerance:
                best[subset], last[subset] = value, j
    order, subset = np.empty(n, dtype=np.int64), (1 << n) - 1
    for place in range(n - 1, -1, -1):
        order[place] = last[subset]
        subset ^= 1 << order[place]
    return order
