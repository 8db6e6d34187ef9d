"""Does training two blocks at a time pay? LISA and GRASS against full training and LoRA.

    python -m benchmarks.layers.run --model smollm2 --seeds 0,1,2      # SmolLM2-135M, GSM8K; an hour on a CPU
    python -m benchmarks.layers.run --model stories --seeds 0,1,2,3,4  # 0.26 M parameters, plays; minutes

Four parts. Every finished measurement is kept, so that more arms or seeds can be added later:

- tuning: each arm's learning rate, from a small grid, by a short run on seed 100 and reserved training
  records;
- quality: held-out loss, seconds and memory by part at equal optimizer steps, arms paired by seed (the same
  samples in the same order), each run in a process of its own;
- timing: step times with all arms in turn in one process, as ratios to full training;
- memory: peaks again, by short runs with an allocator that leaves no holes.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common.command_line import Script, names_among
from benchmarks.common.folders import RESULTS
from benchmarks.common.memory import NO_HOLES
from benchmarks.common.own_process import in_own_process
from benchmarks.common.result_file import ResultFile, load_average
from benchmarks.layers.arms import MAIN, TASKS, Arm, Task, arms, settings, write_data

PARTS = ("tuning", "quality", "timing", "memory")
OVERRIDES = {
    "steps": "optimizer steps of a run",
    "tuning_steps": "optimizer steps of a tuning run",
    "batch_size": "samples per optimizer step",
    "micro_batch": "samples per forward/backward",
    "period": "optimizer steps from one draw of layers to the next",
    "held_out": "records of the evaluation",
}
"""Settings of a task that the command line can change."""
MEMORY_STEPS = 2
"""From the second step on all parts exist: weights, gradients, state, activations."""
TUNING_SEED = 100


class Benchmark:
    """The parts, one after the other."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        values = {name: getattr(options, name) for name in OVERRIDES}
        self.overrides = {name: value for name, value in values.items() if value is not None}
        self.task: Task = replace(TASKS[options.model](), **self.overrides)
        self.arms: dict[str, Arm] = arms(self.task.period)
        shared = {**settings(self.task), "tuning_seed": TUNING_SEED}
        path = options.out or RESULTS / f"layers-{options.model}.json"
        self.result = ResultFile(path, "layers", shared, options.threads)
        self.folder = tempfile.TemporaryDirectory(prefix="gradwise-bench-")
        self.files = write_data(self.task, Path(self.folder.name))

    def run(self) -> None:
        """All parts of the command line."""
        for part in self.options.parts:
            getattr(self, part)()
        print(f"results in {self.result.path}", flush=True)

    def tuning(self) -> None:
        """Choose each arm's learning rate; all runs of an arm in one process."""
        for name in dict.fromkeys(self.arms[name].tuned_as or name for name in self._arm_names()):
            if (key := f"tuning/{name}") in self.result:
                continue
            rates = self.task.grids[self.arms[name].kind]
            runs = self._train(
                [self._job(name, TUNING_SEED, r, "tuning", self.task.tuning_steps) for r in rates]
            )
            losses = {run["learning_rate"]: run["loss"] for run in runs}
            finite = {rate: loss for rate, loss in losses.items() if loss is not None}
            chosen = min(finite, key=lambda rate: finite[rate])
            entry = {
                "chosen": chosen,
                "at_edge": chosen in (min(rates), max(rates)),
                "tries": [{"learning_rate": rate, "loss": losses[rate]} for rate in rates],
                "seconds": round(sum(run.get("seconds", 0.0) for run in runs), 1),
            }
            self._keep(key, entry)

    def quality(self) -> None:
        """Held-out loss and memory of every arm and seed; seeds in the outer loop, to keep them paired."""
        if "untrained/held_out" not in self.result:
            self._keep("untrained/held_out", self._train([{"arm": None, "test": "held_out"}])[0])
        for place, seed in enumerate(self.options.seeds):
            for name in self._arm_names():
                key = f"quality/{name}/{seed}"
                if key in self.result or (place and not self.options.arms and name not in MAIN):
                    continue
                rate, tuned = self._rate(name)
                run = self._train([self._job(name, seed, rate, "held_out", self.task.steps)])[0]
                self._keep(key, {"arm": name, "seed": seed, "tuned": tuned, **run})

    def memory(self) -> None:
        """Peak memory again, by short runs in which the allocator leaves no holes."""
        for name in self._arm_names():
            if (key := f"memory/{name}") not in self.result:
                job = self._job(name, 0, self._rate(name)[0], "tuning", MEMORY_STEPS)
                self._keep(key, {"arm": name, "seed": 0, **self._train([job], NO_HOLES)[0]})

    def timing(self) -> None:
        """Step times, all arms in one process."""
        if "timing/steps" not in self.result:
            arguments = (self._arm_names(), self.options.rounds, 0)
            self._keep("timing/steps", self._call("benchmarks.layers.timing:measure", *arguments))

    def _arm_names(self) -> list[str]:
        return self.options.arms or list(self.arms)

    def _rate(self, name: str) -> tuple[float, bool]:
        """The learning rate chosen for an arm, or the middle of its grid if none was tuned; and which of the
        two."""
        arm = self.arms[name]
        key = f"tuning/{arm.tuned_as or name}"
        if key in self.result:
            return self.result[key]["chosen"], True
        grid = self.task.grids[arm.kind]
        return grid[len(grid) // 2], False

    def _job(self, name: str, seed: int, rate: float, test: str, steps: int) -> dict[str, Any]:
        return {"arm": name, "seed": seed, "rate": rate, "test": test, "steps": steps}

    def _train(self, runs: list[dict[str, Any]], environment: dict[str, str] | None = None) -> Any:
        return self._call("benchmarks.layers.training:run_all", runs, environment=environment)

    def _call(self, function: str, *arguments: Any, environment: dict[str, str] | None = None) -> Any:
        variables = {"OMP_NUM_THREADS": str(self.options.threads), **(environment or {})}
        shared = (self.options.model, self.overrides, self.files)
        return in_own_process(function, *shared, *arguments, environment=variables)

    def _keep(self, key: str, entry: dict[str, Any]) -> None:
        self.result.add(key, entry)
        shown = {
            name: entry[name] for name in ("chosen", "learning_rate", "loss", "seconds") if name in entry
        }
        print(f"{time.strftime('%H:%M:%S')} {key} {shown} load {load_average()}", flush=True)


SCRIPT = Script(__doc__, "layers-MODEL")
SCRIPT.add_argument("--model", choices=tuple(TASKS), default="smollm2")
SCRIPT.add_argument(
    "--arms",
    type=names_among(arms(1)),
    help="comma-separated (default: all, some of them on one seed only)",
)
SCRIPT.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
SCRIPT.add_argument(
    "--parts", type=names_among(PARTS), default=list(PARTS), help=f"comma-separated: {', '.join(PARTS)}"
)
for name, about in OVERRIDES.items():
    SCRIPT.add_argument(f"--{name.replace('_', '-')}", type=int, help=about)
SCRIPT.add_argument("--rounds", type=int, default=12, help="timed steps of each arm")
SCRIPT.add_argument("--threads", type=int, default=os.cpu_count() or 1)


def main() -> None:
    Benchmark(SCRIPT.parse_args()).run()


if __name__ == "__main__":
    main()
