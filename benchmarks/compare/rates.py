"""Each arm's learning rate: by short runs on a seed and held-out records that no table uses.

Two or three neighbouring rates first; while the best one is at an end, the next beyond it. The choice is
written into the YAML file that `gradwise compare` reads.
"""

import math
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.task import Task
from gradwise.atomic import write_text
from gradwise.data import Data
from gradwise.data.parts import load_parts
from gradwise.evaluation.held_out import held_out_loss
from gradwise.recipe import Model
from gradwise.report.reading import HELD_OUT_LOSS, read_run
from gradwise.run import train
from gradwise.run.model import load_model, load_tokenizer

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Learning rates to choose from, half a decade apart."""
SEED = 100
"""Not among the seeds of any table."""


@dataclass(frozen=True)
class Try:
    """One short run; `loss` is None if it is not finite."""

    learning_rate: float
    loss: float | None


def tune(task: Task, arm: str, shared: Path) -> dict[str, Any]:
    """The entry of one arm: the chosen rate, whether it is at the edge of the grid, every try.

    Signals of the pool are the same for all runs and are stored in the folder `shared`.
    """
    start = time.perf_counter()
    tries = search(task.first_rates[arm], lambda rate: loss_of_try(task, arm, rate, shared))
    best = _best(tries)
    write_rate(task.rate_path(arm), best.learning_rate)
    return {
        "chosen": best.learning_rate,
        "at_edge": best.learning_rate in (tries[0].learning_rate, tries[-1].learning_rate),
        "tries": [vars(one) for one in tries],
        "seed": SEED,
        "seconds": round(time.perf_counter() - start, 1),
    }


def search(first: tuple[float, ...], loss_at: Callable[[float], float | None]) -> list[Try]:
    """Tries in ascending order of the rate, with the best one inside as far as `RATES` allows.

    >>> [one.learning_rate for one in search((1e-4, 3e-4), lambda rate: abs(rate - 1e-3))]
    [0.0001, 0.0003, 0.001, 0.003]
    """
    tries = {rate: Try(rate, loss_at(rate)) for rate in first}
    while (beyond := _beyond(list(tries.values()))) is not None:
        tries[beyond] = Try(beyond, loss_at(beyond))
    return sorted(tries.values(), key=lambda one: one.learning_rate)


def _beyond(tries: list[Try]) -> float | None:
    rates = sorted(one.learning_rate for one in tries)
    best = RATES.index(_best(tries).learning_rate)
    for place, end in ((best - 1, rates[0]), (best + 1, rates[-1])):
        if RATES[best] == end and 0 <= place < len(RATES) and RATES[place] not in rates:
            return RATES[place]
    return None


def _best(tries: list[Try]) -> Try:
    return min(tries, key=lambda one: math.inf if one.loss is None else one.loss)


def loss_of_try(task: Task, arm: str, rate: float, shared: Path) -> float | None:
    """Loss on the records for this purpose, after one run of the arm on the tuning seed."""
    changes = {
        "data": {"validation": [{"path": path, "domain": name} for name, path in task.check_rates.items()]},
        "train": {"learning_rate": rate, "max_steps": task.tuning_steps, "eval_strategy": "no"},
        "seed": SEED,
    }
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
        done = train(task.recipe(arm, changes), folder, tell=lambda _: None, progress=False, shared=shared)
        if not done.finished:
            raise SystemExit("Interrupted; run the same command to resume.")
        scores = read_run(Path(folder), arm, SEED).scores
    loss = scores[HELD_OUT_LOSS].value if HELD_OUT_LOSS in scores else math.nan
    print(f"{time.strftime('%H:%M:%S')} {task.name} {arm} rate {rate:g}: {loss:.4f}", flush=True)
    return loss if math.isfinite(loss) else None


def untrained_loss(task: Task) -> float:
    """Loss of the model before training, on the held-out records that measure the runs of the tables."""
    recipe = task.recipe(next(iter(task.arms)))
    assert isinstance(recipe.model, Model) and isinstance(recipe.data, Data)
    tokenizer, model = load_tokenizer(recipe.model), load_model(recipe.model)
    measuring = load_parts(recipe.data, tokenizer, goal=recipe.goal, progress=False).validation
    assert measuring is not None
    return held_out_loss(model, tokenizer, measuring.dataset, progress=False)[HELD_OUT_LOSS].value


def write_rate(path: Path, rate: float) -> None:
    """Put the rate in a YAML file; the rest of the file stays as it is."""
    text = path.read_text()
    written = f"{rate:.0e}".replace("e-0", "e-").replace("e+0", "e")
    changed, count = re.subn(r"learning_rate: [^,}\s]+", f"learning_rate: {written}", text)
    if count != 1:
        raise SystemExit(f"{path} must name learning_rate once; it does {count} times.")
    if changed != text:
        write_text(path, changed)
