"""DiReCT: exact, fast, large, and whether what it picks ends a run better.

    python benchmarks/direct.py                       # all parts; some two hours
    python benchmarks/direct.py --parts solver,million

Parts, each with a result file of its own in which every finished piece is kept, so that a stopped benchmark
goes on where it was:

- solver: the linear program against a general solver, the paper's problem against the published steps, and a
  whole selection on a small GPT-2, on one core;
- million: both objectives over a million stored gradients, on one core;
- curvature: which estimate finds the Hessian's stiff directions;
- sketch: what projecting gradients costs the choice, and what clipping them keeps out;
- decay_clean, decay_planted: the decay phase of the small Llama on what each way of finishing picks;
- decay_smollm2: the same with SmolLM2 and fewer arms; some forty minutes on two cores.

`python benchmarks/results.py` makes docs/results.md of the files.
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

import direct_curvature
import direct_decay
import direct_gpt2
import direct_scale
import direct_sketch
import torch
import transformers
from frame import RESULTS, ResultFile, parts_parser

PARTS = ("solver", "million", "curvature", "sketch", "decay_clean", "decay_planted", "decay_smollm2")


class Benchmark:
    """The parts in turn."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    def run(self) -> None:
        """All parts asked for."""
        for part in self.options.parts:
            path = (self.options.out or RESULTS) / f"direct-{part}.json"
            self.result = ResultFile(path, "direct", _settings(part), threads=torch.get_num_threads())
            getattr(self, part)()
            print(f"results in {self.result.path}", flush=True)

    def solver(self) -> None:
        """One core."""
        for kind in direct_scale.KINDS:
            for n in direct_scale.LINEAR_SIZES:
                self.result.once(f"linear/{kind}/{n}", partial(direct_scale.linear, kind, n))
        for n in direct_scale.SOLVER_SIZES:
            self.result.once(f"movement/{n}", partial(direct_scale.movement, n))
        self.result.once("gpt2/whole", direct_gpt2.selected)

    def million(self) -> None:
        """Each in a process whose peak memory is its own."""
        for objective in ("curvature", "paper"):
            self.result.once(f"million/{objective}", partial(_apart, objective))

    def curvature(self) -> None:
        """Overlaps and costs."""
        self.result.once("curvature/stories", direct_curvature.compared)

    def sketch(self) -> None:
        """Projected gradients against whole ones."""
        self.result.once("sketch/stories", direct_sketch.compared)

    def decay_clean(self) -> None:
        """Runs of all arms."""
        self._decay(direct_decay.SUBJECTS["decay_clean"])

    def decay_planted(self) -> None:
        """The same on the planted pool."""
        self._decay(direct_decay.SUBJECTS["decay_planted"])

    def decay_smollm2(self) -> None:
        """Fewer arms, of a model that was not made here."""
        subject = direct_decay.SUBJECTS["decay_smollm2"]
        self.result.once("start/smollm2", partial(direct_decay.at_start, subject))
        self._decay(subject)

    def _decay(self, subject: direct_decay.Subject) -> None:
        last, seeds = direct_decay.LAST_ARM, self.options.seeds or subject.seeds
        for arms in ([arm for arm in subject.arms if arm != last], [last]):
            for seed in range(seeds):
                for arm in arms:
                    self.result.once(f"decay/{arm}/{seed}", partial(direct_decay.run, subject, arm, seed))


def _settings(part: str) -> dict[str, Any]:
    return direct_decay.settings(part) if part in direct_decay.SUBJECTS else {"part": part}


def _apart(objective: str) -> dict[str, Any]:
    script = (
        "import direct_scale, json, sys; json.dump(direct_scale.million(sys.argv[2]), open(sys.argv[1], 'w'))"
    )
    with tempfile.TemporaryDirectory() as folder:
        out, here = Path(folder) / "out.json", Path(__file__).resolve().parent
        subprocess.run([sys.executable, "-c", script, str(out), objective], check=True, cwd=here)
        return json.loads(out.read_text())


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = parts_parser(__doc__, PARTS)
    parser.add_argument("--seeds", type=int, help="of the decay phase; 5 unless given, 3 of SmolLM2")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    Benchmark(parsed()).run()
