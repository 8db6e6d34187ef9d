"""Facility location on a k-NN graph, with a term for the worth of each pick, maximised by lazy greedy.

    F(S) = trade_off * (1/C) sum_i c_i max_{j in S} sim(i, j)  +  (1 - trade_off) * (1/B) sum_{j in S} s_j

sim(i, j) is the cosine clipped at 0 if j is among i's neighbours, 1 for j = i, and 0 otherwise. c_i is the
number of samples that row i stands for, and C is their sum. F is monotone and submodular, so greedy reaches
at least 1 - 1/e of the optimum (Nemhauser, Wolsey and Fisher 1978).

Lazy greedy (Minoux 1978) recomputes a marginal gain only if its last known value is still the highest. It
returns the picks of greedy, bit for bit. Rounding is monotone, so in floating point, too, a marginal gain
never grows from one pick to the next. Lowering the other keys near each pick as well made it slower: a
thousand scattered writes for each pick cost more than the gains they save.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradwise.numerics.kernels import compiled
from gradwise.numerics.knn import KnnGraph


@dataclass(frozen=True, eq=False)
class Facility:
    """A facility-location problem, stored by columns of sim. Shapes: N rows.

    >>> ids, sims = np.array([[1], [0], [0]], np.int32), np.float32([[0.9], [0.9], [0.5]])
    >>> graph = KnnGraph(ids, sims, np.zeros(3), k=1)
    >>> Facility.of(graph, scores=np.zeros(3), size=2, trade_off=1.0).greedy(2.0).tolist()
    [0, 2]
    """

    starts: NDArray[np.int64]
    """(N + 1,) start of each row's section in `who` and `sims`."""
    who: NDArray[np.int32]
    """Rows that have a row among their neighbours, ascending within each section."""
    sims: NDArray[np.float32]
    """Their similarities to it."""
    counts: NDArray[np.float32]
    """(N,) c_i, samples that each row stands for."""
    scale: float
    """trade_off / C, the worth of covering one sample fully."""
    worth: NDArray[np.float64]
    """(N,) (1 - trade_off) / B * s_j, the worth of a pick in itself."""

    @staticmethod
    def of(
        graph: KnnGraph, scores: ArrayLike, size: float, trade_off: float, counts: ArrayLike | None = None
    ) -> "Facility":
        """The problem for a graph.

        Args:
            graph: of N rows; its first k columns are used.
            scores: (N,) s_j, 0..1.
            size: B, the number of picks over which the scores are averaged.
            trade_off: weight of coverage, 0..1; the scores have the rest.
            counts: (N,) samples that each row stands for; the default is 1.

        Raises:
            ValueError: a score or the trade-off lies outside 0..1, or shapes differ.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != (len(graph),):
            raise ValueError(f"Expected {len(graph)} scores, one for each row; found {scores.shape}.")
        if not np.all((scores >= 0) & (scores <= 1)):
            raise ValueError("Scores must lie within 0..1.")
        if not 0 <= trade_off <= 1:
            raise ValueError(f"trade_off must lie within 0..1; found {trade_off}.")
        samples = np.ones(len(graph)) if counts is None else np.asarray(counts)
        return Facility(
            *_by_column(graph),
            counts=samples.astype(np.float32),
            scale=trade_off / float(samples.sum()),
            worth=(1 - trade_off) / max(size, 1) * scores,
        )

    def greedy(
        self,
        budget: float,
        costs: ArrayLike | None = None,
        *,
        by_cost: bool = False,
        minimum: "Minimum | None" = None,
    ) -> NDArray[np.int64]:
        """Rows in the order picked, until none fits the budget.

        Args:
            budget: total cost of the picks, at most.
            costs: (N,) positive; the default is 1.
            by_cost: pick by marginal gain per cost instead of by marginal gain.
            minimum: cost that each group's picks must have. Where costs differ, the last pick of a group may
                not fit, so that it can lack less than its dearest row costs.
        """
        minimum = minimum or Minimum.none(len(self.worth))
        costs = np.ones(len(self.worth)) if costs is None else np.asarray(costs, dtype=np.float64)
        problem = (self.starts, self.who, self.sims, self.counts, self.scale, self.worth)
        owed = minimum.least.astype(np.float64)
        return _lazy_greedy(*problem, costs, float(budget), by_cost, minimum.group, owed)

    def value(self, picks: NDArray[np.integer]) -> float:
        """F of a set of rows."""
        return self.coverage(picks) + float(self.worth[np.unique(picks)].sum())

    def coverage(self, picks: NDArray[np.integer]) -> float:
        """The first term of F."""
        return self.scale * float((self.counts * self.covered(picks).similarity).sum())

    def covered(self, picks: NDArray[np.integer]) -> "Covered":
        """The pick nearest to each row; the earlier one of equally near picks."""
        return Covered(*_covered(self.starts, self.who, self.sims, np.asarray(picks, dtype=np.int64)))


class Minimum(NamedTuple):
    """What each group's picks must cost at least; their number where all cost 1."""

    group: NDArray[np.int64]
    """(N,) number of each row's group."""
    least: NDArray[np.float64] | NDArray[np.int64]
    """(groups,) at most what all rows of a group cost; their sum is at most the budget."""

    @staticmethod
    def none(rows: int) -> "Minimum":
        return Minimum(np.zeros(rows, dtype=np.int64), np.zeros(1, dtype=np.int64))


