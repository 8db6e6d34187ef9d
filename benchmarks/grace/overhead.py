"""Does GRACE respect `overhead`? Runs at three settings, forecast against actual seconds.

    python -m benchmarks.grace.overhead         # a quarter of an hour, after the small Llama is made

The small Llama on 30 % of the clean pool, 60 steps of 6 samples. Seconds for decisions as forecast before the
first step and as spent; `share` is decisions over training, in brackets with the measurement of speeds
included.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.command_line import Script
from benchmarks.common.tables import Claim, Content, Page, of_kind, table
from benchmarks.grace.pools import clean_recipe
from gradwise.recipe import Recipe
from gradwise.report.reading import NOT_DECIDING, read_lines, read_run
from gradwise.run import train

OVERHEADS = (0.05, 0.15, 0.5)
KINDS = ("head_norm", "alignment")
STEPS = 60


def recipe(overhead: float, kind: str, seed: int) -> Recipe:
    """The small Llama on a third of the clean pool."""
    select = {"method": "grace", "fraction": 0.3, "importance": kind, "overhead": overhead}
    return clean_recipe(STEPS, select, seed, save_strategy="no", logging_steps=1)


def measure(overhead: float, kind: str, seed: int) -> dict[str, Any]:
    """Forecast and actual seconds of one run; `training` is everything charged except decisions."""
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as name:
        folder = Path(name)
        done = train(recipe(overhead, kind, seed), folder, tell=lambda _: None, progress=False)
        if not done.finished:
            raise SystemExit("Interrupted; run the same command to resume.")
        events, result = read_lines(folder / "events.jsonl"), read_run(folder, "grace", seed)
    forecast = next(event for event in events if event["event"] == "forecast")
    spent = {"speeds": forecast["seconds"]}
    for event in events:
        if event["event"] not in NOT_DECIDING and event["event"] != "forecast":
            spent[event["event"]] = spent.get(event["event"], 0.0) + event["seconds"]
    deciding = sum(seconds for name, seconds in spent.items() if name != "speeds")
    training = result.seconds - result.deciding
    planned = round(forecast["first"] + forecast["refreshes"], 2)
    return {
        "overhead": overhead, "importance": kind, "seed": seed, "candidates": forecast["candidates"],
        "every": forecast["every"], "refreshes": sum(event["event"] == "refresh" for event in events),
        "forecast": {"deciding": planned, "training": forecast["training"]},
        "spent": {"deciding": round(deciding, 2), "training": round(training, 2)},
        "parts": {name: round(seconds, 2) for name, seconds in spent.items()},
        "share": round(deciding / training, 4),
        "share_with_speeds": round((deciding + spent["speeds"]) / training, 4),
    }  # fmt: skip


def page(content: Content) -> Page:
    head = ["importance, overhead", "seed", "candidates", "refreshes", "forecast s", "spent s"]
    entries = list(of_kind(content, "overhead").values())
    rows = [
        [
            f"`{entry['importance']}`, {entry['overhead']:g}", str(entry["seed"]), str(entry["candidates"]),
            str(entry["refreshes"]), f"{entry['forecast']['deciding']:.1f}",
            f"{entry['spent']['deciding']:.1f}",
            f"{entry['spent']['deciding'] / entry['forecast']['deciding']:.2f}",
            f"{entry['share']:.3f} ({entry['share_with_speeds']:.3f})",
        ]
        for entry in entries
    ]  # fmt: skip
    ratios = [entry["share"] / entry["overhead"] for entry in entries]
    whole = [entry["share_with_speeds"] / entry["overhead"] for entry in entries]
    return Page(
        sections=[table([*head, "spent / forecast", "share"], rows)],
        claims=[
            Claim(
                "Time for decisions over the time that `overhead` allows; with the measuring of speeds",
                f"{min(ratios):.2f} to {max(ratios):.2f}; {min(whole):.2f} to {max(whole):.2f}",
                str(len({entry["seed"] for entry in entries})),
                "; ".join("at most 1" if max(each) <= 1 else "above 1" for each in (ratios, whole)),
            )
        ],
    )


SCRIPT = Script(__doc__, "grace-overhead")
SCRIPT.add_argument("--seeds", type=int, default=2, help="runs at each overhead (default: 2)")


def main() -> None:
    options, result = SCRIPT.start()
    for kind in KINDS:
        for overhead in OVERHEADS:
            for seed in range(options.seeds):
                result.once(f"overhead/{kind}/{overhead:g}/{seed}", partial(measure, overhead, kind, seed))


if __name__ == "__main__":
    main()
