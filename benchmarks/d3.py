"""D3: edges that know the order, planted orders that are found, what measuring costs, the solver.

    python benchmarks/d3.py                          # all parts; some two hours on one core
    python benchmarks/d3.py --parts planted,cost

Parts, each with a result file of its own in which every finished piece is kept, so that a stopped benchmark
goes on where it was:

- commutator: which edges say which of two units should come first, against both orders really trained, over
  optimizers and learning rates (figure: docs/figures/d3-commutator.png);
- planted: pools in which the order matters by construction, in whole runs and at single states;
- cost: what losses, Hessian-vector products and trial steps cost, in passes of a training step;
- solver: linear orders against the best known.

`python benchmarks/results.py` makes docs/results.md of the files.
"""

import argparse
import os
from functools import partial
from pathlib import Path

# Two thread pools on a busy machine wait for each other; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import d3_commutator
import transformers
from frame import RESULTS, ResultFile

PARTS = ("commutator", "planted", "cost", "solver")


class Benchmark:
    """The parts in turn."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    def run(self) -> None:
        """All parts asked for."""
        for part in self.options.parts:
            self.result = ResultFile(
                (self.options.out or RESULTS) / f"d3-{part}.json", "d3", {"part": part}, threads=1
            )
            getattr(self, part)()
            print(f"results in {self.result.path}", flush=True)

    def commutator(self) -> None:
        """All optimizers of a seed before the next seed."""
        for seed in range(self.options.seeds or 4):
            for kind in d3_commutator.RATES:
                self.result.once(f"commutator/{kind}/{seed}", partial(d3_commutator.compared, kind, seed))


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts",
        type=lambda text: text.split(","),
        default=list(PARTS),
        help="comma-separated, of " + ", ".join(PARTS),
    )
    parser.add_argument("--seeds", type=int, help="of the parts that have seeds; 4 commutators, 12 planted")
    parser.add_argument("--out", type=Path, help="folder of the result files")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"--parts: unknown {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    Benchmark(parsed()).run()
