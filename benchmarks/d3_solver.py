"""D³'s solver: how near linear orders come to the best known, by how many moves, in what time.

Instances are made here, as the classes of the literature are: `random` as RandA1 of LOLIB (uniform integers),
`planted` (a hidden order under as much noise), `economic` like input-output tables (sectors of very different
size, two fifths of all entries zero, heavy tails, a triangular tendency).
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradwise.numerics import linear_order, order_bound, order_value
from gradwise.numerics.ordering import EXACT, default_moves

KINDS = ("random", "planted", "economic")
SIZES = (10, 12, 50, 100, 150, 200, 250, 500)
SHARES = (1 / 8, 1 / 4, 1 / 2, 1, 4)
"""Of the default number of moves."""
LONG, LONG_SEEDS = 8, (101, 102)
"""What is taken for the best known besides: so many times the default, from each of these seeds."""


def instance(kind: str, n: int, seed: int) -> np.ndarray:
    """(n, n) whole numbers, none negative, zeros on the diagonal."""
    rng = np.random.default_rng([KINDS.index(kind), n, seed])
    place = rng.permutation(n)
    before = place[:, None] < place[None, :]
    if kind == "economic":
        sells, buys = np.exp(rng.standard_normal((2, n)))
        w = 100 * np.outer(sells, buys) * np.exp(1.5 * rng.standard_normal((n, n)))
        w = np.round(np.where(before, w, 0.3 * w) * (rng.random((n, n)) > 0.4))
    else:
        w = rng.integers(0, 101, (n, n)) + 30.0 * before * (kind == "planted")
    np.fill_diagonal(w, 0)
    return w


def curve(kind: str, n: int, seed: int) -> dict[str, Any]:
    """One instance: per share of the default moves the seconds on one core and the gap to the best known, in
    percent of its value; for few items the optimum instead."""
    w = instance(kind, n, seed)
    if n <= EXACT:
        found = timed(w, None, seed)
        return {"n": n, "optimum": found["value"], "seconds": found["seconds"], **_beside(w, found["value"])}
    linear_order(w, max_moves=1)  # numba compiles, or reads what it compiled
    moves = default_moves(n)
    runs = {f"{share:g}": timed(w, round(share * moves), seed) for share in SHARES}
    long = [timed(w, LONG * moves, other) for other in LONG_SEEDS]
    best = max(run["value"] for run in [*runs.values(), *long])
    for run in [*runs.values(), *long]:
        run["gap_percent"] = float(f"{100 * (1 - run['value'] / best):.3g}")
    return {"n": n, "moves": moves, "runs": runs, "long": long, "best_known": best, **_beside(w, best)}


def published(folder: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Matrices that others have published, with the best value known of each.

    Args:
        folder: with `instances/<name>` (the number of items, then the matrix) and `best_known/best_known.txt`
            (a line of name and value for each), as the extended input-output tables of LOLIB (XLOLIB,
            Schiavinotto and Stuetzle 2004) are handed round; they are not part of the repository.
    """
    known = (line.split() for line in (folder / "best_known" / "best_known.txt").read_text().splitlines())
    for name, value in (words for words in known if len(words) == 2):
        if (path := folder / "instances" / name).is_file():
            yield name, partial(_beside_published, path, float(value))


def _beside_published(path: Path, best: float) -> dict[str, Any]:
    numbers = np.array(path.read_text().split(), dtype=np.float64)
    n = int(numbers[0])
    w = numbers[1:].reshape(n, n)
    np.fill_diagonal(w, 0)
    linear_order(w, max_moves=1)
    found = timed(w, None, 0)
    return {"n": n, **found, "best_known": best, "gap_percent": round(100 * (1 - found["value"] / best), 4)}


def timed(w: np.ndarray, moves: int | None, seed: int) -> dict[str, Any]:
    """One order: its value, and the seconds it took."""
    start = time.perf_counter()
    order = linear_order(w, seed, moves)
    seconds = time.perf_counter() - start
    return {"value": order_value(w, order), "seconds": round(seconds, 4)}


def _beside(w: np.ndarray, best: float) -> dict[str, Any]:
    """What the best is to be seen against: the sum of the larger weights of all pairs, and the order that a
    sort by row sums less column sums gives."""
    by_sums = np.argsort(w.sum(axis=0) - w.sum(axis=1), kind="stable")
    return {
        "bound": order_bound(w),
        "of_bound": round(best / order_bound(w), 5),
        "sorted_gap_percent": round(100 * (1 - order_value(w, by_sums) / best), 3),
    }
