"""Whether the dial is obeyed: runs at several overheads, what was forecast, what was spent."""

import tempfile
from pathlib import Path
from typing import Any

from grace_pools import clean_recipe

from gradwise.recipe import Recipe
from gradwise.report.reading import NOT_DECIDING, read_lines, read_run
from gradwise.run import train

OVERHEADS = (0.05, 0.15, 0.5)
KINDS = ("head_norm", "alignment")
STEPS = 60


def recipe(overhead: float, kind: str, seed: int) -> Recipe:
    """A third of the clean pool, on the small Llama."""
    select = {"method": "grace", "fraction": 0.3, "importance": kind, "overhead": overhead}
    return clean_recipe(STEPS, select, seed, save_strategy="no", logging_steps=1)


def run(overhead: float, kind: str, seed: int) -> dict[str, Any]:
    """What one run forecast and spent, in seconds; `training` is all that was charged and not deciding."""
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as name:
        folder = Path(name)
        done = train(recipe(overhead, kind, seed), folder, tell=lambda _: None, progress=False)
        if not done.finished:
            raise SystemExit("Stopped; run the same command again.")
        events, result = read_lines(folder / "events.jsonl"), read_run(folder, "grace", seed)
    told = next(event for event in events if event["event"] == "forecast")
    spent = {"speeds": told["seconds"]}
    for event in events:
        if event["event"] not in NOT_DECIDING and event["event"] != "forecast":
            spent[event["event"]] = spent.get(event["event"], 0.0) + event["seconds"]
    deciding = sum(seconds for name, seconds in spent.items() if name != "speeds")
    training = result.seconds - result.deciding
    return {
        "overhead": overhead,
        "importance": kind,
        "seed": seed,
        "candidates": told["candidates"],
        "every": told["every"],
        "refreshes": sum(event["event"] == "refresh" for event in events),
        "forecast": {"deciding": round(told["first"] + told["refreshes"], 2), "training": told["training"]},
        "spent": {"deciding": round(deciding, 2), "training": round(training, 2)},
        "parts": {name: round(seconds, 2) for name, seconds in spent.items()},
        "share": round(deciding / training, 4),
        "share_with_speeds": round((deciding + spent["speeds"]) / training, 4),
    }
