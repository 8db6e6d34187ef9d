"""The k-NN graph of a pool by cosine, and its repair where some rows have moved.

A graph built here is exact: the same lists come out on every machine, from every way of cutting the work, and
from a repair (`nearest` says how). Above a size where that no longer pays, `knn_graph` can search
approximately through faiss and says how many of the true neighbours it finds.
"""

from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from gradwise.numerics.candidates import in_threads, parts
from gradwise.numerics.nearest import Tell, cosine, nearest, products, slack, unit


@dataclass(frozen=True, eq=False)
class KnnGraph:
    """Each row's nearest neighbours by cosine, itself left out.

    Shapes: N rows, K = k + spare neighbours of each (all N - 1 where there are fewer).
    """

    ids: NDArray[np.int32]
    """(N, K) best first, equal cosines by id; -1 in spare columns that a repair has left empty."""

    sims: NDArray[np.float32]
    """(N, K) cosines, -1..1."""

    bound: NDArray[np.float32]
    """(N,) no row that is missing from a list has a higher cosine than this; what makes a repair provable."""

    k: int
    """Columns that are meant to be used; the others are there for repairs."""

    recall: float = 1.0
    """Share of the true k nearest neighbours that the lists hold: 1 for an exact graph, else measured."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def used(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(N, k) ids and cosines without the spare columns."""
        return self.ids[:, : self.k], self.sims[:, : self.k]


@dataclass(frozen=True, eq=False)
class Repair:
    """A repaired graph, and what repairing took."""

    graph: KnnGraph
    recomputed: NDArray[np.int64]
    """Rows searched for anew: those that moved, and those whose lists could not be proven."""


def knn_graph(
    x: NDArray[Any],
    k: int,
    spare: int = 0,
    *,
    approximate: bool = False,
    device: str = "cpu",
    seed: int = 0,
    tell: Tell | None = None,
) -> KnnGraph:
    """The k-NN graph of the rows of `x`.

    Args:
        x: (N, h) one row per sample; lengths do not matter. A row of zeros has cosine 0 with everything.
        k: neighbours of each row; all N - 1 where there are fewer.
        spare: further neighbours, kept for `repair`.
        approximate: search through faiss, which has to be installed.
        device: where exact candidates are looked for, "cpu" or "cuda".
        seed: of the approximate search.
        tell: gets the number of rows that are done, as they are.

    Raises:
        ValueError: when a value is not finite, or k is not positive.

    >>> x = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> knn_graph(x, k=1).ids.ravel().tolist()
    [1, 0, 3, 2]
    """
    if k < 1 or spare < 0:
        raise ValueError(f"A k-NN graph needs k >= 1 and spare >= 0; found {k} and {spare}.")
    x = unit(x)
    count = min(k + spare, len(x) - 1)
    k = min(k, count)
    if not count:
        nobody = np.zeros((len(x), 0))
        return KnnGraph(nobody.astype(np.int32), nobody.astype(np.float32), _none_missing(len(x)), 0)
    if approximate:
        from gradwise.numerics.approximate import nearly_nearest

        ids, sims, recall = nearly_nearest(x, count, k, seed=seed, tell=tell)
        # The lists are taken at their word from here on, as if nothing better were missing.
        return KnnGraph(ids, sims, sims[:, -1].copy(), k, recall)
    ids, sims = nearest(x, np.arange(len(x)), count, device=device, tell=tell)
    bound = _none_missing(len(x)) if count == len(x) - 1 else sims[:, -1].copy()
    return KnnGraph(ids, sims, bound, k)


def repair(graph: KnnGraph, x: NDArray[Any], moved: NDArray[np.integer], **search: Any) -> KnnGraph:
    """The graph after some rows have moved: its first k columns are those of `knn_graph(x, k)`.

    A list keeps its unmoved members and takes in those moved rows that are near enough. It is proven where it
    lost none of its first k members, or where its k-th cosine still lies above everything that may be
    missing; the others, and the moved rows themselves, are searched for anew.

    Args:
        graph: as built from, or repaired to, the rows before.
        x: (N, h) all rows; those not in `moved` are what they were.
        moved: rows that are not.
        search: `device`, as in `knn_graph`.
    """
    return repaired(graph, x, moved, **search).graph


