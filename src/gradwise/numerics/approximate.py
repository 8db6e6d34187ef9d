"""Nearly the nearest neighbours of millions of rows, through faiss, with a measure of how nearly.

An inverted-file index looks at a few of many cells. How many is found out by trial: a sample of rows is
searched exactly, and the number of cells doubles until enough of their true neighbours are found.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradwise.numerics.candidates import parts
from gradwise.numerics.nearest import Neighbours, Rows, Tell, nearest, ranked

ENOUGH = 0.98
"""Share of true neighbours at which no more cells are looked at."""

SAMPLE = 1024
"""Rows that are searched exactly."""

AT_ONCE = 2**15
"""Rows that are searched for together."""


def nearly_nearest(
    x: Rows, count: int, k: int, *, seed: int = 0, tell: Tell | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32], float]:
    """Neighbours of all rows, and the share of the true `k` nearest among the first k of them.

    Args:
        x: (N, h) of unit length.
        count: neighbours of each, at most N - 1.
        k: of which the recall is measured.
        seed: of the cells and of the sample.
        tell: told as rows are done.

    Returns:
        (N, count) ids and (N, count) cosines, best first, equal cosines by id; and the recall.

    Raises:
        ImportError: without faiss.
    """
    sample = np.sort(np.random.default_rng(seed).choice(len(x), min(SAMPLE, len(x)), replace=False))
    true = nearest(x, sample, k).ids
    index = _index(x, seed)
    while True:
        recall = _share_found(_search(index, x, sample, count).ids[:, :k], true)
        if recall >= ENOUGH or index.nprobe >= index.nlist:
            break
        index.nprobe = min(2 * index.nprobe, index.nlist)
    ids, sims = np.empty((len(x), count), np.int32), np.empty((len(x), count), np.float32)
    for part in parts(len(x), AT_ONCE):
        ids[part], sims[part] = _search(index, x, np.arange(part.start, part.stop), count)
        if tell is not None:
            tell(part.stop - part.start)
    return ids, sims, recall


def _index(x: Rows, seed: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    cells = max(1, min(len(x) // 40, round(4 * np.sqrt(len(x)))))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(x.shape[1]), x.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed + 1
    # 50 rows of each cell are enough to place it; all of millions would take longer than the search.
    rng = np.random.default_rng([seed, cells])
    index.train(x[np.sort(rng.choice(len(x), min(50 * cells, len(x)), replace=False))])
    index.add(x)
    index.nprobe = min(4, cells)
    return index


def _search(index: Any, x: Rows, rows: NDArray[np.int64], count: int) -> Neighbours:
    found = index.search(x[rows], count + 1)[1].astype(np.int32)
    # A row finds itself, unless more copies of it than `count` rank before.
    found[found == rows[:, None]] = -1
    best = ranked(x, rows, found)
    ids, sims = np.ascontiguousarray(best.ids[:, :count]), np.ascontiguousarray(best.sims[:, :count])
    few = np.flatnonzero(ids[:, -1] < 0)
    if few.size:
        ids[few], sims[few] = nearest(x, rows[few], count)
    return Neighbours(ids, sims)


def _share_found(found: NDArray[np.int32], true: NDArray[np.int32]) -> float:
    hits = [np.isin(known, mine).mean() for known, mine in zip(true, found, strict=True)]
    return float(np.mean(hits))
