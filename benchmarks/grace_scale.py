"""How fast GRACE's numerics are, and how large a pool may be: selection of 262,144 rows, all of a million."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from frame import load_average
from numpy.typing import NDArray

from gradwise.methods.grace import Grace
from gradwise.numerics import KnnGraph, facility_location, knn_graph
from gradwise.signals import Signals

ROWS, NEIGHBOURS = 2**18, 32
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)

MILLION, WIDTH, INTRINSIC = 1_000_000, 256, 20
CLUSTERS = 2000
ANCHORS, DRIFTED = 0.05, 0.2
"""Share of the nodes that the refresh measures, and of those the share that moved beyond `drift`."""


def clustered(rows: int, width: int, seed: int, clusters: int = CLUSTERS) -> NDArray[np.float32]:
    """(rows, width) points around centres in a space of `INTRINSIC` dimensions, turned into `width`."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, INTRINSIC)).astype(np.float32)
    turn = (rng.standard_normal((INTRINSIC, width)) / np.sqrt(INTRINSIC)).astype(np.float32)
    x = np.empty((rows, width), dtype=np.float32)
    for start in range(0, rows, 2**16):
        part = x[start : start + 2**16]
        points = centres[rng.integers(clusters, size=len(part))]
        np.matmul(points + 0.5 * rng.standard_normal(points.shape, dtype=np.float32), turn, out=part)
    return x


def random_graph(rows: int, k: int, seed: int) -> KnnGraph:
    """Neighbours drawn at random: the hardest on the processor's caches."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, rows, (rows, k)).astype(np.int32)
    sims = -np.sort(-rng.random((rows, k), dtype=np.float32))
    return KnnGraph(ids, sims, np.zeros(rows, dtype=np.float32), k)


GRAPHS: dict[str, Callable[[], KnnGraph]] = {
    "random": lambda: random_graph(ROWS, NEIGHBOURS, seed=0),
    "clustered": lambda: knn_graph(clustered(ROWS, 64, seed=0), NEIGHBOURS, approximate=True),
}


def selection_speed(name: str, repeats: int = 3) -> dict[str, Any]:
    """Seconds to select each share of a graph's rows, on one core: the fastest of a few times."""
    graph = GRAPHS[name]()
    scores = np.random.default_rng(1).random(ROWS)
    facility_location(graph, scores, 8, 0.5)  # compiles
    seconds = {}
    for share in SHARES:
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            facility_location(graph, scores, round(share * ROWS), 0.5)
            taken.append(time.perf_counter() - start)
        seconds[f"{share:g}"] = [round(one, 3) for one in sorted(taken)]
        print(f"{name} graph, {share:.0%}: {seconds[f'{share:g}']} s", flush=True)
    return {"rows": ROWS, "k": NEIGHBOURS, "seconds": seconds}


def million(rows: int = MILLION) -> dict[str, Any]:
    """Graph, selection of a tenth, a refresh with repair: seconds, peak memory, recall. In a process of its
    own, whose peak is its own."""
    x = clustered(rows, WIDTH, seed=0)
    rng = np.random.default_rng(1)
    signals = Signals(rows, embedding=x, loss=rng.random(rows, dtype=np.float32), num_tokens=np.full(rows, 9))
    grace = Grace(
        fraction=0.1,
        importance="loss",
        by_length=False,
        search="approximate",
        anchors=ANCHORS,
        refresh_every=1,
    )
    took, clock = {}, Clock()
    state = grace.begin(signals)
    took["graph"] = clock.lap()
    known = Signals(rows, num_tokens=signals.num_tokens)
    picked = grace.pick(state, known)
    took["selection"] = clock.lap()
    del signals
    anchors = grace.anchors_at(state, 1)
    took["anchors"] = clock.lap()
    measured = _moved(x[state.sample[anchors]], state.importance[anchors], rng)
    clock.lap()
    del x
    done = grace.refresh(state, anchors, measured, 1)
    took["propagation"] = clock.lap() - done.graph_seconds
    took["repair"] = done.graph_seconds
    again = grace.pick(done.state, known)
    took["selection again"] = clock.lap()
    return {
        "rows": rows,
        "width": WIDTH,
        "intrinsic": INTRINSIC,
        "nodes": len(state),
        "recall": round(state.graph.recall, 4),
        "picked": len(picked.indices),
        "stayed": len(np.intersect1d(picked.indices, again.indices)),
        "anchors": len(anchors),
        "moved": done.moved,
        "searched": done.searched,
        "seconds": {name: round(value, 1) for name, value in took.items()},
        "peak_gib": round(peak_bytes() / 2**30, 2),
        "load_average_after": load_average(),
    }


def _moved(x: NDArray[np.float32], loss: NDArray[np.float64], rng: np.random.Generator) -> Signals:
    """What training might have made of some samples: losses fall, some embeddings go elsewhere."""
    after: Any = x + 0.02 * rng.standard_normal(x.shape, dtype=np.float32)
    far = rng.random(len(x)) < DRIFTED
    after[far] += 0.6 * rng.standard_normal((int(far.sum()), x.shape[1]), dtype=np.float32)
    fallen = (loss * rng.uniform(0.7, 1.0, len(loss))).astype(np.float32)
    return Signals(len(x), embedding=after, loss=fallen, num_tokens=np.full(len(x), 9))


class Clock:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def lap(self) -> float:
        before, self.start = self.start, time.perf_counter()
        return self.start - before


def peak_bytes() -> int:
    """The most memory this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
