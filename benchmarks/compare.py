"""Does choosing samples or layers pay, at equal cost? Baselines, through `gradwise compare`.

    python benchmarks/compare.py --task small_llama       # 9 M parameters, 5 seeds, 8 arms
    python benchmarks/compare.py --task smollm2           # SmolLM2-135M, GSM8K, 3 seeds, three arms at a time

First each arm's learning rate (`compare_rates.py`), then one `gradwise compare` for every table, as a user
would call it, at equal steps and at equal time. Everything goes on where it was stopped: rates that are
chosen stay, and so do the runs in `build/compare`. `--budgets steps` does only one of the tables,
`--seeds` more or fewer runs of each arm.

The recipes and arms are in `compare/`, what they name is made in `build` (`compare_tasks.py`). `python
benchmarks/results.py` makes `docs/results.md` of the result files.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Before torch is imported: two thread pools on a busy machine wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import transformers
from compare_finished import entries, figure
from compare_rates import SEED, tune, untrained_loss
from compare_tables import FIGURES, figure_name
from compare_tasks import TASKS, Comparison, Task, task
from frame import RESULTS, ROOT, ResultFile

from gradwise.recipe.yaml_text import read_yaml

BUILD = ROOT / "build" / "compare"


class Benchmark:
    """The learning rates, then the comparisons, each finished piece kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.task: Task = task(options.task)
        path = options.out or RESULTS / f"compare-{self.task.name}.json"
        self.result = ResultFile(path, "compare", settings(self.task), options.threads)

    def run(self) -> None:
        """Everything asked for."""
        self.task.prepare()
        if "untrained/check" not in self.result:
            self.result.add("untrained/check", {"loss": untrained_loss(self.task)})
        self.tune()
        for comparison in self.task.comparisons:
            if comparison.budget in (self.options.budgets or [comparison.budget]):
                self.compare(comparison)
        print(f"results in {self.result.path}", flush=True)

    def tune(self) -> None:
        """Each arm's learning rate, where it has none."""
        for arm in self.task.first_rates:
            if (key := f"tuning/{arm}") not in self.result:
                self.result.add(key, tune(self.task, arm, BUILD / f"{self.task.name}-rates"))

    def compare(self, comparison: Comparison) -> None:
        """One table: the runs that are missing, round by round, and after each what there is so far."""
        folder = BUILD / f"{self.task.name}-{comparison.budget}"
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.options.threads), "HF_HUB_OFFLINE": "1"}
        for last in range(1, len(comparison.rounds) + 1):
            command = self._command(comparison, last, folder)
            print(f"{time.strftime('%H:%M:%S')} {shlex.join(command)}", flush=True)
            done = subprocess.run([sys.executable, "-m", *command], env=environment, cwd=ROOT)
            self._keep(comparison, folder, shlex.join(command))
            if done.returncode:
                raise SystemExit(f"{folder}: not all runs are there; run the same command to go on.")

    def _keep(self, comparison: Comparison, folder: Path, command: str) -> None:
        self.result.add(f"command/{comparison.budget}", {"command": command})
        for name, entry in entries(folder).items():
            key = f"{comparison.budget}/{name}"
            # What is there already keeps the session it was made in.
            if key not in self.result or self.result[key]["loss"] is None:
                self.result.add(key, entry)
        drawn = figure(folder)
        if drawn is not None and self.result.path.parent == RESULTS:
            FIGURES.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(drawn, FIGURES / figure_name(self.task.name, comparison.budget))

    def _command(self, comparison: Comparison, last: int, folder: Path) -> list[str]:
        rounds = comparison.rounds[:last]
        arms = [self.task.word(arm) for together in rounds for arm in together]
        size = [] if self.task.fraction is None else ["--fraction", str(self.task.fraction)]
        return [
            "gradwise", "compare", str(self.task.recipe_path.relative_to(ROOT)),
            "--arms", ",".join(arms), "--seeds", str(self.options.seeds or self.task.seeds),
            "--budget", comparison.budget, "--reference", comparison.references[0],
            "--jobs", str(self.options.jobs), "--discard-models", *size,
            "--out", str(folder.relative_to(ROOT)),
        ]  # fmt: skip


def settings(made: Task) -> dict[str, Any]:
    """What all entries of a result file share, in plain values."""
    recipe = read_yaml(made.recipe_path)
    if made.words:
        # It may still be chosen; every run says which it had.
        del recipe["train"]["learning_rate"]
    shared = {"fraction": made.fraction, "words": made.words} if made.words else {}
    return {
        "name": made.name,
        "told": made.told,
        "recipe": recipe,
        "tuning_steps": made.tuning_steps,
        "tuning_seed": SEED,
        "comparisons": [
            {"budget": one.budget, "references": list(one.references)} for one in made.comparisons
        ],
        **shared,
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=list(TASKS), default="small_llama")
    parser.add_argument("--budgets", nargs="+", choices=("steps", "time"), help="both unless given")
    parser.add_argument("--seeds", type=int, help="runs of each arm; the task's own number unless given")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--out", type=Path, help="result file; gone on with if it exists")
    return parser.parse_args(arguments)


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    Benchmark(parsed()).run()


if __name__ == "__main__":
    main()
