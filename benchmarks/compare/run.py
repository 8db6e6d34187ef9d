"""Do selections, orders and layer policies pay, at equal steps and at equal time? Through `gradwise compare`.

    python -m benchmarks.compare.run --task small_llama       # 9 M parameters, 5 seeds, 8 arms
    python -m benchmarks.compare.run --task smollm2 --jobs 2  # SmolLM2-135M, GSM8K, 3 seeds

First each arm's learning rate (`rates`), then one folder of `gradwise compare` for every table. Chosen rates
are kept, and so are finished runs: at equal steps those in the result file, at equal time those in
`build/compare`. `--budgets steps` makes only one of the tables, `--seeds` changes the number of runs of each
arm.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.command_line import Script, silence_libraries
from benchmarks.common.folders import BUILD, RESULTS, ROOT
from benchmarks.common.result_file import ResultFile
from benchmarks.compare.rates import SEED, tune, untrained_loss
from benchmarks.compare.task import Comparison, Task
from benchmarks.compare.tasks import TASKS
from gradwise.recipe.yaml_text import read_yaml
from gradwise.report.reading import HELD_OUT_LOSS, RunResult, read_results

FOLDER = BUILD / "compare"
SAME_MODEL = 1e-3
"""Largest difference between two losses before training, in nats, that rounding explains. The small Llama had
6.866 built on an AMD processor and 6.816 on an Intel one."""


class Benchmark:
    """The learning rates, then the comparisons."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.task: Task = TASKS[options.task]()
        path = options.out or RESULTS / f"compare-{self.task.name}.json"
        self.result = ResultFile(path, "compare", self.task.settings(SEED), options.threads)

    def run(self) -> None:
        """Everything that the command line names."""
        self.task.prepare()
        self._check_model()
        for arm in self.task.first_rates:
            shared = FOLDER / f"{self.task.name}-rates"
            self.result.once(f"tuning/{arm}", lambda arm=arm, shared=shared: tune(self.task, arm, shared))
        for comparison in self.task.comparisons:
            if comparison.budget in (self.options.budgets or [comparison.budget]):
                self.compare(comparison)
        print(f"results in {self.result.path}", flush=True)

    def _check_model(self) -> None:
        """Refuse a result file of another model: one that is trained here comes out different on each kind of
        processor, and runs that started from different weights must not be paired."""
        loss = untrained_loss(self.task)
        self.result.once("untrained/check", lambda: {"loss": loss})
        before = self.result["untrained/check"]["loss"]
        if abs(loss - before) > SAME_MODEL:
            raise SystemExit(
                f"{self.result.path} is of another model: before training its loss is {before:.4f}, and here "
                f"{loss:.4f}. Give --out a new file."
            )

    def compare(self, comparison: Comparison) -> None:
        """One table: the missing runs, round by round; after each call the result file gets what is there."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.options.threads), "HF_HUB_OFFLINE": "1"}
        for last in range(1, len(comparison.rounds) + 1):
            for arms, seeds in self._calls(comparison, last):
                command = self.task.command(comparison, seeds, arms)
                command += ["--jobs", str(self.options.jobs)]
                print(f"{time.strftime('%H:%M:%S')} {shlex.join(command)}", flush=True)
                done = subprocess.run([sys.executable, "-m", *command], env=environment, cwd=ROOT)
                self._keep(comparison)
                if done.returncode:
                    raise SystemExit("Some runs are missing; run the same command to resume.")

    def _calls(self, comparison: Comparison, last: int) -> list[tuple[list[str], list[int]]]:
        """Arms and seeds of each call of `gradwise compare` up to a round.

        At equal steps a run does not depend on the others, and only what the result file lacks is made, by
        arms that lack the same seeds. At equal time all runs share the budget and the speeds in their folder.
        """
        arms = [arm for together in comparison.rounds[:last] for arm in together]
        seeds = list(range(self.options.seeds or self.task.seeds))
        if comparison.budget == "time":
            return [(arms, seeds)]
        return missing(arms, seeds, lambda arm, seed: self._has(f"{comparison.budget}/{arm}/{seed}"))

    def _has(self, key: str) -> bool:
        """Whether the result file has a run that did not fail."""
        return key in self.result and self.result[key]["loss"] is not None

    def _keep(self, comparison: Comparison) -> None:
        for name, entry in entries(FOLDER / f"{self.task.name}-{comparison.budget}").items():
            key = f"{comparison.budget}/{name}"
            # Finished runs keep the session they were made in.
            if not self._has(key):
                self.result.add(key, entry)


def missing(
    arms: Sequence[str], seeds: Sequence[int], has: Callable[[str, int], bool]
) -> list[tuple[list[str], list[int]]]:
    """Arms that lack the same seeds, with these seeds.

    >>> missing(["a", "b", "c"], [0, 1], lambda arm, seed: arm == "a" or (arm, seed) == ("b", 0))
    [(['b'], [1]), (['c'], [0, 1])]
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for arm in arms:
        if lacks := tuple(seed for seed in seeds if not has(arm, seed)):
            groups.setdefault(lacks, []).append(arm)
    return [(together, list(lacks)) for lacks, together in groups.items()]


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Results of the runs in a folder of `gradwise compare`, by `arm/seed`; `loss` is None for failed
    runs."""
    return {
        f"{run.arm}/{run.seed}": _entry(folder / "runs" / run.arm / f"seed-{run.seed}", run)
        for run in read_results(folder).runs
        if run.finished or run.failure
    }


def _entry(folder: Path, run: RunResult) -> dict[str, Any]:
    if run.failure:
        return {"arm": run.arm, "seed": run.seed, "loss": None, "failure": run.failure}
    scores = {name: score.value for name, score in run.scores.items()}
    below = f"{HELD_OUT_LOSS}/"
    return {
        "arm": run.arm,
        "seed": run.seed,
        "loss": scores[HELD_OUT_LOSS],
        "domains": {name.removeprefix(below): v for name, v in scores.items() if name.startswith(below)},
        "learning_rate": read_yaml(folder / "recipe.yaml")["train"]["learning_rate"],
        "steps": run.steps,
        "epochs": run.epochs,
        "tokens": run.tokens,
        "seconds": round(run.seconds, 3),
        "deciding_seconds": round(run.deciding, 3),
        "curve": [[point.step, round(point.seconds, 3), point.loss] for point in run.curve],
    }


SCRIPT = Script(__doc__, "compare-TASK")
SCRIPT.add_argument("--task", choices=list(TASKS), default="small_llama")
SCRIPT.add_argument("--budgets", nargs="+", choices=("steps", "time"), help="default: all of the task's")
SCRIPT.add_argument("--seeds", type=int, help="runs of each arm (default: the task's)")
SCRIPT.add_argument("--jobs", type=int, default=1, help="runs at a time")
SCRIPT.add_argument("--threads", type=int, default=1, help="threads of each run")


def main() -> None:
    silence_libraries()
    Benchmark(SCRIPT.parse_args()).run()


if __name__ == "__main__":
    main()
