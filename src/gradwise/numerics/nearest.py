"""The search behind the k-NN graph: blocked matrix products find candidates, fixed-order products decide.

A matrix product's last bits depend on the machine and on how it was cut into blocks, so a list ordered by
them is not the same list twice. Here they only say which pairs are worth a second look: the cosine that
counts is summed in float64 in one fixed order, rounded to float32, and ties go to the lower id. How far the
two can lie apart is known (`slack`), so that what was left out is proven to rank lower.

Shapes: N rows of unit length with h numbers, M of them searched for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from gradwise.numerics.candidates import Heaps, in_threads, parts

Rows = NDArray[np.float32]
"""(N, h), each of unit length or zero."""

Tell = Callable[[int], Any]
"""Gets how many more rows are done."""

TILE = 2048
"""Rows and columns of one product: 16 MiB of float32."""


class Neighbours(NamedTuple):
    """Nearest rows of M rows, best first, equal cosines by id."""

    ids: NDArray[np.int32]
    sims: NDArray[np.float32]


def slack(h: int) -> float:
    """How far a float32 product of two unit vectors can lie from the cosine that counts.

    Rounding h products and their sums gives at most h 2^-24 sum |x_i y_i| to first order, and the sum is at
    most 1; twice that for safety.
    """
    return 2 * (h + 8) * 2.0**-24


def unit(x: NDArray[Any]) -> Rows:
    """The rows of `x` scaled to unit length; zero rows stay, and have cosine 0 with everything.

    Raises:
        ValueError: when a value is not finite.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim != 2:
        raise ValueError(f"Expected a row of numbers for each sample, (N, h); found shape {x.shape}.")
    scaled = np.zeros_like(x)
    bad = np.zeros(len(x), dtype=bool)
    in_threads(lambda start, stop: _scale(x, scaled, bad, start, stop), len(x))
    if bad.any():
        raise ValueError(f"Row {np.flatnonzero(bad)[0]} holds a value that is not finite.")
    return scaled


def nearest(
    x: Rows, rows: NDArray[np.int64], count: int, *, device: str = "cpu", tell: Tell | None = None
) -> Neighbours:
    """The `count` nearest of some rows, exactly.

    Args:
        x: all rows.
        rows: (M,) whose neighbours are wanted, ascending.
        count: how many of each, at most N - 1.
        device: where candidates are looked for.
        tell: told as rows are done.
    """
    several = min(len(x) - 1, 2 * count + 16)
    search = _on_device if device != "cpu" else _among_all if len(rows) == len(x) else _among
    ids, lowest = search(x, rows, several, device, tell)
    found = ranked(x, rows, ids)
    unproven = found.sims[:, count - 1] <= lowest + slack(x.shape[1])
    best = Neighbours(found.ids[:, :count].copy(), found.sims[:, :count].copy())
    if several < len(x) - 1 and unproven.any():
        _second_look(x, rows, np.flatnonzero(unproven), best)
    return best


def ranked(x: Rows, rows: NDArray[np.int64], ids: NDArray[np.int32]) -> Neighbours:
    """Candidates of each row, (M, C), by the cosine that counts, best first; empty places (-1) last."""
    found = Neighbours(np.empty_like(ids), np.empty(ids.shape, dtype=np.float32))
    in_threads(lambda start, stop: _rank(x, rows, ids, *found, start, stop), len(rows))
    return found


