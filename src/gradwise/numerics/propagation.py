"""Propagation of refreshed values over a k-NN graph, and which rows are worth refreshing.

One sweep moves a row that was not refreshed towards its neighbours (GRACE, arXiv 2604.11810, Eq. 21):

    z_i <- (1 - beta) z_i + beta sum_j alpha_ij z_j,    alpha_ij = sim(i, j) / sum_j sim(i, j)

which minimises 1/2 (z - z_i)^2 + 1/2 sum_j w_j (z - z_j)^2 for weights w with sum w = beta / (1 - beta); the
authors' form is beta = 1/2. Refreshed rows (anchors) are clamped.
"""

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.stats import rankdata

from gradwise.numerics.candidates import parts
from gradwise.numerics.knn import KnnGraph

Values = NDArray[np.floating]
"""(N,) or (N, h)."""


def propagate(values: Values, graph: KnnGraph, anchors: NDArray[np.integer], beta: float = 0.5) -> Values:
    """Values after one sweep, those of the anchors as they are.

    Args:
        values: (N,) or (N, h); at the anchors what was just measured, elsewhere what was believed before.
        graph: of the N rows; its first k columns count, by similarity clipped at 0.
        anchors: rows that were measured.
        beta: how far the others move towards their neighbours, 0..1; 0 leaves them.

    Raises:
        ValueError: when shapes differ or beta lies outside its range.

    >>> graph = KnnGraph(np.array([[1], [0]], np.int32), np.float32([[1.0], [1.0]]), np.zeros(2), 1)
    >>> propagate(np.array([4.0, 0.0]), graph, np.array([0]), beta=0.5).tolist()
    [4.0, 2.0]
    """
    moved = sweep(values, values, graph, beta)
    moved[anchors] = values[anchors]
    return moved


def propagate_change(
    values: Values, graph: KnnGraph, anchors: NDArray[np.integer], measured: Values, beta: float = 0.5
) -> Values:
    """Values after one sweep of what changed: training moves similar samples alike, even where their values
    differ.

    Every row follows the mean change of all anchors, and its own neighbours among the anchors as far as it
    has any: z_i <- z_i + d + beta sum_j alpha_ij (d_j - d), over anchors j near i, alpha adding up to 1.

    Args:
        values: (N,) or (N, h) what was believed before, the anchors included.
        graph: as in `propagate`.
        anchors: (m,) rows that were measured.
        measured: (m,) or (m, h) what was found.
        beta: how far a row follows its neighbours rather than the mean; with 0 nothing changes but anchors.

    >>> graph = KnnGraph(np.array([[1], [0]], np.int32), np.float32([[1.0], [1.0]]), np.zeros(2), 1)
    >>> propagate_change(np.array([4.0, 1.0]), graph, np.array([0]), np.array([3.0]), beta=0.5).tolist()
    [3.0, 0.0]
    """
    moved = sweep_change(values, graph, anchors, measured, beta)
    moved[anchors] = measured
    return moved


def sweep(old: Values, values: Values, graph: KnnGraph, beta: float) -> Values:
    """(1 - beta) old_i + beta sum_j alpha_ij values_j for every row, anchor or not.

    A row is not its own neighbour, so at an anchor this is what the others alone make of it: how far it lies
    from what was measured says how good the propagation is.
    """
    _check(values, graph, beta)
    moved = old.copy()
    if beta:
        for rows, mean in _means(values, graph):
            moved[rows] = (1 - beta) * old[rows] + beta * mean
    return moved


def sweep_change(
    values: Values, graph: KnnGraph, anchors: NDArray[np.integer], measured: Values, beta: float
) -> Values:
    """What `propagate_change` makes of every row, anchors among them as if they had not been measured (but
    for their part in the mean)."""
    _check(values, graph, beta)
    anchors = np.asarray(anchors, dtype=np.int64)
    moved = values.copy()
    if not beta or not anchors.size:
        return moved
    change = measured - values[anchors]
    common = change.mean(axis=0)
    change = change - common
    moved += common
    for rows, mean in _means(change, graph, among=anchors):
        moved[rows] += beta * mean
    return moved


