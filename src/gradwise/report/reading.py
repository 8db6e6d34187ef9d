"""Reads what a comparison left behind: its `comparison.yaml` and its run directories. Writes nothing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gradwise.errors import CheckpointError, RecipeError
from gradwise.evaluation.settings import HELD_OUT_LOSS, Better
from gradwise.stored import damaged, read_json, read_lines
from gradwise.training.record_names import NOT_DECIDING, PASSES, PHASES, STATE, UPDATE


def deciding_seconds(events: Iterable[dict[str, Any]]) -> float:
    """Seconds that the decisions of a run took; events of one that was damaged may lack them."""
    return sum(event.get("seconds") or 0.0 for event in events if event["event"] not in NOT_DECIDING)


CHARGED = {
    "select": ("signals", "ngrams", "select_trial", "plan", "refresh", "epochs"),
    "order": ("order",),
    "layers": ("layers", "probe"),
    "anneal": ("anneal", "trial"),
    "measuring speeds": ("forecast",),
}
"""Events by what they are charged to."""


def charged(events: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each decision of a run."""
    all_events = list(events)
    return {
        name: sum(event.get("seconds") or 0.0 for event in all_events if event["event"] in kinds)
        for name, kinds in CHARGED.items()
    }


def expected_shares(events: Iterable[dict[str, Any]]) -> dict[str, float]:
    """What each decision was forecast to take, over the training time; without what was not known."""
    planned = next((event for event in events if event["event"] == "plan"), {})
    return {name: share for name, share in planned.get("expected", {}).items() if share is not None}


