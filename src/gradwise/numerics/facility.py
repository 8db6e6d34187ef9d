"""Facility location on a k-NN graph with a term for each pick's own worth, maximised by lazy greedy.

    F(S) = trade_off * (1/C) sum_i c_i max_{j in S} sim(i, j)  +  (1 - trade_off) * (1/B) sum_{j in S} s_j

sim(i, j) is the cosine where j is among i's neighbours, clipped at 0; sim(i, i) = 1; otherwise 0. c_i counts
how many samples row i stands for, C is their sum. F is monotone and submodular, so that greedy reaches at
least 1 - 1/e of the best (Nemhauser, Wolsey and Fisher 1978). Lazy greedy (Minoux 1978) looks again only at
rows whose last known gain is still the highest. It picks what greedy picks, bit for bit: floating-point
rounding is monotone, so that a gain never grows from one pick to the next in the computer's arithmetic
either.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from gradwise.numerics.knn import KnnGraph


@dataclass(frozen=True, eq=False)
class Facility:
    """What is to be maximised. Shapes: N rows.

    >>> ids, sims = np.array([[1], [0], [0]], np.int32), np.float32([[0.9], [0.9], [0.5]])
    >>> graph = KnnGraph(ids, sims, np.zeros(3), k=1)
    >>> Facility.of(graph, scores=np.zeros(3), size=2, trade_off=1.0).greedy(2.0).tolist()
    [0, 2]
    """

    starts: NDArray[np.int64]
    """(N + 1,) where each row's entries in `who` begin."""
    who: NDArray[np.int32]
    """The rows that have a row among their neighbours, ascending."""
    sims: NDArray[np.float32]
    """Their similarity to it."""
    counts: NDArray[np.float32]
    """(N,) c_i, how many samples each row stands for."""
    scale: float
    """trade_off / C: what covering one sample fully is worth."""
    worth: NDArray[np.float64]
    """(N,) (1 - trade_off) / B * s_j: what picking a row is worth in itself."""

    @staticmethod
    def of(
        graph: KnnGraph,
        scores: NDArray[np.floating],
        size: float,
        trade_off: float,
        counts: NDArray[Any] | None = None,
    ) -> "Facility":
        """Args:
        graph: of the rows; its first k columns count.
        scores: (N,) s_j, in 0..1.
        size: B, how many picks the worth is a mean of.
        trade_off: weight of coverage against worth, 0..1.
        counts: (N,) how many samples each row stands for; 1 unless given.

        Raises:
            ValueError: when a score is not within 0..1, or shapes differ.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != (len(graph),):
            raise ValueError(f"Expected {len(graph)} scores, one for each row; found {scores.shape}.")
        if not np.all((scores >= 0) & (scores <= 1)):
            raise ValueError("Scores must lie within 0..1.")
        if not 0 <= trade_off <= 1:
            raise ValueError(f"trade_off must lie within 0..1; found {trade_off}.")
        counts = np.ones(len(graph)) if counts is None else np.asarray(counts)
        ids, sims = graph.used
        return Facility(
            *_transposed(np.ascontiguousarray(ids), np.ascontiguousarray(sims)),
            counts=counts.astype(np.float32),
            scale=trade_off / float(counts.sum()),
            worth=(1 - trade_off) / max(size, 1) * scores,
        )

    def greedy(
        self,
        budget: float,
        costs: NDArray[np.floating] | None = None,
        *,
        by_cost: bool = False,
        minimum: "Minimum | None" = None,
    ) -> NDArray[np.int64]:
        """Rows in the order picked, until nothing more fits.

        Args:
            budget: what all picks may cost together.
            costs: (N,) of each row, positive; 1 unless given.
            by_cost: pick by gain per cost instead of by gain.
            minimum: how many of each group have to be among the picks; without costs only.
        """
        minimum = minimum or Minimum.none(len(self.worth))
        if costs is not None and minimum.least.any():
            raise ValueError("A minimum for each group and a budget of costs exclude each other.")
        costs = np.ones(len(self.worth)) if costs is None else np.asarray(costs, dtype=np.float64)
        problem = (self.starts, self.who, self.sims, self.counts, self.scale, self.worth)
        return _lazy_greedy(*problem, costs, float(budget), by_cost, minimum.group, minimum.least.copy())

    def value(self, picks: NDArray[np.integer]) -> float:
        """F of a set of rows."""
        return self.coverage(picks) + float(self.worth[np.unique(picks)].sum())

    def coverage(self, picks: NDArray[np.integer]) -> float:
        """The first term of F alone."""
        return self.scale * float((self.counts * self.covered(picks).similarity).sum())

    def covered(self, picks: NDArray[np.integer]) -> "Covered":
        """Which pick each row is nearest to; the earlier pick where several are as near."""
        return Covered(*_covered(self.starts, self.who, self.sims, np.asarray(picks, dtype=np.int64)))


class Minimum(NamedTuple):
    """How many rows of each group have to be picked."""

    group: NDArray[np.int64]
    """(N,) number of the group each row belongs to."""
    least: NDArray[np.int64]
    """(groups,) at most as many as the group has rows; together at most the budget."""

    @staticmethod
    def none(rows: int) -> "Minimum":
        return Minimum(np.zeros(rows, dtype=np.int64), np.zeros(1, dtype=np.int64))


class Covered(NamedTuple):
    """(N,) each."""

    by: NDArray[np.int64]
    """Place in the picks of the one that covers a row; -1 where none does."""
    similarity: NDArray[np.float64]
    """To it, 0..1."""


def facility_location(
    graph: KnnGraph,
    scores: NDArray[np.floating],
    budget: float,
    trade_off: float = 0.5,
    *,
    counts: NDArray[Any] | None = None,
    costs: NDArray[np.floating] | None = None,
) -> NDArray[np.int64]:
    """Rows that together cover the graph and are worth having, in the order picked.

    Args:
        graph: k-NN graph of N rows; its first k columns count.
        scores: (N,) worth of each row, 0..1.
        budget: how many rows, or what they may cost together.
        trade_off: weight of coverage, 0..1; the rest is that of worth.
        counts: (N,) samples that each row stands for, in the coverage only; 1 unless given.
        costs: (N,) positive; every row costs 1 unless given. With costs the better of two greedy picks is
            taken, by gain and by gain per cost, which reaches at least 1/2 (1 - 1/e) of the best, and B of
            the worth becomes a constant: the budget over the mean cost.

    Raises:
        ValueError: when shapes differ, or values lie outside their ranges.

    >>> ids, sims = np.array([[1], [0], [0]], np.int32), np.float32([[0.9], [0.9], [0.5]])
    >>> graph = KnnGraph(ids, sims, np.zeros(3), k=1)
    >>> facility_location(graph, np.array([0.0, 0.0, 0.0]), budget=1, trade_off=1.0).tolist()
    [0]
    """
    if budget < 0:
        raise ValueError(f"The budget must not be negative; found {budget}.")
    if costs is None:
        return Facility.of(graph, scores, budget, trade_off, counts).greedy(budget)
    costs = np.asarray(costs, dtype=np.float64)
    if costs.shape != (len(graph),) or not np.all(costs > 0):
        raise ValueError(f"Expected {len(graph)} positive costs, one for each row.")
    problem = Facility.of(graph, scores, budget / costs.mean(), trade_off, counts)
    plain, dense = problem.greedy(budget, costs), problem.greedy(budget, costs, by_cost=True)
    return dense if problem.value(dense) > problem.value(plain) else plain


def _transposed(ids: NDArray[np.int32], sims: NDArray[np.float32]) -> tuple[Any, Any, Any]:
    """For each row those that have it in their list, ascending, and their similarity."""
    starts = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum(np.bincount(ids.ravel(), minlength=len(ids)), out=starts[1:])
    who, near = np.empty(ids.size, dtype=np.int32), np.empty(ids.size, dtype=np.float32)
    _fill(ids, sims, starts[:-1].copy(), who, near)
    return starts, who, near


@numba.njit(nogil=True, cache=True)
def _fill(ids: Any, sims: Any, place: Any, who: Any, near: Any) -> None:
    for i in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            j = ids[i, c]
            who[place[j]], near[place[j]] = i, max(np.float32(0), sims[i, c])
            place[j] += 1


@numba.njit(nogil=True, cache=True)
def _gain(j: int, starts: Any, who: Any, sims: Any, state: Any, scale: float, worth: Any) -> float:
    """What picking row j adds to F, summed in one fixed order; `state` holds how well each row is covered,
    and its count, side by side for the sake of the cache."""
    gain = np.float64(state[j, 1]) * (1.0 - state[j, 0])
    for place in range(starts[j], starts[j + 1]):
        i = who[place]
        if sims[place] > state[i, 0]:
            gain += np.float64(state[i, 1]) * (np.float64(sims[place]) - state[i, 0])
    return scale * gain + worth[j]


@numba.njit(nogil=True, cache=True)
def _lazy_greedy(
    starts: Any,
    who: Any,
    sims: Any,
    counts: Any,
    scale: float,
    worth: Any,
    costs: Any,
    budget: float,
    by_cost: bool,
    group: Any,
    owed: Any,
) -> Any:
    n = len(worth)
    state = np.zeros((n, 2), dtype=np.float32)
    state[:, 1] = counts
    key = np.empty(n)
    for j in range(n):
        gain = _gain(j, starts, who, sims, state, scale, worth)
        key[j] = gain / costs[j] if by_cost else gain
    heap = np.arange(n)
    for top in range(n // 2 - 1, -1, -1):
        _sift(heap, key, top, n)
    picks = np.empty(n, dtype=np.int64)
    known_at = np.zeros(n, dtype=np.int64)
    picked, size, spent = 0, n, 0.0
    while size:
        j = heap[0]
        # Places that are owed to other groups are not for this row.
        promised = owed.sum() - (1 if owed[group[j]] > 0 else 0)
        fits = spent + costs[j] + promised <= budget
        if fits and known_at[j] < picked:
            gain = _gain(j, starts, who, sims, state, scale, worth)
            key[j] = gain / costs[j] if by_cost else gain
            known_at[j] = picked
        else:
            if fits:
                picks[picked] = j
                picked += 1
                spent += costs[j]
                owed[group[j]] = max(0, owed[group[j]] - 1)
                state[j, 0] = 1
                for place in range(starts[j], starts[j + 1]):
                    state[who[place], 0] = max(state[who[place], 0], sims[place])
            # What does not fit now never will.
            size -= 1
            heap[0] = heap[size]
        _sift(heap, key, 0, size)
    return picks[:picked].copy()


@numba.njit(nogil=True, cache=True)
def _sift(heap: Any, key: Any, top: int, size: int) -> None:
    """Let the row at `top` sink below those with a higher key, or the same key and a lower number."""
    if top >= size:
        return
    sinking = heap[top]
    while True:
        child = 2 * top + 1
        if child >= size:
            break
        if child + 1 < size and _before(heap[child + 1], heap[child], key):
            child += 1
        if not _before(heap[child], sinking, key):
            break
        heap[top] = heap[child]
        top = child
    heap[top] = sinking


@numba.njit(nogil=True, cache=True)
def _before(a: int, b: int, key: Any) -> bool:
    return key[a] > key[b] or (key[a] == key[b] and a < b)


@numba.njit(nogil=True, cache=True)
def _covered(starts: Any, who: Any, sims: Any, picks: Any) -> Any:
    n = len(starts) - 1
    by, similarity = np.full(n, -1, dtype=np.int64), np.zeros(n)
    for order in range(len(picks)):
        j = picks[order]
        if similarity[j] < 1.0:
            by[j], similarity[j] = order, 1.0
        for place in range(starts[j], starts[j + 1]):
            if sims[place] > similarity[who[place]]:
                by[who[place]], similarity[who[place]] = order, sims[place]
    return by, similarity
