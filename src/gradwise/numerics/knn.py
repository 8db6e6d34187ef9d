"""The k-NN graph of a pool by cosine, and its repair after some rows have moved.

An exact graph holds the same lists on every machine, however the work was cut, and after any repair
(`nearest` says how). Beyond a size where that takes too long, `knn_graph` searches approximately with faiss
and states the measured recall.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradwise.numerics.kernels import compiled, in_threads, parts
from gradwise.numerics.nearest import OnProgress, UnitRows, cosine, nearest, products, slack, unit


@dataclass(frozen=True, eq=False)
class KnnGraph:
    """The nearest neighbours of each row by cosine, the row itself excluded.

    Shapes: N rows, K = min(k + spare, N - 1) neighbours of each.
    """

    ids: NDArray[np.int32]
    """(N, K) highest cosine first, equal cosines by id; -1 in spare columns that a repair left empty."""

    sims: NDArray[np.float32]
    """(N, K) cosines, -1..1."""

    bound: NDArray[np.float32]
    """(N,) upper bound on the cosine of every row missing from a list. It makes a repair provable."""

    k: int
    """Columns in use; the spare ones behind them serve repairs."""

    recall: float = 1.0
    """Share of the true k nearest neighbours in the lists: 1 for an exact graph, otherwise measured."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def used(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(N, k) ids and cosines, without the spare columns."""
        return self.ids[:, : self.k], self.sims[:, : self.k]


@dataclass(frozen=True, eq=False)
class Repair:
    """A repaired graph, and what the repair cost."""

    graph: KnnGraph
    recomputed: NDArray[np.int64]
    """Rows that were searched for again: the moved ones, and those whose lists could not be proven."""


def knn_graph(
    x: ArrayLike,
    k: int,
    spare: int = 0,
    *,
    approximate: bool = False,
    device: str = "cpu",
    seed: int = 0,
    progress: OnProgress | None = None,
) -> KnnGraph:
    """The k-NN graph of the rows of `x`.

    Args:
        x: (N, h) a row for each sample; its length does not matter. A row of zeros has cosine 0 with all.
        k: neighbours of each row; N - 1 if there are fewer.
        spare: further neighbours, which `repair` uses.
        approximate: search with faiss, which must be installed.
        device: where an exact search computes its products, "cpu" or "cuda".
        seed: of the approximate search.
        progress: called with the number of rows that were finished since the last call.

    Raises:
        ValueError: a value is not finite, k is not positive, or spare is negative.
        ImportError: an approximate search without faiss.

    >>> x = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> knn_graph(x, k=1).ids.ravel().tolist()
    [1, 0, 3, 2]
    """
    if k < 1 or spare < 0:
        raise ValueError(f"A k-NN graph needs k >= 1 and spare >= 0; found {k} and {spare}.")
    rows = unit(x)
    # A pool with fewer rows than neighbours gets all of them; callers read `graph.k` for the number in use.
    count = min(k + spare, len(rows) - 1)
    k = min(k, count)
    if count <= 0:
        empty = np.zeros((len(rows), 0), dtype=np.int32)
        return KnnGraph(empty, empty.astype(np.float32), _none_missing(len(rows)), 0)
    if approximate:
        from gradwise.numerics.approximate import nearly_nearest

        ids, sims, recall = nearly_nearest(rows, count, k, seed=seed, progress=progress)
        # A bound that holds only if the lists are right: repairs trust an approximate graph.
        return KnnGraph(ids, sims, sims[:, -1].copy(), k, recall)
    ids, sims = nearest(rows, np.arange(len(rows)), count, device=device, progress=progress)
    # A list of all other rows misses none, so that nothing can ever rank above its last member unseen.
    bound = _none_missing(len(rows)) if count == len(rows) - 1 else sims[:, -1].copy()
    return KnnGraph(ids, sims, bound, k)


def repair(
    graph: KnnGraph, x: NDArray[np.floating], moved: NDArray[np.integer], *, device: str = "cpu"
) -> KnnGraph:
    """The graph after some rows have moved: its first k columns equal those of `knn_graph(x, k)`.

    A list keeps its members that stayed and gains the moved rows that come near enough. It is proven if none
    of its first k members moved, or if its k-th cosine still exceeds the bound on what is missing. All
    other lists, and those of the moved rows, are searched for again. On 20,000 clustered rows, 5 % of them
    moved, only the moved rows were.

    Args:
        graph: of the rows before they moved.
        x: (N, h) all rows; only those in `moved` differ from before.
        moved: ids of the rows that moved.
        device: where products are computed, as in `knn_graph`.

    Raises:
        ValueError: the graph has another number of rows, or `moved` names a row that does not exist.
    """
    return repaired(graph, x, moved, device=device).graph


