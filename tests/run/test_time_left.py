"""The time left that a run shows, on runs whose seconds are made up."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gradwise as gw
from gradwise.data import Collator
from gradwise.methods.costs import Speeds
from gradwise.run.time_left import TimeLeft
from gradwise.training.record import RunRecord


class MadeUp:
    """A run of 100 steps of a second each, with decisions of given lengths."""

    def __init__(self, decisions: dict[str, list[int]], **arguments: Any) -> None:
        settings = {
            "eval_strategy": "no",
            "save_strategy": "no",
            "eval_steps": 0,
            "save_steps": 0,
        } | arguments
        self.step = 0
        self.record: Any = SimpleNamespace(seconds=0.0, deciding=0.0, spent={}, ahead={})
        self.args = SimpleNamespace(
            eval_strategy=SimpleNamespace(value=settings["eval_strategy"]),
            save_strategy=SimpleNamespace(value=settings["save_strategy"]),
            eval_delay=0,
        )
        state = SimpleNamespace(
            max_steps=100, eval_steps=settings["eval_steps"], save_steps=settings["save_steps"]
        )
        self.trainer = SimpleNamespace(state=state, eval_dataset=range(60))
        self.layout = SimpleNamespace(schedule_of=lambda batches: batches, batch_size=4)
        self.schedule = SimpleNamespace(steps_per_epoch=40)
        self.planner = SimpleNamespace(costly_steps=lambda _: decisions)

    def decided(self, event: str, seconds: float) -> None:
        """A decision is made now."""
        times, total = self.record.spent.get(event, (0, 0.0))
        self.record.spent[event] = (times + 1, total + seconds)
        self.record.seconds += seconds
        self.record.deciding += seconds

    def stepped(self, count: int, seconds: float = 1.0) -> None:
        """Some steps are made."""
        self.step += count
        self.record.seconds += count * seconds


def shown(run: MadeUp, left: TimeLeft) -> float:
    """Seconds left now."""
    seconds = left.seconds()
    assert seconds is not None
    return seconds


def test_what_came_before_the_first_step_is_no_part_of_a_step() -> None:
    run = MadeUp({"order": [0]})
    left = TimeLeft(run)  # type: ignore[arg-type]
    run.decided("probe", 30.0)
    run.decided("order", 50.0)
    assert left.seconds() is None
    run.stepped(1, seconds=5.0)  # warms up
    assert shown(run, left) == pytest.approx(99 * 5.0)
    run.stepped(9)
    assert shown(run, left) == pytest.approx(90)


def test_decisions_to_come_are_forecast_and_then_measured() -> None:
    run = MadeUp({"select": [20, 40, 60, 80], "anneal": [80]})
    run.record.ahead = {"select": 0.1, "anneal": 0.3}
    left = TimeLeft(run)  # type: ignore[arg-type]
    run.stepped(1)
    shown(run, left)
    run.stepped(9)
    # Shares of the training time, which is 100 seconds.
    assert shown(run, left) == pytest.approx(90 + 4 * 10 + 30)
    run.stepped(10)
    run.decided("refresh", 2.0)
    run.stepped(1)
    assert shown(run, left) == pytest.approx(79 + 3 * 2 + 30)
    run.stepped(60)
    run.decided("anneal", 40.0)
    assert shown(run, left) == pytest.approx(19)


def test_draws_evaluations_and_checkpoints_are_counted() -> None:
    run = MadeUp({}, eval_strategy="epoch", save_strategy="steps", save_steps=30)
    left = TimeLeft(run)  # type: ignore[arg-type]
    run.stepped(1)
    shown(run, left)
    run.decided("layers", 0.5)
    run.stepped(9)
    # 60 samples are 15 steps of 4, a third of the work each; after steps 40, 80 and 100.
    assert shown(run, left) == pytest.approx(90 + 0.5 / 10 * 90 + 3 * 5)
    run.record.spent |= {"evaluation": (1, 7.0), "checkpoint": (2, 6.0)}
    # After steps 30, 60, 90 and 100.
    assert shown(run, left) == pytest.approx(90 + 0.5 / 10 * 90 + 3 * 7 + 4 * 3)


def test_a_run_writes_down_what_is_ahead_and_what_was_spent(
    story_model: Any, arguments: Any, speeches: Any, tmp_path: Path
) -> None:
    recipe = gw.Recipe(
        select=gw.Grace(count=40, candidates=48, refresh_every=4, anchors=0.25, speeds=Speeds(0.003, 0.001)),
        anneal=gw.Direct(candidates=16),
    )
    given = {"lr_scheduler_type": "warmup_stable_decay", "max_steps": 20, "save_strategy": "no"}
    held_out = speeches.select(range(60, 80))
    trainer = gw.Trainer(
        story_model(), arguments(**given), Collator(0), speeches.select(range(60)), held_out, recipe=recipe
    )
    trainer.train()
    record = trainer.session.record
    lines = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    (plan,) = [line for line in lines if line["event"] == "plan"]
    assert plan["ahead"] == record.ahead and record.ahead.keys() == {"select", "anneal"}
    assert plan["ahead"]["anneal"] == pytest.approx(plan["expected"]["anneal"], abs=1e-6)
    refreshes = [line for line in lines if line["event"] == "refresh"]
    assert record.spent["refresh"] == (
        len(refreshes),
        pytest.approx(sum(one["seconds"] for one in refreshes), abs=1e-3),
    )
    # 48 candidates first, then a quarter of them at each refresh.
    every = next(line for line in lines if line["event"] == "forecast")
    each = every["refreshes"] / len(refreshes) / every["training"] * every["steps"] / 20
    assert plan["ahead"]["select"] == pytest.approx(each, rel=0.01)
    again = RunRecord(tmp_path / "out")
    again.start(record.state())
    assert again.spent["anneal"][0] == 1 and again.ahead == record.ahead
