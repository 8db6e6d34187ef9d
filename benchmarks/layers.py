"""Does training two blocks at a time pay? LISA and GRASS against full training and LoRA.

    python benchmarks/layers.py --model smollm2 --seeds 0,1,2      # SmolLM2-135M, GSM8K; an hour on a CPU
    python benchmarks/layers.py --model stories --seeds 0,1,2,3,4  # 0.26 M parameters, plays; minutes

Four parts, each kept in the result file as soon as it is done, so that a stopped benchmark goes on where it
was and more arms or seeds can be added later:

- tuning: each arm's learning rate, from a small grid, by a short run on seed 100 and held-out training
  records;
- quality: held-out loss, wall-clock and memory by part at equal optimizer steps, arms paired by seed (same
  samples in the same order), each run in a process of its own;
- timing: step time with all arms in turn in one process, as ratios to full training;
- memory: peaks again, by short runs under an allocator that keeps no holes.

`python benchmarks/results.py` makes `docs/results.md` of the result files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from frame import RESULTS, ResultFile, load_average, names_of
from layer_arms import MAIN, Arm, Task, arms, settings, task, write_data

HERE = Path(__file__).resolve().parent
PARTS = ("tuning", "quality", "timing", "memory")
MEMORY_STEPS = 2
"""From the second step on everything is there: weights, gradients, state, activations."""

MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
"""Makes glibc take every block of 256 KiB or more from the system and give it back when freed. By default
it raises that bound up to 32 MiB as it goes, and small blocks that live on then pin large freed ones:
measured on LoRA, 0.8 of 2.4 GiB of the peak were such holes."""
TUNING_SEED = 100


class Benchmark:
    """The parts in turn, each finished piece kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        changed = {
            "steps": options.steps, "batch_size": options.batch_size, "micro_batch": options.micro_batch,
            "period": options.period, "held_out": options.held_out,
        }  # fmt: skip
        self.overrides = {name: value for name, value in changed.items() if value is not None}
        self.made: Task = replace(task(options.model), **self.overrides)
        self.arms: dict[str, Arm] = arms(self.made.period)
        self.tuning_steps = options.tuning_steps or max(1, self.made.steps // 2)
        told = {**settings(self.made), "tuning_steps": self.tuning_steps, "tuning_seed": TUNING_SEED}
        path = options.out or RESULTS / f"layers-{options.model}.json"
        self.result = ResultFile(path, "layers", told, options.threads)
        self.folder = tempfile.TemporaryDirectory(prefix="gradwise-bench-")
        self.files = write_data(self.made, Path(self.folder.name))

    def run(self) -> None:
        """All parts asked for."""
        for part in self.options.parts:
            getattr(self, part)()
        print(f"results in {self.result.path}", flush=True)

    def tuning(self) -> None:
        """Choose each arm's learning rate; all of an arm's tries in one process."""
        for name in self._tuned_arms():
            key = f"tuning/{name}"
            if key in self.result:
                continue
            rates = self.made.grids[self.arms[name].kind]
            tries = [self._job(name, TUNING_SEED, rate, "tuning", self.tuning_steps) for rate in rates]
            results = self._work("layer_run.py", runs=tries)
            losses = {found["learning_rate"]: found["loss"] for found in results}
            finite = {rate: loss for rate, loss in losses.items() if loss is not None}
            chosen = min(finite, key=lambda rate: finite[rate])
            entry = {
                "chosen": chosen,
                "at_edge": chosen in (min(rates), max(rates)),
                "tries": [{"learning_rate": rate, "loss": losses[rate]} for rate in rates],
                "seconds": round(sum(found.get("seconds", 0.0) for found in results), 1),
            }
            self._keep(key, entry)

    def quality(self) -> None:
        """Held-out loss and memory of every arm and seed; seeds outermost, to keep them paired."""
        if "untrained/held_out" not in self.result:
            untrained = [{"arm": None, "test": "held_out"}]
            self._keep("untrained/held_out", self._work("layer_run.py", runs=untrained)[0])
        for place, seed in enumerate(self.options.seeds):
            for name in self._chosen_arms():
                key = f"quality/{name}/{seed}"
                if key in self.result or (place and not self.options.arms and name not in MAIN):
                    continue
                rate, tuned = self._rate(name)
                found = self._work(
                    "layer_run.py", runs=[self._job(name, seed, rate, "held_out", self.made.steps)]
                )[0]
                self._keep(key, {"arm": name, "seed": seed, "tuned": tuned, **found})

    def memory(self) -> None:
        """Peak memory again, by short runs in which the allocator keeps no holes."""
        for name in self._chosen_arms():
            if (key := f"memory/{name}") in self.result:
                continue
            job = self._job(name, 0, self._rate(name)[0], "tuning", MEMORY_STEPS)
            found = self._work("layer_run.py", environment=MAPPED, runs=[job])[0]
            self._keep(key, {"arm": name, "seed": 0, **found})

    def timing(self) -> None:
        """Step times, all arms in one process."""
        if "timing/steps" in self.result:
            return
        entry = self._work("layer_time.py", arms=self._chosen_arms(), rounds=self.options.rounds, seed=0)
        self._keep("timing/steps", entry)

    def _chosen_arms(self) -> list[str]:
        return self.options.arms or list(self.arms)

    def _tuned_arms(self) -> list[str]:
        return list(dict.fromkeys(self.arms[name].tuned_as or name for name in self._chosen_arms()))

    def _rate(self, name: str) -> tuple[float, bool]:
        """The learning rate chosen for an arm, or the middle of its grid where nothing was tuned."""
        arm = self.arms[name]
        key = f"tuning/{arm.tuned_as or name}"
        if key in self.result:
            return self.result[key]["chosen"], True
        grid = self.made.grids[arm.kind]
        return grid[len(grid) // 2], False

    def _job(self, name: str, seed: int, rate: float, test: str, steps: int) -> dict[str, Any]:
        return {"arm": name, "seed": seed, "rate": rate, "test": test, "steps": steps}

    def _work(self, script: str, *, environment: dict[str, str] | None = None, **what: Any) -> Any:
        """Run a script in a process of its own on a job, and read what it wrote."""
        job = {
            "task": self.options.model, "overrides": self.overrides, "files": self.files,
            "threads": self.options.threads, **what,
        }  # fmt: skip
        threads = str(self.options.threads)
        fixed = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        with tempfile.TemporaryDirectory() as folder:
            job_path, out_path = Path(folder) / "job.json", Path(folder) / "out.json"
            job_path.write_text(json.dumps(job))
            command = [sys.executable, str(HERE / script), str(job_path), str(out_path)]
            together = {**os.environ, **fixed, **(environment or {})}
            subprocess.run(command, check=True, env=together, stdout=sys.stderr)
            return json.loads(out_path.read_text())

    def _keep(self, key: str, entry: dict[str, Any]) -> None:
        self.result.add(key, entry)
        told = {
            name: entry[name]
            for name in ("chosen", "learning_rate", "loss", "seconds", "tries")
            if name in entry
        }
        print(f"{time.strftime('%H:%M:%S')} {key} {told} load {load_average()}", flush=True)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("smollm2", "stories"), default="smollm2")
    parser.add_argument(
        "--arms",
        type=names_of(arms(1)),
        help="comma-separated; all of them, extra ones on one seed, unless given",
    )
    parser.add_argument(
        "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2]
    )
    parser.add_argument(
        "--parts", type=names_of(PARTS), default=list(PARTS), help="comma-separated, of " + ", ".join(PARTS)
    )
    parser.add_argument("--steps", type=int, help="optimizer steps of a run")
    parser.add_argument(
        "--tuning-steps", type=int, help="optimizer steps of a run that tunes; half as many unless given"
    )
    parser.add_argument("--batch-size", type=int, help="samples per optimizer step")
    parser.add_argument("--micro-batch", type=int, help="samples per pass")
    parser.add_argument("--period", type=int, help="optimizer steps from one draw of layers to the next")
    parser.add_argument("--held-out", type=int, help="records to evaluate on")
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each arm")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="result file; gone on with if it exists")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    Benchmark(parsed()).run()
