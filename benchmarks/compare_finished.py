"""Reads the folder that `gradwise compare` leaves, into entries of a result file."""

from pathlib import Path
from typing import Any

from gradwise.recipe.yaml_text import read_yaml
from gradwise.report.reading import HELD_OUT_LOSS, RunResult, read_results


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """What each run came to, by `arm/seed`; `loss` is None where a run failed, with the reason."""
    results = read_results(folder)
    return {
        f"{run.arm}/{run.seed}": _entry(folder / "runs" / run.arm / f"seed-{run.seed}", run)
        for run in results.runs
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
        "tokens": run.tokens,
        "seconds": round(run.seconds, 3),
        "deciding_seconds": round(run.deciding, 3),
        "curve": [[point.step, round(point.seconds, 3), point.loss] for point in run.curve],
    }


def figure(folder: Path) -> Path | None:
    """The curves of loss against seconds, if they were drawn."""
    path = folder / "loss_by_seconds.png"
    return path if path.exists() else None
