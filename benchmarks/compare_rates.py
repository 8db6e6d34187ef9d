"""Each arm's learning rate for `compare.py`: by short runs on a seed and held-out records of their own.

Two or three neighbouring rates to begin with; while the best lies at an end, the next one beyond it. The
choice goes into the arm's YAML file, which is what `gradwise compare` reads.
"""

import math
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare_tasks import RATES, Task

from gradwise.atomic import write_text
from gradwise.data import Data, load
from gradwise.evaluation.held_out import held_out_loss
from gradwise.recipe import Model
from gradwise.report.reading import HELD_OUT_LOSS, read_run
from gradwise.run import train
from gradwise.run.model import load_model, load_tokenizer

SEED = 100
"""Not among the seeds of any table."""


@dataclass(frozen=True)
class Try:
    """One short run; `loss` is None where it was not finite."""

    learning_rate: float
    loss: float | None


def tune(task: Task, arm: str, shared: Path) -> dict[str, Any]:
    """The entry of one arm: the rate chosen, whether more might have been, every try.

    What is measured of the pool is the same for all, and kept in the folder `shared`.
    """
    begun = time.perf_counter()
    tries = search(task.first_rates[arm], lambda rate: loss_of_try(task, arm, rate, shared))
    best = _best(tries)
    entry = {
        "chosen": best.learning_rate,
        "at_edge": best.learning_rate in (tries[0].learning_rate, tries[-1].learning_rate),
        "tries": [vars(one) for one in tries],
        "seed": SEED,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    write_rate(task.rate_path(arm), best.learning_rate)
    return entry


def search(first: tuple[float, ...], loss_at: Any) -> list[Try]:
    """Tries in ascending order of the rate, the best of them inside wherever `RATES` reaches that far.

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
    """The loss after one run of the arm's recipe on the tuning seed, on the records kept for this.

    Half as many steps as in the tables.
    """
    changes = {
        "data": {"validation": [{"path": path, "domain": name} for name, path in task.check_rates.items()]},
        "train": {"learning_rate": rate, "max_steps": task.tuning_steps, "eval_strategy": "no"},
        "seed": SEED,
    }
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
        done = train(task.recipe(arm, changes), folder, tell=lambda _: None, progress=False, shared=shared)
        if not done.finished:
            raise SystemExit("Stopped; run the same command to go on.")
        scores = read_run(Path(folder), arm, SEED).scores
    loss = scores[HELD_OUT_LOSS].value if HELD_OUT_LOSS in scores else math.nan
    print(f"{time.strftime('%H:%M:%S')} {task.name} {arm} rate {rate:g}: {loss:.4f}", flush=True)
    return loss if math.isfinite(loss) else None


def untrained_loss(task: Task) -> float:
    """The loss of the model as it is, on the held-out records of the tables."""
    recipe = task.recipe(next(iter(task.words), "full"), {})
    assert isinstance(recipe.model, Model) and isinstance(recipe.data, Data)
    tokenizer, model = load_tokenizer(recipe.model), load_model(recipe.model)
    held_out = load(recipe.data, "validation", tokenizer, progress=False).dataset
    return held_out_loss(model, tokenizer, held_out, progress=False)[HELD_OUT_LOSS].value


def write_rate(path: Path, rate: float) -> None:
    """Put the rate in an arm's file, the rest of which stays as it is."""
    text = path.read_text()
    told = f"{rate:.0e}".replace("e-0", "e-").replace("e+0", "e")
    changed, count = re.subn(r"learning_rate: [^,}\s]+", f"learning_rate: {told}", text)
    if count != 1:
        raise SystemExit(f"{path} must name learning_rate once; found it {count} times.")
    if changed != text:
        write_text(path, changed)
