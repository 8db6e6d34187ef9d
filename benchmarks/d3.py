"""D3: edges that know the order, planted orders that are found, what measuring costs, the solver.

    python benchmarks/d3.py                          # all parts; some two hours on one core
    python benchmarks/d3.py --parts planted,cost

Parts, each with a result file of its own in which every finished piece is kept, so that a stopped benchmark
goes on where it was:

- commutator: which edges say which of two units should come first, against both orders really trained, over
  optimizers and learning rates (figure: docs/figures/d3-commutator.png);
- planted: pools in which the order matters by construction, in whole runs and at single states;
- cost: what losses, Hessian-vector products and trial steps cost, in passes of a training step;
- solver: linear orders against the best known;
- published: the same on published instances, whose folder `--lolib` names (see d3_solver.py).

`python benchmarks/results.py` makes docs/results.md of the files.
"""

import argparse
import os
from functools import partial
from pathlib import Path

# Two thread pools on a busy machine wait for each other; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import d3_commutator
import d3_cost
import d3_figure
import d3_planted
import d3_solver
import transformers
from frame import RESULTS, ResultFile, parts_parser

PARTS = ("commutator", "planted", "cost", "solver", "published")


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
        for seed in range(self.options.seeds or 3):
            for kind in d3_commutator.RATES:
                self.result.once(f"trained/{kind}/{seed}", partial(d3_commutator.trained, kind, seed))
                self.result.once(f"estimated/{kind}/{seed}", partial(d3_commutator.estimated, kind, seed))
        d3_figure.draw(self.result.content)

    def planted(self) -> None:
        """Whole runs, all arms of a seed before the next seed; then single states."""
        for kind in d3_planted.RUNS:
            for seed in range(self.options.seeds or 10):
                for arm in d3_planted.ARMS:
                    self.result.once(f"run/{kind}/{arm}/{seed}", partial(d3_planted.run, kind, arm, seed))
        for seed in range(self.options.seeds or 10):
            for kind in d3_planted.KINDS:
                self.result.once(f"tried/{kind}/{seed}", partial(d3_planted.tried, kind, seed))
            for kind, edges, trained, probes in d3_planted.STATES:
                work = partial(d3_planted.direction, kind, edges, seed, trained=trained, probes=probes)
                self.result.once(f"state/{kind}/{edges}/{trained}/{probes}/{seed}", work)

    def cost(self) -> None:
        """A small model, in processor time."""
        self.result.once("cost/llama_10m", d3_cost.measured)

    def solver(self) -> None:
        """All instances, on one core."""
        for n in d3_solver.SIZES:
            for kind in d3_solver.KINDS:
                self.result.once(f"curve/{kind}/{n}", partial(d3_solver.curve, kind, n, 0))

    def published(self) -> None:
        """Instances of others, which have to be there."""
        if self.options.lolib is None:
            print("published: no --lolib, so nothing to do", flush=True)
            return
        for name, work in d3_solver.published(self.options.lolib):
            self.result.once(f"published/{name}", work)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = parts_parser(__doc__, PARTS)
    parser.add_argument(
        "--seeds", type=int, help="of the parts that have seeds; 3 of commutators, 10 of planted orders"
    )
    parser.add_argument("--lolib", type=Path, help="folder of published instances")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    Benchmark(parsed()).run()
