"""Speed of GRACE's selection: 5 to 50 % of 262,144 rows, exact lazy greedy on one core.

    python -m benchmarks.grace.speed        # some minutes

Rows have 32 neighbours each; coverage and random importance have equal weight. Seconds are the median of
three repeats. The random graph has random neighbours, the clustered graph the nearest ones.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.common.command_line import Script
from benchmarks.common.tables import Claim, Content, Page, of_kind, table
from benchmarks.grace.million import clustered
from gradwise.numerics import KnnGraph, facility_location, knn_graph

ROWS, NEIGHBOURS = 2**18, 32
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)


def random_graph(rows: int, k: int, seed: int) -> KnnGraph:
    """Random neighbours: the worst case for the processor's caches."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, rows, (rows, k)).astype(np.int32)
    sims = -np.sort(-rng.random((rows, k), dtype=np.float32))
    return KnnGraph(ids, sims, np.zeros(rows, dtype=np.float32), k)


GRAPHS: dict[str, Callable[[], KnnGraph]] = {
    "random": lambda: random_graph(ROWS, NEIGHBOURS, seed=0),
    "clustered": lambda: knn_graph(clustered(ROWS, 64, seed=0), NEIGHBOURS, approximate=True),
}


def measure(name: str, repeats: int = 3) -> dict[str, Any]:
    """Seconds to select each share of a graph's rows, in ascending order over the repeats."""
    graph = GRAPHS[name]()
    scores = np.random.default_rng(1).random(ROWS)
    facility_location(graph, scores, 8, 0.5)  # compiles
    seconds = {}
    for share in SHARES:
        repeated = []
        for _ in range(repeats):
            start = time.perf_counter()
            facility_location(graph, scores, round(share * ROWS), 0.5)
            repeated.append(time.perf_counter() - start)
        seconds[f"{share:g}"] = [round(one, 3) for one in sorted(repeated)]
        print(f"{name} graph, {share:.0%}: {seconds[f'{share:g}']} s", flush=True)
    return {"rows": ROWS, "k": NEIGHBOURS, "seconds": seconds}


def page(content: Content) -> Page:
    entries = of_kind(content, "speed")
    first = next(iter(entries.values()))
    medians = {
        name: {share: statistics.median(entry["seconds"][share]) for share in first["seconds"]}
        for name, entry in entries.items()
    }
    rows = [[name, *(f"{value:.2f}" for value in by_share.values())] for name, by_share in medians.items()]
    head = ["graph", *(f"{float(share):.0%}" for share in first["seconds"])]
    number = f"{medians['clustered']['0.1']:.1f} s (random graph: {medians['random']['0.1']:.1f} s)"
    return Page(
        sections=[table(head, rows)],
        claims=[Claim("GRACE selects 10 % of 262,144 rows", number)],
    )


SCRIPT = Script(__doc__, "grace-speed")


def main() -> None:
    _, result = SCRIPT.start()
    for name in GRAPHS:
        result.once(f"speed/{name}", partial(measure, name))


if __name__ == "__main__":
    main()