def repaired(graph: KnnGraph, x: NDArray[Any], moved: NDArray[np.integer], **search: Any) -> Repair:
    """As `repair`, with what it took."""
    if len(graph) != len(x):
        raise ValueError(f"The graph has {len(graph)} rows, x has {len(x)}.")
    moved = np.unique(np.asarray(moved, dtype=np.int64))
    if not moved.size or not graph.ids.shape[1]:
        return Repair(graph, moved[:0])
    if moved[0] < 0 or moved[-1] >= len(x):
        raise ValueError(f"moved names row {moved[0] if moved[0] < 0 else moved[-1]}, of {len(x)}.")
    x = unit(x)
    ids, sims, bound = _merged(graph, x, moved)
    lost = np.isin(graph.used[0], moved).any(axis=1)
    # Whatever is missing from a list ranks below its old k-th member, while all k are still there.
    proven = ~lost | (sims[:, graph.k - 1] > bound)
    proven[moved] = False
    anew = np.flatnonzero(~proven)
    count = ids.shape[1]
    ids[anew], sims[anew] = nearest(x, anew, count, **search)
    bound[anew] = sims[anew, -1] if count < len(x) - 1 else -np.inf
    return Repair(replace(graph, ids=ids, sims=sims, bound=bound), anew)


def _merged(graph: KnnGraph, x: NDArray[np.float32], moved: NDArray[np.int64]) -> tuple[Any, Any, Any]:
    """Every list without the moved rows as they were, with those as they are now that belong there; and what
    may still be missing from it at most."""
    ids, sims, bound = graph.ids.copy(), graph.sims.copy(), graph.bound.copy()
    is_moved = np.zeros(len(x), dtype=bool)
    is_moved[moved] = True
    lists, there = (x, moved, is_moved, slack(x.shape[1]), ids, sims, bound), x[moved]
    for part in parts(len(x), max(1, 2**23 // len(moved))):
        tile = products(x[part], there)
        in_threads(lambda a, b, t=tile, p=part: _merge(t, p.start, a, b, *lists), len(tile))
    return ids, sims, bound


@numba.njit(nogil=True, cache=True)
def _merge(
    tile: Any,
    first: int,
    start: int,
    stop: int,
    x: Any,
    moved: Any,
    is_moved: Any,
    allowed: float,
    ids: Any,
    sims: Any,
    bound: Any,
) -> None:
    """Lists of some rows, with a tile of their products with the moved rows: unmoved members stay, those of
    the moved that could rank above the last of them come in."""
    count = ids.shape[1]
    for i in range(start, stop):
        row = first + i
        if is_moved[row]:
            continue
        stay = [c for c in range(count) if ids[row, c] >= 0 and not is_moved[ids[row, c]]]
        # Below `bound` rows are missing anyway; taking more of them in would prove nothing.
        least = max(bound[row], sims[row, count - 1]) if len(stay) == count else bound[row]
        near = [m for m in range(len(moved)) if tile[i, m] >= least - allowed]
        for m in range(len(moved)):
            if tile[i, m] < least - allowed and tile[i, m] + allowed > bound[row]:
                bound[row] = tile[i, m] + allowed
        if len(stay) == count and not near:
            continue
        candidates = np.empty(len(stay) + len(near), dtype=np.int32)
        cosines = np.empty(len(candidates), dtype=np.float32)
        for place, c in enumerate(stay):
            candidates[place], cosines[place] = ids[row, c], sims[row, c]
        for place, m in enumerate(near):
            candidates[len(stay) + place] = moved[m]
            cosines[len(stay) + place] = cosine(x[row], x[moved[m]])
        by_id = np.argsort(candidates, kind="mergesort")
        order = by_id[np.argsort(-cosines[by_id], kind="mergesort")]
        for place in range(count):
            known = place < len(order)
            ids[row, place] = candidates[order[place]] if known else -1
            sims[row, place] = cosines[order[place]] if known else np.float32(-np.inf)
        if len(order) > count:
            bound[row] = max(bound[row], cosines[order[count]])


def _none_missing(rows: int) -> NDArray[np.float32]:
    return np.full(rows, -np.inf, dtype=np.float32)
