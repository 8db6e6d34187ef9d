"""Signals that runs share: measured once, found again by what they depend on, charged to every run."""

import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import gradwise as gw
from gradwise.data import Collator
from gradwise.methods.baselines import EasyFirst, GradNormTop, LengthTop, LossTop
from gradwise.planning import scoring, shared
from gradwise.planning.shared import key_of, measure_or_read
from gradwise.training import record as record_module
from gradwise.training.record import RunRecord

COST = 0.3


@pytest.fixture
def train(
    story_model: Callable[[], Any], arguments: Callable[..., Any], speeches: Dataset, tmp_path: Path
) -> Callable[..., gw.Trainer]:
    def make(name: str, recipe: gw.Recipe, *, data: Dataset = speeches, model: Any = None) -> gw.Trainer:
        trainer = gw.Trainer(
            model or story_model(),
            arguments(name, max_steps=2),
            Collator(0),
            data,
            recipe=recipe,
            shared_signals=tmp_path / "signals",
        )
        trainer.train()
        return trainer

    return make


@pytest.fixture
def measurings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes measuring take a while, and counts it."""
    begun, collect = [], scoring.collect

    def slow(*args: Any, **kwargs: Any) -> Any:
        begun.append(time.perf_counter())
        time.sleep(COST)
        return collect(*args, **kwargs)

    monkeypatch.setattr(scoring, "collect", slow)
    return begun


def events(trainer: gw.Trainer, kind: str) -> dict[str, Any]:
    lines = (Path(trainer.args.output_dir or "") / "events.jsonl").read_text().splitlines()
    (found,) = [event for event in map(json.loads, lines) if event["event"] == kind]
    return found


LOSS_TOP = gw.Recipe(select=LossTop(fraction=0.5))


def test_the_second_run_reads_what_the_first_has_measured(train: Any, measurings: list[float]) -> None:
    first, second = train("a", LOSS_TOP), train("b", LOSS_TOP)
    assert len(measurings) == 1
    assert first.session.plan.digest == second.session.plan.digest


def test_gradients_are_shared_by_runs_of_one_seed_and_one_projection(
    train: Any, measurings: list[float]
) -> None:
    top = gw.Recipe(select=GradNormTop(fraction=0.5))
    train("a", top)
    before = len(measurings)
    train("b", top)
    assert len(measurings) == before
    train("c", replace(top, seed=1))
    train("d", replace(top, signals=replace(top.signals, grad_dim=64)))
    assert len(measurings) == before + 2


def test_both_are_charged_the_same(train: Any, measurings: list[float]) -> None:
    first, second = train("a", LOSS_TOP), train("b", replace(LOSS_TOP, seed=1, order=EasyFirst()))
    cost = [events(trainer, "signals") for trainer in (first, second)]
    assert cost[0]["seconds"] == cost[1]["seconds"] >= COST
    assert "shared" not in cost[0]
    assert cost[1]["shared"] is True
    for trainer in (first, second):
        lines = (Path(trainer.args.output_dir) / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[0])["seconds"] >= cost[0]["seconds"]
    assert len(measurings) == 1


def test_without_a_folder_everything_is_as_it_was(
    train: Any, story_model: Any, arguments: Any, speeches: Dataset
) -> None:
    shared = train("a", LOSS_TOP)
    alone = gw.Trainer(story_model(), arguments("b", max_steps=2), Collator(0), speeches, recipe=LOSS_TOP)
    alone.train()
    assert alone.session.plan is not None
    assert alone.session.plan.digest == shared.session.plan.digest


def test_other_weights_data_or_batches_are_measured_again(
    train: Any, measurings: list[float], story_model: Callable[[], Any], speeches: Dataset
) -> None:
    train("a", LOSS_TOP)
    changed = story_model()
    changed.lm_head.weight.data[0, 0] += 1e-6
    train("b", LOSS_TOP, model=changed)
    train("c", LOSS_TOP, data=speeches.select(range(79)))
    train("d", replace(LOSS_TOP, signals=replace(LOSS_TOP.signals, batch_tokens=512)))
    assert len(measurings) == 4


def test_what_was_trained_since_does_not_share(train: Any, measurings: list[float]) -> None:
    first = train("a", LOSS_TOP)
    train("b", LOSS_TOP, model=first.model)
    assert len(measurings) == 2


def test_tokens_are_shared_too(train: Any, tmp_path: Path) -> None:
    recipe = gw.Recipe(select=LengthTop(fraction=0.5))
    first, second = train("a", recipe), train("b", recipe)
    assert events(second, "signals")["shared"] is True
    assert first.session.plan.digest == second.session.plan.digest


def test_a_failed_measuring_leaves_nothing_behind(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    record.start()

    def fail() -> Any:
        raise gw.SignalError("no")

    with pytest.raises(gw.SignalError):
        measure_or_read(tmp_path / "signals", {"a": 1}, fail, record)
    found = measure_or_read(tmp_path / "signals", {"a": 1}, lambda: {"x": np.arange(3)}, record)
    assert not found.shared
    again = measure_or_read(tmp_path / "signals", {"a": 1}, fail, record)
    assert again.shared
    assert again.arrays["x"].tolist() == [0, 1, 2]


def test_the_key_is_of_contents(story_model: Callable[[], Any], speeches: Dataset) -> None:
    model = story_model()
    key = key_of(model, speeches, quantity="loss")
    assert key == key_of(story_model(), speeches.select(range(80)), quantity="loss")
    rows = [speeches[number] for number in range(80)]
    assert key_of(model, rows)["data"] == key_of(model, list(rows))["data"]
    assert key_of(model, rows)["data"] != key_of(model, rows[::-1])["data"]
    moved = speeches.select([1, 0, *range(2, 80)])
    assert key["data"] != key_of(model, moved)["data"]


def _measure_slowly(folder: Path, number: int) -> None:
    record = RunRecord(folder / str(number))
    record.start()

    def measure() -> Any:
        (folder / f"measured-{number}").touch()
        time.sleep(3)
        return {"x": np.ones(2)}

    found = measure_or_read(folder / "signals", {"a": 1}, measure, record)
    assert found.arrays["x"].tolist() == [1, 1]
    # The measuring is charged to both; the one that waited for it is not charged twice.
    assert 3 <= found.seconds <= record.seconds
    (folder / f"seconds-{number}").write_text(str(found.seconds))


def test_two_processes_measure_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_measure_slowly, args=(tmp_path, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("measured-*"))) == 1
    assert len({(tmp_path / f"seconds-{number}").read_text() for number in range(2)}) == 1


def test_waiting_for_another_run_is_not_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Waiting(shared.FileLock):
        def __enter__(self) -> Any:
            now[0] += 1000
            return super().__enter__()

    def measure() -> Any:
        now[0] += 5
        return {"x": np.ones(2)}

    for module in (shared, record_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(shared, "FileLock", Waiting)
    for number in range(2):
        record = RunRecord(tmp_path / str(number))
        record.start()
        found = measure_or_read(tmp_path / "signals", {"a": 1}, measure, record)
        assert found.seconds == record.seconds == 5
    assert now[0] == 2005