def repaired(
    graph: KnnGraph, x: NDArray[np.floating], moved: NDArray[np.integer], *, device: str = "cpu"
) -> Repair:
    """Like `repair`, and says which rows were searched for again."""
    if len(graph) != len(x):
        raise ValueError(f"The graph has {len(graph)} rows, x has {len(x)}.")
    moved = np.unique(np.asarray(moved, dtype=np.int64))
    if not moved.size or not graph.ids.shape[1]:
        return Repair(graph, moved[:0])
    if moved[0] < 0 or moved[-1] >= len(x):
        raise ValueError(f"moved names row {moved[0] if moved[0] < 0 else moved[-1]}, of {len(x)}.")
    rows = unit(x)
    ids, sims, bound = _merged(graph, rows, moved)
    count = ids.shape[1]
    # A list with all of its first k members is exact whatever the bound: missing rows ranked below the k-th.
    lost = np.isin(graph.used[0], moved).any(axis=1)
    proven = ~lost | (sims[:, graph.k - 1] > bound)
    # A row that moved has new cosines with all rows, also with those that its old list never held.
    proven[moved] = False
    unproven = np.flatnonzero(~proven)
    ids[unproven], sims[unproven] = nearest(rows, unproven, count, device=device)
    # A fresh search proves its own last member as the bound, exactly as `knn_graph` would.
    bound[unproven] = sims[unproven, -1] if count < len(rows) - 1 else -np.inf
    return Repair(replace(graph, ids=ids, sims=sims, bound=bound), unproven)


def _merged(
    graph: KnnGraph, x: UnitRows, moved: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Ids, cosines and bounds without the moved rows at their old positions and with them at their new."""
    ids, sims, bound = graph.ids.copy(), graph.sims.copy(), graph.bound.copy()
    is_moved = np.zeros(len(x), dtype=np.bool_)
    is_moved[moved] = True
    lists, moved_rows = (x, moved, is_moved, slack(x.shape[1]), ids, sims, bound), x[moved]
    # At most 2^23 products, 32 MiB in float32, are held at a time, however many rows moved.
    for part in parts(len(x), max(1, 2**23 // len(moved))):
        tile = products(x[part], moved_rows)
        in_threads(lambda a, b, t=tile, p=part: _merge(t, p.start, a, b, *lists), len(tile))
    return ids, sims, bound


@compiled
def _merge(
    tile: NDArray[np.float32],
    first: int,
    start: int,
    stop: int,
    x: UnitRows,
    moved: NDArray[np.int64],
    is_moved: NDArray[np.bool_],
    allowed: float,
    ids: NDArray[np.int32],
    sims: NDArray[np.float32],
    bound: NDArray[np.float32],
) -> None:
    """Merge the moved rows into the lists of some rows; the tile holds the products of both."""
    count = ids.shape[1]
    for i in range(start, stop):
        row = first + i
        if is_moved[row]:
            continue
        stay = [c for c in range(count) if ids[row, c] >= 0 and not is_moved[ids[row, c]]]
        # Rows below the bound are missing already, so a moved row below it proves nothing.
        least = max(bound[row], sims[row, count - 1]) if len(stay) == count else bound[row]
        near = [m for m in range(len(moved)) if tile[i, m] >= least - allowed]
        # A moved row that is turned away is missing from now on. Without this a later repair, after the list
        # has lost members, would call it proven (a test of five repairs in a row fails).
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
        # Two stable sorts, by id and then by cosine, give equal cosines the order of their ids, as a search
        # does.
        by_id = np.argsort(candidates, kind="mergesort")
        order = by_id[np.argsort(-cosines[by_id], kind="mergesort")]
        for place in range(count):
            filled = place < len(order)
            ids[row, place] = candidates[order[place]] if filled else -1
            sims[row, place] = cosines[order[place]] if filled else np.float32(-np.inf)
        if len(order) > count:
            # The first row that no longer fits is missing from now on, and it is the highest of those that
            # are.
            bound[row] = max(bound[row], cosines[order[count]])


def _none_missing(rows: int) -> NDArray[np.float32]:
    return np.full(rows, -np.inf, dtype=np.float32)