def _second_look(x: Rows, rows: NDArray[np.int64], places: NDArray[np.int64], best: Neighbours) -> None:
    """All that could rank as high as the last one found, where more are about equal than were kept."""
    allowed = slack(x.shape[1])
    for part in parts(len(places), max(1, 2**24 // len(x))):
        chosen = places[part]
        tile = products(x[rows[chosen]], x)
        for place, row in zip(chosen, tile, strict=True):
            found = np.flatnonzero(row >= best.sims[place, -1] - allowed).astype(np.int32)
            again = ranked(x, rows[place : place + 1], found[found != rows[place]][None])
            for kept, values in zip(best, again, strict=True):
                kept[place] = values[0, : kept.shape[1]]


# ---- where candidates come from: (M, C) ids, and (M,) a product that nothing left out exceeds --------------


def _among_all(x: Rows, rows: NDArray[np.int64], count: int, _: str, tell: Tell | None) -> Any:
    """Of every row; a product serves the rows of its tile and the columns."""
    heaps = Heaps(len(x), count)
    tiles = list(parts(len(x), TILE))
    for number, mine in enumerate(tiles):
        for theirs in tiles[number:]:
            tile = products(x[mine], x[theirs])
            heaps.offer(tile, mine.start, rows[mine], theirs.start)
            if theirs != mine:
                turned = torch.from_numpy(tile).T.contiguous().numpy()
                heaps.offer(turned, theirs.start, rows[theirs], mine.start)
        if tell is not None:
            tell(mine.stop - mine.start)
    return heaps.ids, heaps.lowest


def _among(x: Rows, rows: NDArray[np.int64], count: int, _: str, tell: Tell | None) -> Any:
    """Of some rows."""
    heaps = Heaps(len(rows), count)
    for mine in parts(len(rows), TILE):
        wanted = x[rows[mine]]
        for theirs in parts(len(x), TILE):
            heaps.offer(products(wanted, x[theirs]), mine.start, rows[mine], theirs.start)
        if tell is not None:
            tell(mine.stop - mine.start)
    return heaps.ids, heaps.lowest


def _on_device(x: Rows, rows: NDArray[np.int64], count: int, device: str, tell: Tell | None) -> Any:
    ids, lowest = np.empty((len(rows), count), dtype=np.int32), np.empty(len(rows), dtype=np.float32)
    x_NH = torch.from_numpy(x).to(device)
    with _full_precision():
        for mine in parts(len(rows), max(1, 2**28 // len(x))):
            chosen = torch.from_numpy(rows[mine]).to(device)
            products_MN = x_NH[chosen] @ x_NH.T
            products_MN[torch.arange(len(chosen), device=device), chosen] = -torch.inf
            best = products_MN.topk(count, dim=1)
            ids[mine], lowest[mine] = best.indices.cpu().numpy(), best.values[:, -1].cpu().numpy()
            if tell is not None:
                tell(mine.stop - mine.start)
    return ids, lowest


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products in float32 proper, whatever is allowed for training."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def products(a: Rows, b: Rows) -> Rows:
    """Of all rows of one with all of the other, as fast as they come: good to `slack`."""
    return (torch.from_numpy(a) @ torch.from_numpy(b).T).numpy()


# ---- kernels -----------------------------------------------------------------------------------------------


@numba.njit(nogil=True, cache=True)
def cosine(a: Any, b: Any) -> np.float32:
    """Of two unit rows: eight partial sums in float64, added up in the same order always."""
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


@numba.njit(nogil=True, cache=True)
def _rank(x: Any, rows: Any, ids: Any, best_ids: Any, best_sims: Any, start: int, stop: int) -> None:
    count = ids.shape[1]
    for i in range(start, stop):
        candidates = np.sort(ids[i])
        sims = np.empty(count, dtype=np.float32)
        for c in range(count):
            known = candidates[c] >= 0
            # Negated, so that a stable ascending sort gives the highest first and the lower id among equals.
            sims[c] = -cosine(x[rows[i]], x[candidates[c]]) if known else np.float32(np.inf)
        order = np.argsort(sims, kind="mergesort")
        for c in range(count):
            best_ids[i, c] = candidates[order[c]]
            best_sims[i, c] = -sims[order[c]]


@numba.njit(nogil=True, cache=True)
def _scale(x: Any, scaled: Any, bad: Any, start: int, stop: int) -> None:
    for i in range(start, stop):
        square = 0.0
        for value in x[i]:
            square += np.float64(value) * np.float64(value)
        if not np.isfinite(square):
            bad[i] = True
        elif square > 0:
            length = np.sqrt(square)
            for j in range(x.shape[1]):
                scaled[i, j] = np.float32(x[i, j] / length)
