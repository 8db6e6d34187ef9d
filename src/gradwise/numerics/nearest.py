"""Exact nearest neighbours by cosine: matrix products propose candidates, sums in a fixed order decide.

The last bits of a matrix product depend on the machine and on how it was cut into blocks. A list that is
sorted by them differs from one machine to the next. So products only propose candidates. The cosine that
decides is summed in float64 in one fixed order and rounded to float32; equal cosines are sorted by id. The
distance between the two is bounded (`slack`), which proves that no row left out ranks higher.

Shapes: N unit rows of h numbers; M queries, which are rows themselves; C candidates for each query.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradwise.numerics.kernels import compiled, in_threads, parts

UnitRows = NDArray[np.float32]
"""(N, h) rows of length 1 or 0."""

OnProgress = Callable[[int], object]
"""Called with the number of queries that were answered since the last call."""

TILE = 2048
"""Rows and columns of one matrix product: 16 MiB in float32."""


class Neighbours(NamedTuple):
    """Lists of M queries, highest cosine first, equal cosines by id."""

    ids: NDArray[np.int32]
    sims: NDArray[np.float32]


class Candidates(NamedTuple):
    """What products propose for M queries."""

    ids: NDArray[np.int32]
    """(M, C) in no order; -1 where there are fewer than C."""
    lowest: NDArray[np.float32]
    """(M,) no row outside the candidates has a higher product with the query."""


def slack(h: int) -> float:
    """Largest distance between a float32 product of two unit rows and the cosine that decides.

    Rounding h products and their sum errs by at most h 2^-24 sum_i |x_i y_i| to first order, in whatever
    order they are added, and the sum is at most 1. The factor 2 covers the higher orders.
    """
    return 2 * (h + 8) * 2.0**-24


def unit(x: ArrayLike) -> UnitRows:
    """(N, h) the rows of `x` scaled to length 1. Rows of zeros stay zero and have cosine 0 with every row.

    Raises:
        ValueError: `x` is not a matrix, or a value is not finite.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim != 2:
        raise ValueError(f"Expected a matrix with a row for each sample, (N, h); found shape {x.shape}.")
    scaled, infinite = np.zeros_like(x), np.zeros(len(x), dtype=np.bool_)
    in_threads(lambda start, stop: _scale(x, scaled, infinite, start, stop), len(x))
    if infinite.any():
        raise ValueError(f"Row {np.flatnonzero(infinite)[0]} holds a value that is not finite.")
    return scaled


def nearest(
    x: UnitRows,
    queries: NDArray[np.int64],
    count: int,
    *,
    device: str = "cpu",
    progress: OnProgress | None = None,
) -> Neighbours:
    """The exact `count` nearest rows of each query, the query itself excluded.

    Args:
        x: (N, h).
        queries: (M,) ids of rows, ascending.
        count: neighbours of each query, at most N - 1.
        device: where the matrix products run.
        progress: called as queries are answered.
    """
    # Twice the neighbours: then only ties and near-ties reach the last candidate and need all products again.
    enough = min(len(x) - 1, 2 * count + 16)
    if device != "cpu":
        candidates = _on_device(x, queries, enough, device, progress)
    elif len(queries) == len(x):
        candidates = _of_all_rows(x, enough, progress)
    else:
        candidates = _of_some_rows(x, queries, enough, progress)
    ranking = ranked(x, queries, candidates.ids)
    best = Neighbours(ranking.ids[:, :count].copy(), ranking.sims[:, :count].copy())
    # A row outside the candidates has a cosine of at most lowest + slack.
    unproven = best.sims[:, -1] <= candidates.lowest + slack(x.shape[1])
    if enough < len(x) - 1 and unproven.any():
        _rank_all_near_the_last(x, queries, np.flatnonzero(unproven), best)
    return best


def ranked(x: UnitRows, queries: NDArray[np.int64], candidates: NDArray[np.int32]) -> Neighbours:
    """(M, C) candidates sorted by the cosine that decides, highest first; empty places (-1) come last."""
    result = Neighbours(np.empty_like(candidates), np.empty(candidates.shape, dtype=np.float32))
    in_threads(lambda start, stop: _rank(x, queries, candidates, *result, start, stop), len(queries))
    return result


