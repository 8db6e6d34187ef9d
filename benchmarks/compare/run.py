"""Do selections, orders and layer policies pay, at equal steps and at equal time? Through `gradwise compare`.

    python -m benchmarks.compare.run --task small_llama       # 9 M parameters, 5 seeds, 8 arms
    python -m benchmarks.compare.run --task smollm2 --jobs 2  # SmolLM2-135M, GSM8K, 3 seeds

First each arm's learning rate (`rates`), then one `gradwise compare` for every table. Chosen rates and
finished runs in `build/compare` are kept. `--budgets steps` makes only one of the tables, `--seeds` changes
the number of runs of each arm.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common.frame import BUILD, RESULTS, ROOT, ResultFile, Script, silence_libraries
from benchmarks.compare.rates import SEED, tune, untrained_loss
from benchmarks.compare.task import Comparison, Task
from benchmarks.compare.tasks import TASKS
from gradwise.recipe.yaml_text import read_yaml
from gradwise.report.reading import HELD_OUT_LOSS, RunResult, read_results

FOLDER = BUILD / "compare"


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
        self.result.once("untrained/check", lambda: {"loss": untrained_loss(self.task)})
        for arm in self.task.first_rates:
            shared = FOLDER / f"{self.task.name}-rates"
            self.result.once(f"tuning/{arm}", lambda arm=arm, shared=shared: tune(self.task, arm, shared))
        for comparison in self.task.comparisons:
            if comparison.budget in (self.options.budgets or [comparison.budget]):
                self.compare(comparison)
        print(f"results in {self.result.path}", flush=True)

    def compare(self, comparison: Comparison) -> None:
        """One table: the missing runs, round by round; after each round the result file gets what is
        there."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.options.threads), "HF_HUB_OFFLINE": "1"}
        for last in range(1, len(comparison.rounds) + 1):
            command = self.task.command(comparison, self.options.seeds or self.task.seeds, last)
            command += ["--jobs", str(self.options.jobs)]
            print(f"{time.strftime('%H:%M:%S')} {shlex.join(command)}", flush=True)
            done = subprocess.run([sys.executable, "-m", *command], env=environment, cwd=ROOT)
            self._keep(comparison)
            if done.returncode:
                raise SystemExit("Some runs are missing; run the same command to resume.")

    def _keep(self, comparison: Comparison) -> None:
        for name, entry in entries(FOLDER / f"{self.task.name}-{comparison.budget}").items():
            key = f"{comparison.budget}/{name}"
            # Finished runs keep the session they were made in.
            if key not in self.result or self.result[key]["loss"] is None:
                self.result.add(key, entry)


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
