"""GRACE: how fast, how large, whether its word is kept, whether its guesses are good.

    python benchmarks/grace.py                        # all parts; some 40 minutes
    python benchmarks/grace.py --parts speed,million

Parts, each with a result file of its own in which every finished piece is kept, so that a stopped benchmark
goes on where it was:

- speed: selecting 5 to 50 % of 262,144 rows on one core;
- million: graph, selection, refresh and repair of a million embeddings on two cores;
- importance: what share of the picks from a dirty pool is garbage, by kind of importance;
- propagation: guesses against exact values over a real run, by share of anchors and way of propagating;
- dial: runs at three overheads, forecast against spent.

What GRACE does to held-out losses is `compare.py --task grace_dirty` and its neighbours. `python
benchmarks/results.py` makes docs/results.md of the files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

# Two thread pools on a busy machine wait for each other; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import grace_dial
import grace_figure
import grace_importance
import grace_propagation
import grace_scale
import transformers
from frame import RESULTS, ResultFile, parts_parser

PARTS = ("speed", "million", "importance", "propagation", "dial")
THREADS = {"million": 2}
"""Of the parts that have a process of their own, with more than one core."""


class Benchmark:
    """The parts in turn."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    def run(self) -> None:
        """All parts asked for."""
        for part in self.options.parts:
            self.result = self._file(part)
            getattr(self, part)()
            print(f"results in {self.result.path}", flush=True)

    def speed(self) -> None:
        """Lazy greedy on one core."""
        for name in grace_scale.GRAPHS:
            self.result.once(f"speed/{name}", partial(grace_scale.selection_speed, name))

    def million(self) -> None:
        """All of it at a million rows."""
        self.result.once("million/clustered", _million_apart)

    def importance(self) -> None:
        """Picks from the dirty pool."""
        for subject in grace_importance.SUBJECTS:
            self.result.once(f"medians/{subject}", partial(grace_importance.medians, subject))
            for way in grace_importance.WAYS:
                self.result.once(f"shares/{subject}/{way}", partial(_shares, subject, way))

    def propagation(self) -> None:
        """Guesses against exact values."""
        self.result.once("passes/whole", lambda: {"seconds": grace_propagation.measured()})
        for kind, share, way in grace_propagation.combinations():
            key = f"followed/{kind}/{share:g}/{way.key}"
            self.result.once(key, partial(grace_propagation.followed, kind, share, way))
        figure = self.options.out and self.options.out / grace_figure.FIGURE.name
        grace_figure.draw(self.result.content, figure or grace_figure.FIGURE)

    def dial(self) -> None:
        """Overheads kept to."""
        for kind in grace_dial.KINDS:
            for overhead in grace_dial.OVERHEADS:
                for seed in range(self.options.seeds):
                    key = f"dial/{kind}/{overhead:g}/{seed}"
                    self.result.once(key, partial(grace_dial.run, overhead, kind, seed))

    def _file(self, part: str) -> ResultFile:
        path = (self.options.out or RESULTS) / f"grace-{part}.json"
        return ResultFile(path, "grace", {"part": part}, threads=THREADS.get(part, 1))


def _shares(subject: str, way: str) -> dict[str, Any]:
    return {f"{f:g}": grace_importance.shares(subject, way, f) for f in grace_importance.FRACTIONS}


def _million_apart() -> dict[str, Any]:
    """In a process of its own, whose peak memory is its own."""
    script = "import grace_scale, json, sys; json.dump(grace_scale.million(), open(sys.argv[1], 'w'))"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "MALLOC_MMAP_THRESHOLD_": str(2**18)}
        here = Path(__file__).resolve().parent
        subprocess.run([sys.executable, "-c", script, str(out)], check=True, env=environment, cwd=here)
        return json.loads(out.read_text())


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = parts_parser(__doc__, PARTS)
    parser.add_argument("--seeds", type=int, default=2, help="runs at each overhead")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    Benchmark(parsed()).run()