def measured_memory(events: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Bytes by part at the peak of each phase of a run; empty where none was measured.

    Forward and backward were followed in one early step; the optimizer state beside them is the largest that
    the run came to have, where it stays on the device.
    """
    measured = [event for event in events if event["event"] == "memory"]
    phases: dict[str, dict[str, int]] = {}
    for event in measured:
        for name, parts in event["phases"].items():
            phases[name] = max(phases.get(name, {}), parts, key=lambda each: sum(each.values()))
    if PASSES in phases and UPDATE in phases and not any(event.get("host") for event in measured):
        largest = max(event["phases"][UPDATE][STATE] for event in measured if UPDATE in event["phases"])
        phases[PASSES] = phases[PASSES] | {STATE: largest}
    return {name: phases[name] for name in PHASES if name in phases}


@dataclass(frozen=True)
class RunScore:
    """What a finished run was measured to be."""

    value: float
    better: Better
    samples: int | None = None
    """Samples that it is the mean of, where the file says so."""


@dataclass(frozen=True)
class Point:
    """One evaluation on the way."""

    step: int
    tokens: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class RunResult:
    """One run of a comparison, as far as it has come."""

    arm: str
    seed: int
    finished: bool = False
    failure: str | None = None
    """Why it failed, if it did."""
    scores: dict[str, RunScore] = field(default_factory=dict)
    curve: tuple[Point, ...] = ()
    steps: int = 0
    tokens: int = 0
    """Input tokens trained on."""
    seconds: float = 0.0
    """Charged: deciding and steps, not evaluation."""
    deciding: float = 0.0
    memory: int | None = None
    """Bytes at the peak."""
    epochs: float | None = None
    """Over the selection."""
    share: float | None = None
    """Share of the training data that the first selection kept."""

    @property
    def lowest(self) -> float | None:
        """The lowest held-out loss on the way or at the end."""
        losses = [point.loss for point in self.curve if math.isfinite(point.loss)]
        losses += [score.value for name, score in self.scores.items() if name == HELD_OUT_LOSS]
        return min(losses, default=None)


@dataclass(frozen=True)
class ArmPair:
    """Two arms that are compared."""

    arm: str
    against: str
    differs: tuple[str, ...] = ()
    """Sections of the recipe in which they differ; empty where a folder does not say."""


@dataclass(frozen=True)
class Results:
    """Everything a report needs."""

    name: str
    reference: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: dict[str, Any]
    """`kind`, `amount`, `margin` as comparison.yaml has them."""
    runs: tuple[RunResult, ...]
    notes: tuple[str, ...] = ()
    failed_arms: dict[str, str] = field(default_factory=dict)
    """Arms that could not even start, and why."""
    pairs: tuple[ArmPair, ...] = ()
    """First one for every arm but the reference, then those asked for."""

    def of_arm(self, arm: str) -> list[RunResult]:
        """An arm's runs, by seed."""
        return [run for run in self.runs if run.arm == arm]

    def metrics(self) -> dict[str, Better]:
        """Every metric that some run has, the held-out loss first, and which values of it are better."""
        directions: dict[str, Better] = {}
        for run in self.runs:
            for name, score in run.scores.items():
                directions.setdefault(name, score.better)
        return dict(
            sorted(directions.items(), key=lambda item: (not item[0].startswith(HELD_OUT_LOSS), item[0]))
        )

    def values(self, metric: str) -> dict[str, dict[int, float]]:
        """By arm and seed, as far as there are finite values."""
        return {
            arm: {
                run.seed: run.scores[metric].value
                for run in self.of_arm(arm)
                if run.finished and metric in run.scores and math.isfinite(run.scores[metric].value)
            }
            for arm in self.arms
        }


def read_results(folder: Path) -> Results:
    """Read a comparison's folder; raises RecipeError where there is none."""
    path = folder / "comparison.yaml"
    if not path.exists():
        raise RecipeError(f"{folder} holds no comparison (no {path.name}).")
    with damaged(path, RecipeError):
        contents = yaml.safe_load(path.read_text(encoding="utf-8"))
    check_comparison(contents, path)
    arms, seeds = tuple(contents["arms"]), tuple(contents["seeds"])
    return Results(
        name=folder.resolve().name,
        reference=contents["reference"],
        arms=arms,
        seeds=seeds,
        budget=contents["budget"],
        runs=tuple(
            read_run(folder / "runs" / arm / f"seed-{seed}", arm, seed) for seed in seeds for arm in arms
        ),
        notes=tuple(contents.get("notes") or ()),
        failed_arms=contents.get("failed") or {},
        pairs=_pairs(contents, path),
    )


def _pairs(contents: dict[str, Any], path: Path) -> tuple[ArmPair, ...]:
    """As the folder has them; a folder of an earlier version compares every arm with the reference."""
    arms, reference = contents["arms"], contents["reference"]
    if "pairs" not in contents:
        return tuple(ArmPair(arm, reference) for arm in arms if arm != reference)
    with damaged(path, RecipeError):
        pairs = [ArmPair(one["arm"], one["against"], tuple(one["differs"])) for one in contents["pairs"]]
        if unknown := {name for pair in pairs for name in (pair.arm, pair.against)} - arms.keys():
            raise ValueError(f"a pair names {min(unknown)!r}, which is no arm")
    return tuple(pairs)


def check_comparison(contents: Any, path: Path) -> None:
    """Raise RecipeError unless what was read has the parts of a `comparison.yaml`."""
    parts = {
        "recipe": dict, "arms": dict, "seeds": list, "reference": str, "budget": dict, "steps": dict,
        "calibration": dict, "failed": dict, "data": dict,
    }  # fmt: skip
    with damaged(path, RecipeError):
        wrong = [name for name, kind in parts.items() if not isinstance(contents[name], kind)]
        for arm in contents["arms"].values():
            _ = arm["spec"], arm["changes"]
        _ = contents["budget"]["kind"], contents["budget"]["amount"]
        if wrong:
            raise ValueError(f"{wrong[0]} is not a {parts[wrong[0]].__name__}")


def read_run(folder: Path, arm: str, seed: int) -> RunResult:
    """What one run directory tells; a folder that is not there is a run that has not begun.

    A run whose files are damaged counts as failed.
    """
    try:
        with damaged(folder):
            return _result(folder, arm, seed)
    except CheckpointError as error:
        return RunResult(arm, seed, failure=str(error))


def _result(folder: Path, arm: str, seed: int) -> RunResult:
    failure = folder / "failure.txt"
    metrics, events = read_lines(folder / "metrics.jsonl"), read_lines(folder / "events.jsonl")
    ends = [event for event in events if event["event"] == "finished"]
    steps = [line for line in metrics if "loss" in line]
    scores = _scores(folder / "scores.json")
    return RunResult(
        arm,
        seed,
        # All three: a run that was stopped while it was scored has its model and the event already.
        finished=(folder / "model").is_dir() and bool(ends) and bool(scores),
        failure=failure.read_text(encoding="utf-8").strip() if failure.exists() else None,
        scores=scores,
        curve=_curve(metrics),
        steps=steps[-1]["step"] if steps else 0,
        tokens=sum(line.get("input_tokens", 0) for line in steps),
        seconds=ends[-1]["seconds"] if ends else (steps[-1]["seconds"] if steps else 0.0),
        deciding=deciding_seconds(events),
        memory=ends[-1].get("peak_memory") if ends else None,
        epochs=steps[-1].get("epoch") if steps else None,
        share=_share(next((event for event in events if event["event"] == "plan"), {})),
    )


def _share(plan: dict[str, Any]) -> float | None:
    return plan["selected"] / plan["pool"] if plan.get("selected") and plan.get("pool") else None


def _curve(metrics: list[dict[str, Any]]) -> tuple[Point, ...]:
    points, tokens = [], 0
    for line in metrics:
        tokens += line.get("input_tokens", 0)
        # Where label tokens could be counted, each weighs alike, as in the table.
        loss = line.get("held_out_loss", line.get("eval_loss"))
        if loss is not None:
            points.append(Point(line["step"], tokens, line["seconds"], loss))
    return tuple(points)


def _scores(path: Path) -> dict[str, RunScore]:
    if not path.exists():
        return {}
    scores = read_json(path)["scores"]
    return {
        name: RunScore(float(score["value"]), score["better"], score.get("samples"))
        for name, score in scores.items()
    }
