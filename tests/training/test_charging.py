"""What a run is charged: deciding and training, not evaluation and checkpoints; resuming changes nothing."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

import gradwise as gw
from gradwise.data import Collator
from gradwise.methods.baselines import RandomSubset
from gradwise.training import saving
from gradwise.training.record import RunRecord

SLEEP = 0.5


@pytest.fixture
def trainer(
    tiny_llama: Callable[..., Any], arguments: Callable[..., Any], speeches: Dataset
) -> Callable[..., gw.Trainer]:
    def make(name: str = "run", recipe: gw.Recipe | None = None, **changes: Any) -> gw.Trainer:
        given = arguments(name, **({"max_steps": 4} | changes))
        held_out = speeches.select(range(4))
        model = tiny_llama(vocab_size=512)
        return gw.Trainer(model, given, Collator(0), speeches, held_out, recipe=recipe or gw.Recipe())

    return make


def metrics(trainer: gw.Trainer) -> list[dict[str, Any]]:
    path = Path(trainer.args.output_dir or "") / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def slowly(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Make a method take half a second longer."""
    method = getattr(owner, name)

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(SLEEP)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)


def test_a_slow_decision_makes_every_step_later(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch, RandomSubset, "select")
    run = trainer(recipe=gw.Recipe(select=RandomSubset(fraction=0.5)), eval_on_start=True)
    run.train()
    assert all(line["seconds"] >= SLEEP for line in metrics(run))


def test_evaluations_cost_nothing(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(eval_strategy="steps", eval_steps=1, eval_on_start=True)
    clocks, loop = [], run.evaluation_loop

    def slow(*args: Any, **kwargs: Any) -> Any:
        before = run.session.record.seconds
        time.sleep(SLEEP)
        result = loop(*args, **kwargs)
        clocks.append((before, run.session.record.seconds))
        return result

    monkeypatch.setattr(run, "evaluation_loop", slow)
    start = time.perf_counter()
    run.train()
    wall = time.perf_counter() - start
    lines = metrics(run)
    assert len(clocks) == sum("eval_loss" in line for line in lines) == 5
    assert all(before == after for before, after in clocks)
    assert [line["seconds"] for line in lines if "eval_loss" in line] == [round(at, 3) for at, _ in clocks]
    assert lines[-1]["seconds"] <= wall - 5 * SLEEP


def test_checkpoints_cost_nothing(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch, saving.checkpoints, "finish")
    run = trainer(save_strategy="steps", save_steps=1)
    start = time.perf_counter()
    run.train()
    wall = time.perf_counter() - start
    assert metrics(run)[-1]["seconds"] <= wall - 3 * SLEEP


def test_what_comes_after_the_last_step_costs_nothing(trainer: Any) -> None:
    run = trainer()
    run.train()
    seconds = run.session.record.seconds
    time.sleep(0.05)
    run.evaluate()
    assert run.session.record.seconds == seconds >= metrics(run)[-1]["seconds"] - 0.001


def test_resuming_from_a_checkpoint_costs_nothing_but_the_steps(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trainer(save_strategy="steps", save_steps=2)
    first.train()
    spent = {line["step"]: line["seconds"] for line in metrics(first)}
    last = Path(first.args.output_dir) / "checkpoint-4"
    for path in sorted(last.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    last.rmdir()
    second = trainer(save_strategy="steps", save_steps=2)
    slowly(monkeypatch, second, "_load_optimizer_and_scheduler")
    slowly(monkeypatch, second.session, "_resumed_plan")
    start = time.perf_counter()
    second.train(resume_from_checkpoint=True)
    wall = time.perf_counter() - start
    again = {line["step"]: line["seconds"] for line in metrics(second)}
    assert (again[1], again[2]) == (spent[1], spent[2])
    assert spent[2] < again[3] <= again[4] <= spent[2] + wall - 2 * SLEEP


def test_input_tokens_of_every_step_are_noted(trainer: Any, speeches: Dataset) -> None:
    run = trainer(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    run.train()
    lengths = np.array([len(ids) for ids in speeches["input_ids"]])
    plan = run.session.plan.indices
    expected = [int(lengths[plan[4 * step : 4 * step + 4]].sum()) for step in range(4)]
    assert [line["input_tokens"] for line in metrics(run)] == expected


def test_data_without_columns_have_no_input_tokens(
    tiny_llama: Callable[..., Any], arguments: Callable[..., Any], speeches: Dataset
) -> None:
    rows = [{name: speeches[i][name] for name in ("input_ids", "labels")} for i in range(8)]
    run = gw.Trainer(tiny_llama(vocab_size=512), arguments(max_steps=1), Collator(0), rows)
    run.train()
    assert "input_tokens" not in metrics(run)[0]


class TestClock:
    def test_stops_and_continues(self, tmp_path: Path) -> None:
        record = RunRecord(tmp_path)
        record.start()
        with record.uncharged():
            before = record.seconds
            with record.uncharged():
                time.sleep(0.05)
            time.sleep(0.05)
            record.step(torch.tensor(1.0), step=1)
            assert record.seconds == before
            record.charge(10)
        assert record.seconds >= 10 + before
        record.flush()
        assert json.loads((tmp_path / "metrics.jsonl").read_text())["seconds"] == round(before, 3)

    def test_a_resumed_record_waits_until_all_is_set_up(self, tmp_path: Path) -> None:
        record = RunRecord(tmp_path)
        record.start()
        record.charge(5)
        state = record.state()
        again = RunRecord(tmp_path)
        again.start(state)
        time.sleep(0.02)
        assert again.seconds == state["seconds"] >= 5
        with again.uncharged():
            pass
        assert again.seconds == state["seconds"]
        again.start_clock()
        time.sleep(0.02)
        assert again.seconds >= state["seconds"] + 0.02
