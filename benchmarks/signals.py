"""What per-sample signals cost and how accurate they are, beside everything else that gives them.

    python benchmarks/signals.py                            # all parts; an hour and a half on one core
    python benchmarks/signals.py --parts cost --subjects llama10m
    python benchmarks/signals.py --parts peers --peers-python VENV/bin/python

Parts, each with a result file of its own in which every finished piece is kept, so that a stopped benchmark
goes on where it was:

- cost: time of every set of quantities as a ratio to an ordinary forward + backward, all in turn in one
  process; peak memory of each in a process of its own; `gw.collect` from end to end;
- accuracy: errors of inner products by length and side of the projection, beside a dense Gaussian one's;
- precondition: the rank-one form of an optimizer's scales against the full one;
- peers: a loop, vmap, and the packages traker, bergson and dattri on the same model and batch. Packages that
  are not installed are told as such; they go in an environment of their own, without their dependencies.

The store's survival is `signals_store.py`; `python benchmarks/results.py` makes docs/results.md of the files.
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

import numpy as np
import signals_accuracy
import signals_cost
import signals_figure
import signals_peers
import signals_precondition
import torch
from frame import RESULTS, ResultFile, names_of, parts_parser
from signals_accuracy import Gradients
from signals_subjects import SETTLED, subject

HERE = Path(__file__).resolve().parent
PARTS = ("cost", "accuracy", "precondition", "peers")
SUBJECTS = ("llama10m", "stories", "small_llama", "smollm2")
STEPS = {"stories": 200, "small_llama": 100}
"""AdamW steps before second moments are read."""


class Benchmark:
    """The parts in turn, each finished piece kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    def run(self) -> None:
        """All parts asked for."""
        for part in self.options.parts:
            self.result = self._file(part)
            getattr(self, part)()
            print(f"results in {self.result.path}", flush=True)

    def cost(self) -> None:
        """Time and memory against ordinary training."""
        rounds = self.options.rounds
        for name in self._chosen(signals_cost.LOADS):
            self.result.once(f"time/{name}", lambda name=name: signals_cost.timing(name, rounds))
            if name == "llama10m":
                self.result.once(f"pass/{name}", lambda name=name: signals_cost.whole_pass(name, 3))
            for arm in signals_cost.ARMS:
                measure = partial(self._child, "signals_cost.py", name, arm)
                self.result.once(f"memory/{name}/{arm}", measure)

    def accuracy(self) -> None:
        """Errors of inner products by length and by side, several seeds."""
        for name in self._chosen(signals_accuracy.COUNTS):
            seeds = range(self.options.seeds)
            keys = [f"{kind}/{name}/{seed}" for kind in signals_accuracy.kinds(name) for seed in seeds]
            if all(key in self.result for key in keys):
                continue
            with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
                self._errors(name, Path(folder), seeds)
        figure = self.options.out and self.options.out / signals_figure.FIGURE.name
        signals_figure.draw(self.result.content, figure or signals_figure.FIGURE)

    def _errors(self, name: str, folder: Path, seeds: range) -> None:
        gradients = Gradients(*subject(name, signals_accuracy.COUNTS[name]), folder)
        gram = gradients.gram()
        self.result.once(f"true/{name}", lambda: signals_accuracy.described(gradients, gram))
        for kind, measured in signals_accuracy.kinds(name).items():
            for seed in seeds:
                self.result.once(f"{kind}/{name}/{seed}", partial(measured, gradients, gram, seed))

    def precondition(self) -> None:
        """Rank-one scales against full ones."""
        for name in self._chosen(STEPS):
            self.result.once(f"precondition/{name}", lambda name=name: self._preconditioned(name))

    def _preconditioned(self, name: str) -> dict[str, Any]:
        model, samples = subject(name, signals_accuracy.COUNTS[name])
        moments = signals_precondition.second_moments(model, samples, STEPS[name])
        with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
            gradients = Gradients(model, samples, Path(folder))
            found = signals_precondition.grams(gradients, moments)
        return {"steps": STEPS[name], "samples": len(samples), "ways": signals_precondition.compared(found)}

    def peers(self) -> None:
        """Every other way, each in processes of its own."""
        missing = [name for name in signals_peers.PEERS if f"peer/{name}" not in self.result]
        if not missing:
            return
        with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
            gram = Path(folder) / "gram.npy"
            np.save(gram, signals_peers.true_gram())
            for name in missing:
                self.result.once(f"peer/{name}", lambda name=name: self._peer(name, gram))
        self.result.once(
            "ordinary/memory", lambda: self._child("signals_cost.py", signals_peers.SUBJECT, "ordinary")
        )

    def _peer(self, name: str, gram: Path) -> dict[str, Any]:
        script, rounds, python = "signals_peers.py", str(self.options.rounds), self.options.peers_python
        timed = self._child(script, "time", name, rounds, str(gram), python=python, settled=False)
        return timed if "problem" in timed else timed | self._child(script, "memory", name, python=python)

    # ---- how -----------------------------------------------------------------------------------------------

    def _file(self, part: str) -> ResultFile:
        path = (self.options.out or RESULTS) / f"signals-{part}.json"
        return ResultFile(path, "signals", {"part": part}, threads=1)

    def _chosen(self, names: Any) -> list[str]:
        return [name for name in names if name in self.options.subjects]

    @staticmethod
    def _child(script: str, *what: str, python: str = sys.executable, settled: bool = True) -> dict[str, Any]:
        """Run a script in a process of its own, and read what it wrote: its third argument from the left."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.json"
            command = [python, str(HERE / script), *what[:2], str(out), *what[2:]]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(SETTLED if settled else {})}
            subprocess.run(command, check=True, env=environment, stdout=sys.stderr, timeout=3600)
            return json.loads(out.read_text())


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = parts_parser(__doc__, PARTS)
    parser.add_argument(
        "--subjects", type=names_of(SUBJECTS), default=list(SUBJECTS), help="of " + ", ".join(SUBJECTS)
    )
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds")
    parser.add_argument("--seeds", type=int, default=5, help="projections to measure errors of")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter with the peers' packages")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    Benchmark(parsed()).run()