def products(a: UnitRows, b: UnitRows) -> NDArray[np.float32]:
    """(len(a), len(b)) fast inner products, each within `slack` of the cosine that decides."""
    import torch

    from gradwise.precision import in_full_products

    with in_full_products():  # `slack` does not hold for bfloat16, which training may have allowed
        return (torch.as_tensor(a) @ torch.as_tensor(b).T).numpy()


def _rank_all_near_the_last(
    x: UnitRows, queries: NDArray[np.int64], unproven: NDArray[np.int64], best: Neighbours
) -> None:
    """Rank all rows whose product comes within `slack` of the last neighbour, for some queries."""
    for part in parts(len(unproven), max(1, 2**24 // len(x))):
        places = unproven[part]
        tile = products(x[queries[places]], x)
        for place, row in zip(places, tile, strict=True):
            near = np.flatnonzero(row >= best.sims[place, -1] - slack(x.shape[1])).astype(np.int32)
            ranking = ranked(x, queries[place : place + 1], near[near != queries[place]][None])
            for table, values in zip(best, ranking, strict=True):
                table[place] = values[0, : table.shape[1]]


# ---- candidates --------------------------------------------------------------------------------------------


class Heaps:
    """The C highest products of each of M queries, fed one tile of products at a time.

    A heap keeps its lowest product on top, so one comparison rejects most products of a tile.
    """

    def __init__(self, queries: int, count: int) -> None:
        self.ids = np.full((queries, count), -1, dtype=np.int32)
        """(M, C) columns of the products; -1 where fewer than C were offered."""
        self.products = np.full((queries, count), -np.inf, dtype=np.float32)
        """(M, C) a heap in each row, the lowest product first."""
        self.lowest = np.full(queries, -np.inf, dtype=np.float32)
        """(M,) the lowest product in each heap."""

    def offer(
        self, tile: NDArray[np.float32], first_row: int, itself: NDArray[np.int64], first_column: int
    ) -> None:
        """Add the products of some queries with some rows.

        Args:
            tile: (m, n) products.
            first_row: place among the M queries of the tile's first row.
            itself: (m,) the column that is the query itself and is left out.
            first_column: id of the row that the tile's first column stands for.
        """
        heaps = (self.ids, self.products, self.lowest)
        in_threads(lambda a, b: _offer(tile, a, b, first_row, itself, first_column, *heaps), len(tile))

    @property
    def candidates(self) -> Candidates:
        return Candidates(self.ids, self.lowest)


def _of_all_rows(x: UnitRows, count: int, progress: OnProgress | None) -> Candidates:
    """Candidates of every row. Products are symmetric, so only half of the tiles are computed."""
    heaps, queries = Heaps(len(x), count), np.arange(len(x))
    tiles = list(parts(len(x), TILE))
    for number, rows in enumerate(tiles):
        for columns in tiles[number:]:
            tile = products(x[rows], x[columns])
            heaps.offer(tile, rows.start, queries[rows], columns.start)
            if columns != rows:
                heaps.offer(_transposed(tile), columns.start, queries[columns], rows.start)
        if progress is not None:
            progress(rows.stop - rows.start)
    return heaps.candidates


def _transposed(tile: NDArray[np.float32]) -> NDArray[np.float32]:
    """By torch, which takes a quarter of the time that numpy takes (38 and 164 ms)."""
    import torch

    return torch.as_tensor(tile).T.contiguous().numpy()


def _of_some_rows(
    x: UnitRows, queries: NDArray[np.int64], count: int, progress: OnProgress | None
) -> Candidates:
    heaps = Heaps(len(queries), count)
    for part in parts(len(queries), TILE):
        query_rows = x[queries[part]]
        for columns in parts(len(x), TILE):
            heaps.offer(products(query_rows, x[columns]), part.start, queries[part], columns.start)
        if progress is not None:
            progress(part.stop - part.start)
    return heaps.candidates


def _on_device(
    x: UnitRows, queries: NDArray[np.int64], count: int, device: str, progress: OnProgress | None
) -> Candidates:
    import torch

    from gradwise.precision import in_full_products

    ids, lowest = np.empty((len(queries), count), dtype=np.int32), np.empty(len(queries), dtype=np.float32)
    x_NH = torch.as_tensor(x, device=device)
    with in_full_products():  # `slack` does not hold for TF32, which training may have switched on
        for part in parts(len(queries), max(1, 2**28 // len(x))):
            query_M = torch.as_tensor(queries[part], device=device)
            # As many queries at once as give 2^28 products, a GiB of float32.
            products_MN = x_NH[query_M] @ x_NH.T
            products_MN[torch.arange(len(query_M), device=device), query_M] = -torch.inf
            best = products_MN.topk(count, dim=1)
            ids[part], lowest[part] = best.indices.cpu().numpy(), best.values[:, -1].cpu().numpy()
            if progress is not None:
                progress(part.stop - part.start)
    return Candidates(ids, lowest)


# ---- kernels -----------------------------------------------------------------------------------------------


@compiled
def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    """The cosine that decides: eight partial sums in float64, always added in the same order."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    whole = len(a) // 8 * 8
    for i in range(0, whole, 8):
        s0 += np.float64(a[i]) * np.float64(b[i])
        s1 += np.float64(a[i + 1]) * np.float64(b[i + 1])
        s2 += np.float64(a[i + 2]) * np.float64(b[i + 2])
        s3 += np.float64(a[i + 3]) * np.float64(b[i + 3])
        s4 += np.float64(a[i + 4]) * np.float64(b[i + 4])
        s5 += np.float64(a[i + 5]) * np.float64(b[i + 5])
        s6 += np.float64(a[i + 6]) * np.float64(b[i + 6])
        s7 += np.float64(a[i + 7]) * np.float64(b[i + 7])
    for i in range(whole, len(a)):
        s0 += np.float64(a[i]) * np.float64(b[i])
    return np.float32(((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)))


@compiled
def _scale(
    x: NDArray[np.float32], scaled: UnitRows, infinite: NDArray[np.bool_], start: int, stop: int
) -> None:
    for i in range(start, stop):
        square = 0.0
        for value in x[i]:
            square += np.float64(value) * np.float64(value)
        if not np.isfinite(square):
            infinite[i] = True
        elif square > 0:
            length = np.sqrt(square)
            for j in range(x.shape[1]):
                scaled[i, j] = np.float32(x[i, j] / length)


@compiled
def _rank(
    x: UnitRows,
    queries: NDArray[np.int64],
    candidates: NDArray[np.int32],
    ranked_ids: NDArray[np.int32],
    ranked_sims: NDArray[np.float32],
    start: int,
    stop: int,
) -> None:
    count = candidates.shape[1]
    for i in range(start, stop):
        ids = np.sort(candidates[i])
        negated = np.empty(count, dtype=np.float32)
        for c in range(count):
            # Ids ascend and cosines are negated, so that a stable sort puts the lower id first among equals.
            negated[c] = -cosine(x[queries[i]], x[ids[c]]) if ids[c] >= 0 else np.float32(np.inf)
        order = np.argsort(negated, kind="mergesort")
        for c in range(count):
            ranked_ids[i, c] = ids[order[c]]
            ranked_sims[i, c] = -negated[order[c]]


@compiled
def _offer(
    tile: NDArray[np.float32],
    start: int,
    stop: int,
    first_row: int,
    itself: NDArray[np.int64],
    first_column: int,
    ids: NDArray[np.int32],
    heaps: NDArray[np.float32],
    lowest: NDArray[np.float32],
) -> None:
    for i in range(start, stop):
        query = first_row + i
        left_out = itself[i] - first_column
        for j in range(tile.shape[1]):
            # Nearly all products fail this one comparison, since the heaps fill up within the first tiles.
            if tile[i, j] > lowest[query] and j != left_out:
                lowest[query] = _replace_lowest(ids[query], heaps[query], first_column + j, tile[i, j])


@compiled
def _replace_lowest(
    ids: NDArray[np.int32], heap: NDArray[np.float32], new_id: int, product: np.float32
) -> np.float32:
    """Replace the lowest candidate, restore the heap, and return the new lowest product."""
    place, size = 0, len(heap)
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= product:
            break
        ids[place], heap[place] = ids[child], heap[child]
        place = child
    ids[place], heap[place] = new_id, product
    return heap[0]