def neighbour_mean(values: Values, graph: KnnGraph) -> Values:
    """sum_j alpha_ij z_j for every row; the row's own value where it has no neighbour of positive
    similarity."""
    mean = values.copy()
    for rows, found in _means(values, graph):
        mean[rows] = found
    return mean


def priority(
    staleness: NDArray[Any], values: NDArray[np.floating], graph: KnnGraph, share: float
) -> NDArray[np.float64]:
    """(N,) how much each row deserves to be measured again, 0..1.

    share * staleness + (1 - share) * |s_i - sum_j alpha_ij s_j|, both as ranks (GRACE's priority).

    Args:
        staleness: (N,) steps since each row was measured.
        values: (N,) importance as it is believed to be.
        graph: of the rows.
        share: weight of staleness, 0..1.
    """
    apart = np.abs(values - neighbour_mean(values, graph))
    return share * _ranks(staleness) + (1 - share) * _ranks(apart)


def spread(
    graph: KnnGraph,
    priorities: NDArray[np.floating],
    count: int,
    chosen: NDArray[np.integer] | None = None,
) -> NDArray[np.int64]:
    """`count` rows, ascending: those `chosen` already, and others of high priority. Neighbours of a row that
    is chosen wait until there are no others.

    >>> graph = KnnGraph(np.array([[1], [0], [1]], np.int32), np.float32([[1.0]] * 3), np.zeros(3), 1)
    >>> spread(graph, np.array([0.9, 0.8, 0.1]), count=2).tolist()
    [0, 2]
    """
    if not 0 <= count <= len(graph):
        raise ValueError(f"Of {len(graph)} rows, {count} cannot be chosen.")
    order = np.argsort(-priorities, kind="stable")
    taken = np.zeros(len(graph), dtype=np.bool_)
    taken[[] if chosen is None else chosen] = True
    return np.flatnonzero(_spread(order, np.ascontiguousarray(graph.used[0]), count, taken))


@numba.njit(nogil=True, cache=True)
def _spread(order: Any, ids: Any, count: int, chosen: Any) -> Any:
    taken = chosen.sum()
    blocked = chosen.copy()
    for row in np.flatnonzero(chosen):
        blocked[ids[row]] = True
    while taken < count:
        # A round takes a row and passes over its neighbours; those wait for the next round.
        for row in order:
            if taken < count and not blocked[row]:
                chosen[row] = blocked[row] = True
                blocked[ids[row]] = True
                taken += 1
        blocked = chosen.copy()
    return chosen


def _means(
    values: Values, graph: KnnGraph, among: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.int64], Values]]:
    """sum_j alpha_ij z_j over the neighbours that count, for the rows that have such, a stretch of rows at a
    time: of a million embeddings the means alone would take gigabytes.

    With `among`, (m,) rows, only those count, and `values` has a row for each of them.
    """
    place = None
    if among is not None:
        place = np.full(len(graph), -1)
        place[among] = np.arange(len(among))
    for part in parts(len(graph), 2**15):
        ids, sims = graph.used[0][part], graph.used[1][part]
        weights = np.maximum(sims, 0).astype(np.float64)
        if place is not None:
            ids = place[ids]
            weights *= ids >= 0
            ids = np.maximum(ids, 0)
        total = weights.sum(axis=1)
        near = np.flatnonzero(total > 0)
        weights = weights[near] / total[near, None]
        starts = np.arange(len(near) + 1) * ids.shape[1]
        shape = (len(near), len(values))
        columns = np.asarray(ids)[near].ravel()
        averaging = scipy.sparse.csr_matrix((weights.ravel(), columns, starts), shape)
        yield part.start + near, averaging @ values


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean ranks in 0..1; the same for all where all are equal."""
    return (rankdata(values) - 1) / max(1, len(values) - 1)


def _check(values: Values, graph: KnnGraph, beta: float) -> None:
    if len(values) != len(graph):
        raise ValueError(f"The graph has {len(graph)} rows; found {len(values)} values.")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie within 0..1; found {beta}.")