class Covered(NamedTuple):
    """How well the picks cover each row. Shapes: (N,)."""

    by: NDArray[np.int64]
    """Place among the picks of the one that covers a row; -1 if none does."""
    similarity: NDArray[np.float64]
    """Similarity to that pick, 0..1."""


def facility_location(
    graph: KnnGraph,
    scores: ArrayLike,
    budget: float,
    trade_off: float = 0.5,
    *,
    counts: ArrayLike | None = None,
    costs: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Rows that cover the graph and have high scores, in the order picked.

    With costs, greedy by gain and greedy by gain per cost both run, and the better result is returned. It
    reaches at least 1/2 (1 - 1/e) of the optimum. B is then the budget over the mean cost.

    Args:
        graph: k-NN graph of N rows; its first k columns are used.
        scores: (N,) worth of each row, 0..1.
        budget: number of picks, or their total cost.
        trade_off: weight of coverage, 0..1; the scores have the rest.
        counts: (N,) samples that each row stands for in the coverage; the default is 1.
        costs: (N,) positive; the default is 1.

    Raises:
        ValueError: shapes differ, or a value lies outside its range.

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
    # Neither greedy alone has a bound under costs: by gain it may take one row that uses up the budget, by
    # gain per cost many cheap ones. The better of the two reaches 1/2 (1 - 1/e).
    by_gain, by_gain_per_cost = problem.greedy(budget, costs), problem.greedy(budget, costs, by_cost=True)
    return by_gain_per_cost if problem.value(by_gain_per_cost) > problem.value(by_gain) else by_gain


def _by_column(graph: KnnGraph) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Starts, rows and similarities of the graph's transpose: a pick's gain reads the rows that list it."""
    ids, sims = np.ascontiguousarray(graph.used[0]), np.ascontiguousarray(graph.used[1])
    starts = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum(np.bincount(ids.ravel(), minlength=len(ids)), out=starts[1:])
    who, near = np.empty(ids.size, dtype=np.int32), np.empty(ids.size, dtype=np.float32)
    _transpose(ids, sims, starts[:-1].copy(), who, near)
    return starts, who, near


@compiled
def _transpose(
    ids: NDArray[np.int32],
    sims: NDArray[np.float32],
    place: NDArray[np.int64],
    who: NDArray[np.int32],
    near: NDArray[np.float32],
) -> None:
    for i in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            j = ids[i, c]
            who[place[j]], near[place[j]] = i, max(np.float32(0), sims[i, c])
            place[j] += 1


@compiled
def _gain(
    j: int,
    starts: NDArray[np.int64],
    who: NDArray[np.int32],
    sims: NDArray[np.float32],
    state: NDArray[np.float32],
    scale: float,
    worth: NDArray[np.float64],
) -> float:
    """Marginal gain of row j, summed in one fixed order.

    `state` (N, 2) holds how well each row is covered beside its count, so that both come in one cache line.
    """
    # The row itself is not in its own section of the transpose; its share c_j (1 - covered) comes first.
    gain = np.float64(state[j, 1]) * (1.0 - state[j, 0])
    for place in range(starts[j], starts[j + 1]):
        i = who[place]
        if sims[place] > state[i, 0]:
            gain += np.float64(state[i, 1]) * (np.float64(sims[place]) - state[i, 0])
    return scale * gain + worth[j]


@compiled
def _lazy_greedy(
    starts: NDArray[np.int64],
    who: NDArray[np.int32],
    sims: NDArray[np.float32],
    counts: NDArray[np.float32],
    scale: float,
    worth: NDArray[np.float64],
    costs: NDArray[np.float64],
    budget: float,
    by_cost: bool,
    group: NDArray[np.int64],
    owed: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Picks in order. `owed` (groups,) is what each group still lacks of its minimum."""
    n = len(worth)
    is_picked = np.zeros(n, dtype=np.bool_)
    state = np.zeros((n, 2), dtype=np.float32)
    state[:, 1] = counts
    key = np.empty(n)
    for j in range(n):
        gain = _gain(j, starts, who, sims, state, scale, worth)
        key[j] = gain / costs[j] if by_cost else gain
    heap = np.arange(n)
    picks = np.empty(n, dtype=np.int64)
    computed_at = np.zeros(n, dtype=np.int64)
    picked, size, spent = 0, n, 0.0
    # Heapify from the last parent up, in O(n), rather than insert n rows in O(n log n).
    for top in range(n // 2 - 1, -1, -1):
        _sift(heap, key, top, n)
    while True:
        if size == 0:
            if not owed.any():
                break
            # What a group is owed and none of its rows fits any more is free for all.
            owed[:] = 0
            for j in range(n):
                if not is_picked[j]:
                    heap[size] = j
                    size += 1
            for top in range(size // 2 - 1, -1, -1):
                _sift(heap, key, top, size)
            continue
        j = heap[0]
        # What other groups are owed is reserved for them.
        reserved = owed.sum() - min(owed[group[j]], costs[j])
        fits = spent + costs[j] + reserved <= budget
        # The key is from before the last pick. By submodularity it is an upper bound, so the row goes back
        # with its present gain, and only a row whose key is up to date is picked.
        if fits and computed_at[j] < picked:
            gain = _gain(j, starts, who, sims, state, scale, worth)
            key[j] = gain / costs[j] if by_cost else gain
            computed_at[j] = picked
        else:
            if fits:
                picks[picked] = j
                picked += 1
                spent += costs[j]
                is_picked[j] = True
                owed[group[j]] = max(0.0, owed[group[j]] - costs[j])
                # A pick covers itself fully, sim(j, j) = 1, whatever the graph says of it.
                state[j, 0] = 1
                for place in range(starts[j], starts[j + 1]):
                    state[who[place], 0] = max(state[who[place], 0], sims[place])
            # Picked, or too expensive: what remains of the budget and is not reserved only shrinks, since no
            # pick pays off more than it costs.
            size -= 1
            heap[0] = heap[size]
        _sift(heap, key, 0, size)
    return picks[:picked].copy()


@compiled
def _sift(heap: NDArray[np.int64], key: NDArray[np.float64], top: int, size: int) -> None:
    """Move the row at `top` below those that come before it."""
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


@compiled
def _before(a: int, b: int, key: NDArray[np.float64]) -> bool:
    """Whether row a is picked before row b: by the higher key, then by the lower id."""
    return key[a] > key[b] or (key[a] == key[b] and a < b)


@compiled
def _covered(
    starts: NDArray[np.int64], who: NDArray[np.int32], sims: NDArray[np.float32], picks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    n = len(starts) - 1
    by, similarity = np.full(n, -1, dtype=np.int64), np.zeros(n)
    for place in range(len(picks)):
        j = picks[place]
        # A copy that is covered with similarity 1 stays with the earlier pick.
        if similarity[j] < 1.0:
            by[j], similarity[j] = place, 1.0
        for entry in range(starts[j], starts[j + 1]):
            if sims[entry] > similarity[who[entry]]:
                by[who[entry]], similarity[who[entry]] = place, sims[entry]
    return by, similarity
