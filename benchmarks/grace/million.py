"""GRACE on a pool of a million: graph, selection, refresh and repair.

    python -m benchmarks.grace.million      # two cores, some 20 minutes

Clustered embeddings of width 256 (intrinsic dimension 20), 16 neighbours and 16 in reserve, approximate
search, two cores. Everything runs in a process of its own, so that its peak memory is its own.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.clocks import Clock
from benchmarks.common.command_line import Script
from benchmarks.common.memory import NO_HOLES, peak_gib
from benchmarks.common.own_process import in_own_process
from benchmarks.common.result_file import load_average
from benchmarks.common.tables import Claim, Content, Page, table
from gradwise.methods.grace import Grace
from gradwise.signals import Signals

MILLION, WIDTH, INTRINSIC = 1_000_000, 256, 20
CLUSTERS = 2000
ANCHORS, DRIFTED = 0.05, 0.2
"""Share of the nodes that the refresh scores, and the share of those that moved beyond `drift`."""
THREADS = 2


def clustered(rows: int, width: int, seed: int, clusters: int = CLUSTERS) -> NDArray[np.float32]:
    """(rows, width) points around centres in a space of `INTRINSIC` dimensions, rotated into `width`."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, INTRINSIC)).astype(np.float32)
    turn = (rng.standard_normal((INTRINSIC, width)) / np.sqrt(INTRINSIC)).astype(np.float32)
    x = np.empty((rows, width), dtype=np.float32)
    for start in range(0, rows, 2**16):
        part = x[start : start + 2**16]
        points = centres[rng.integers(clusters, size=len(part))]
        np.matmul(points + 0.5 * rng.standard_normal(points.shape, dtype=np.float32), turn, out=part)
    return x


def measure(rows: int = MILLION) -> dict[str, Any]:
    """Seconds of each step, peak memory of this process, recall of the graph."""
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
    seconds, clock = {}, Clock()
    state = grace.begin(signals)
    seconds["graph"] = clock.lap()
    tokens = Signals(rows, num_tokens=signals.num_tokens)
    selection = grace.pick(state, tokens)
    seconds["selection"] = clock.lap()
    del signals
    anchors = grace.anchors_at(state, 1)
    seconds["anchors"] = clock.lap()
    scored = _moved(x[state.sample[anchors]], state.importance[anchors], rng)
    clock.lap()
    del x
    refreshed = grace.refresh(state, anchors, scored, 1)
    seconds["propagation"] = clock.lap() - refreshed.graph_seconds
    seconds["repair"] = refreshed.graph_seconds
    second = grace.pick(refreshed.state, tokens)
    seconds["second selection"] = clock.lap()
    return {
        "rows": rows, "width": WIDTH, "intrinsic": INTRINSIC, "nodes": len(state),
        "recall": round(state.graph.recall, 4), "picked": len(selection.indices),
        "stayed": len(np.intersect1d(selection.indices, second.indices)), "anchors": len(anchors),
        "moved": refreshed.moved, "searched": refreshed.searched,
        "seconds": {name: round(value, 1) for name, value in seconds.items()}, "peak_gib": peak_gib(),
        "load_average_after": load_average(),
    }  # fmt: skip


def _moved(x: NDArray[np.float32], loss: NDArray[np.float64], rng: np.random.Generator) -> Signals:
    """Signals after some training, simulated: losses fall and some embeddings move far."""
    after: Any = x + 0.02 * rng.standard_normal(x.shape, dtype=np.float32)
    far = rng.random(len(x)) < DRIFTED
    after[far] += 0.6 * rng.standard_normal((int(far.sum()), x.shape[1]), dtype=np.float32)
    fallen = (loss * rng.uniform(0.7, 1.0, len(loss))).astype(np.float32)
    return Signals(len(x), embedding=after, loss=fallen, num_tokens=np.full(len(x), 9))


def page(content: Content) -> Page:
    entry = content["entries"]["million/clustered"]
    seconds = entry["seconds"]
    minutes = sum(seconds.values()) / 60
    text = (
        f"Recall of the graph: {entry['recall']:.3f}. Peak memory of the process: {entry['peak_gib']:.1f} "
        f"GiB. Total: {minutes:.1f} minutes. The refresh scored {entry['anchors']:,} nodes; "
        f"{entry['moved']:,} of these had moved, and {entry['searched']:,} rows of the graph were searched "
        f"again. {entry['stayed']:,} of {entry['picked']:,} picks stayed the same."
    )
    names = {"selection again": "second selection"}
    rows = [[names.get(name, name), f"{value:.1f}"] for name, value in seconds.items()]
    number = f"{minutes:.1f} min, {entry['peak_gib']:.1f} GiB"
    return Page(
        sections=[text, table(["step", "seconds"], rows)],
        claims=[Claim("GRACE on a million embeddings: graph, selection and refresh on two cores", number)],
    )


SCRIPT = Script(__doc__, "grace-million")


def main() -> None:
    _, result = SCRIPT.start(threads=THREADS)
    environment = {"OMP_NUM_THREADS": str(THREADS), **NO_HOLES}
    result.once(
        "million/clustered",
        lambda: in_own_process("benchmarks.grace.million:measure", environment=environment),
    )


if __name__ == "__main__":
    main()
