"""D³'s solver on generated instances: gap to the best known linear order, by number of moves, and seconds.

    python -m benchmarks.d3.solver          # a quarter of an hour on one core

Instances follow the classes of the literature: `random` as RandA1 of LOLIB (uniform integers), `planted` (a
hidden order under equal noise), `economic` like input-output tables (sectors of very different size, two
fifths of all entries zero, heavy tails, a triangular tendency). Gaps are in percent, by the number of moves
as a multiple of the default, with the seconds of the default on one core. For up to 16 items the solver finds
the optimum. The last column is the gap of a sort by row sums minus column sums.
"""

import time
from functools import partial
from typing import Any

import numpy as np

from benchmarks.common.command_line import Script
from benchmarks.common.tables import Claim, Content, Page, number, of_kind, table
from gradwise.numerics import linear_order, order_bound, order_value
from gradwise.numerics.ordering import EXACT, default_moves

KINDS = ("random", "planted", "economic")
SIZES = (10, 12, 50, 100, 150, 200, 250, 500)
SHARES = (1 / 8, 1 / 4, 1 / 2, 1, 4)
"""Numbers of moves, relative to the default."""
LONG, LONG_SEEDS = 8, (101, 102)
"""Further runs that may give the best known value: this multiple of the default moves, from each of these
seeds."""


def instance(kind: str, n: int, seed: int) -> np.ndarray:
    """(n, n) integers, none negative, zeros on the diagonal."""
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


def measure(kind: str, n: int, seed: int) -> dict[str, Any]:
    """One instance: seconds on one core and gap to the best known value in percent, by number of moves.

    For few items the optimum instead.
    """
    w = instance(kind, n, seed)
    if n <= EXACT:
        optimum = timed(w, None, seed)
        return {
            "n": n,
            "optimum": optimum["value"],
            "seconds": optimum["seconds"],
            **_bounds(w, optimum["value"]),
        }
    linear_order(w, max_moves=1)  # numba compiles, or reads its cache
    moves = default_moves(n)
    runs = {f"{share:g}": timed(w, round(share * moves), seed) for share in SHARES}
    long = [timed(w, LONG * moves, other) for other in LONG_SEEDS]
    best = max(run["value"] for run in [*runs.values(), *long])
    for run in [*runs.values(), *long]:
        run["gap_percent"] = float(f"{100 * (1 - run['value'] / best):.3g}")
    return {"n": n, "moves": moves, "runs": runs, "long": long, "best_known": best, **_bounds(w, best)}


def timed(w: np.ndarray, moves: int | None, seed: int) -> dict[str, Any]:
    """Value of one order, and the seconds it took."""
    start = time.perf_counter()
    order = linear_order(w, seed, moves)
    seconds = time.perf_counter() - start
    return {"value": order_value(w, order), "seconds": round(seconds, 4)}


def _bounds(w: np.ndarray, best: float) -> dict[str, Any]:
    """Two values to compare the best with: the sum of the larger weight of every pair, and the order that a
    sort by row sums minus column sums gives."""
    by_sums = np.argsort(w.sum(axis=0) - w.sum(axis=1), kind="stable")
    return {
        "bound": order_bound(w),
        "of_bound": round(best / order_bound(w), 5),
        "sorted_gap_percent": round(100 * (1 - order_value(w, by_sums) / best), 3),
    }


def page(content: Content) -> Page:
    rows, gaps = [], []
    for key, entry in of_kind(content, "curve").items():
        sorted_gap = number(entry["sorted_gap_percent"], 2)
        if "runs" in entry:
            runs = entry["runs"]
            gaps.append(runs["1"]["gap_percent"])
            cells = [
                *(number(run["gap_percent"], 3) for run in runs.values()),
                number(runs["1"]["seconds"], 2),
            ]
        else:
            cells = ["optimum", *[""] * (len(SHARES) - 1), number(entry["seconds"], 3)]
        rows.append([*key.split("/"), *cells, sorted_gap])
    claims = [
        Claim("D³'s solver on generated instances: largest gap to the best known", f"{max(gaps):.2f} %")
    ]
    return Page(
        sections=[
            table(["kind", "n", "1/8", "1/4", "1/2", "1", "4", "seconds", "sorted by sums"], rows),
        ],
        claims=claims if gaps else [],
    )


SCRIPT = Script(__doc__, "d3-solver")


def main() -> None:
    _, result = SCRIPT.start()
    for n in SIZES:
        for kind in KINDS:
            result.once(f"curve/{kind}/{n}", partial(measure, kind, n, 0))


if __name__ == "__main__":
    main()
