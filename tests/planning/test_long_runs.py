"""Runs of more epochs than a plan lays out at once: its size stays small, and a resumed run is the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerCallback

import gradwise as gw
from gradwise.planning import epochs as planned_epochs
from gradwise.training.layout import Layout
from gradwise.training.plan import Dropped
from tests.conftest import same_weights

SPEEDS = {"train": 0.01, "score": 0.003}
RECIPES: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "weighted, refreshed, layers": {
        "select": {
            "method": "grace", "count": 8, "candidates": "all", "refresh_every": 5, "weighted": True,
            "speeds": SPEEDS,
        },
        "layers": {"method": "grass", "active": 1, "period": 3, "probe": 1},
    },
    "ordered": {
        "order": {"method": "d3", "units": "domains", "probes": 1, "target_samples": 2, "overhead": 9.0},
    },
    "refreshed, annealed": {
        "select": {"method": "grace", "count": 8, "candidates": "all", "refresh_every": 7, "speeds": SPEEDS},
        "anneal": {"method": "random", "last": 0.6, "count": 3, "times": 3},
    },
}  # fmt: skip
STEPS = 31


@pytest.fixture
def run(
    tiny_llama: Callable[..., Any],
    arguments: Callable[..., Any],
    speeches: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., gw.Trainer]:
    """Trains on 12 short samples in batches of 4, three epochs being laid out at a time."""
    monkeypatch.setattr(planned_epochs, "MOST_EPOCHS", 3)
    data = speeches.select(range(12)).map(
        lambda row: {name: row[name][:12] for name in ("input_ids", "labels")}
    )

    def run(name: str, recipe: dict[str, Any], resume: Any = None, **changes: Any) -> gw.Trainer:
        settings = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
        if "anneal" in recipe:
            settings["lr_scheduler_type"] = "warmup_stable_decay"
        trainer = gw.Trainer(
            tiny_llama(vocab_size=512), arguments(name, **settings | changes), train_dataset=data,
            recipe=gw.Recipe.from_dict(recipe),
        )  # fmt: skip
        trainer.train(resume)
        return trainer

    return run


def events(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "parts")} for line in found]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] if n > 1 else [pytest.mark.slow] if n else [])
        for n, name in enumerate(RECIPES)
    ],
)
def test_a_plan_stays_small_and_resumes_exactly(run: Any, name: str, tmp_path: Path) -> None:
    whole = run("whole", RECIPES[name])
    plan = whole.session.plan
    assert plan.epochs - plan.first_epoch <= 4
    assert plan.until is None and plan.epochs == plan.epochs_of_run
    decided = events(tmp_path / "whole")
    assert sum(event["event"] == "epochs" for event in decided) >= 2
    record = {file: (tmp_path / "whole" / file).read_bytes() for file in ("events.jsonl", "metrics.jsonl")}
    for step in (9, 18):
        for file, content in record.items():
            (tmp_path / "whole" / file).write_bytes(content)
        again = run(
            "whole", RECIPES[name], str(tmp_path / "whole" / f"checkpoint-{step}"), save_strategy="no"
        )
        assert again.session.plan.digest == plan.digest
        assert same_weights(again.model, whole.model)
        resumed = [event for event in events(tmp_path / "whole") if event["event"] != "resume"]
        assert resumed == decided


def test_every_epoch_holds_every_sample(run: Any, tmp_path: Path) -> None:
    run("run", {}, max_steps=30)
    for step in range(1, 31):
        plan = gw.Plan.load(tmp_path / "run" / f"checkpoint-{step}" / "plan.safetensors")
        assert len(plan) <= 4 * 12 and len(plan.segments) <= 4
        for epoch in range(plan.first_epoch, plan.epochs):
            (segment,) = plan.of_epoch(epoch)
            assert sorted(segment.indices.tolist()) == list(range(12))
        first, then = (plan.of_epoch(plan.epochs - 1 - n)[0].indices for n in range(2))
        assert not np.array_equal(first, then)


class StopSoon(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= 2


@pytest.mark.parametrize("asked", [{"max_steps": 2_000_000_000}, {"num_train_epochs": 1e9}])
def test_an_endless_run_begins_at_once(
    tiny_llama: Any, arguments: Any, speeches: Any, tmp_path: Path, asked: dict[str, Any]
) -> None:
    trainer = gw.Trainer(
        tiny_llama(vocab_size=512), arguments(**asked), train_dataset=speeches.select(range(8)),
        recipe=gw.Recipe(select=gw.baselines.FullData()), callbacks=[StopSoon()],
    )  # fmt: skip
    trainer.train()
    plan = trainer.session.plan
    assert (
        plan is not None and plan.epochs == planned_epochs.MOST_EPOCHS and plan.epochs_of_run == 1_000_000_000
    )
    assert (tmp_path / "out" / "plan" / "plan.safetensors").stat().st_size < 1_000_000


def test_packed_runs_and_plans_of_others_are_refused(
    run: Any, tiny_llama: Any, arguments: Any, speeches: Any
) -> None:
    with pytest.raises(gw.RecipeError, match="lays out all of its epochs at once"):
        gw.Trainer(
            tiny_llama(vocab_size=512), arguments(max_steps=99), train_dataset=speeches.select(range(8)),
            recipe=gw.Recipe(), packed_length=64,
        ).train()  # fmt: skip
    short, part = gw.Plan.of([range(8)]), gw.Plan.of([range(8)], pool=8)
    for plan, said in ((short, "has 1 epochs, and the run asks for 2"), (_part(part), "part of another run")):
        trainer = gw.Trainer(
            tiny_llama(vocab_size=512),
            arguments(num_train_epochs=2),
            train_dataset=speeches.select(range(8)),
            plan=plan,
        )
        with pytest.raises(gw.PlanError, match=said):
            trainer.train()


def _part(plan: gw.Plan) -> gw.Plan:
    segment = gw.Segment(plan.indices, 3, ("given",))
    return gw.Plan((segment,), plan.pool, Dropped(3, 24, plan.digest))


def test_a_plan_that_dropped_its_beginning_is_saved_and_chained(tmp_path: Path) -> None:
    whole = gw.Plan.of([[2, 0, 1], [1, 2, 0], [0, 1, 2]])
    late = whole.from_epoch(2)
    assert (late.epochs, late.first_epoch, len(late), late.starts.tolist()) == (3, 2, 3, [6, 9])
    assert late.digest == whole.digest
    late.save(tmp_path / "plan")
    read = gw.Plan.load(tmp_path / "plan")
    assert (read.digest, read.dropped) == (late.digest, late.dropped)
    sampler = gw.PlanSampler(late)
    assert list(sampler) == [0, 1, 2] and sampler.state_dict()["position"] == 9


def test_asking_what_is_due_does_not_cut_the_plan_again(run: Any, monkeypatch: Any) -> None:
    """Which takes time with the plan's length, and is asked before every step."""
    cuts, cut = [], Layout.cut

    def watched(self: Layout, plan: Any) -> Any:
        cuts.append(len(plan))
        return cut(self, plan)

    monkeypatch.setattr(Layout, "cut", watched)
    counts = []
    for steps in (3, 9):
        cuts.clear()
        run(f"steps-{steps}", {"select": "full"}, max_steps=steps)
        counts.append(len(cuts))
    assert counts[0] == counts[1]
