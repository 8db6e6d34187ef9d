"""Memory by part, as a run measures it: the estimate's parts, and nothing of the run changed by it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils._python_dispatch import _get_current_dispatch_mode

import gradwise as gw
from gradwise.data import Collator
from gradwise.estimating import estimate
from gradwise.recipe import Model, Train
from gradwise.report.reading import measured_memory
from gradwise.training.memory import StepMemory
from gradwise.training.record_names import ENDS, GRADIENTS, PARTS, STATE, UPDATE, WEIGHTS
from tests.conftest import same_weights

LENGTH, ROWS, STEPS = 24, 2, 6


@pytest.fixture
def rows(speeches: Dataset) -> Dataset:
    """Rows of equal length, which the estimate is about."""
    ids = [(row["input_ids"] * LENGTH)[:LENGTH] for row in speeches.to_list()[:32]]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def trained(model: Any, arguments: Any, rows: Dataset, folder: str, **settings: Any) -> gw.Trainer:
    layers = {"layers": settings.pop("layers")} if "layers" in settings else {}
    given = {"per_device_train_batch_size": ROWS, "max_steps": STEPS, **settings}
    trainer = gw.Trainer(model, arguments(folder, **given), Collator(0), rows, recipe=gw.Recipe(**layers))
    trainer.train()
    return trainer


def events(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == "memory"]


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "accumulation": ({}, {"gradient_accumulation_steps": 2}),
    "grass": ({"layers": gw.Grass(active=4, period=1, probe=1)}, {}),
    "offload": ({"layers": gw.Grass(active=4, period=1, probe=1, state="offload")}, {}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_parts_are_those_of_the_estimate(
    name: str, story_model: Any, arguments: Any, rows: Dataset, stories: Path, tmp_path: Path
) -> None:
    sections, given = SETTINGS[name]
    trained(story_model(), arguments, rows, "run", **sections, **given)
    measured = events(tmp_path / "run")
    data: Any = gw.Data(train="unread.jsonl", max_length=LENGTH)  # type: ignore[arg-type]
    size = ROWS * given.get("gradient_accumulation_steps", 1)
    train = Train(batch_size=size, arguments={"per_device_train_batch_size": ROWS, "max_steps": STEPS})
    predicted = estimate(gw.Recipe(model=Model(name=str(stories)), data=data, train=train, **sections)).traced
    found = measured_memory(measured)
    assert set(found) == {phase.name for phase in predicted.phases}
    offloaded = name == "offload"
    known = {WEIGHTS, ENDS, *(() if offloaded else (STATE,))}  # there up to three units are on the device
    for phase in predicted.phases:
        parts = found[phase.name]
        assert list(parts) == list(PARTS)
        assert all(parts[part] == phase.parts.get(part, 0) for part in known), phase.name
        if phase.name == UPDATE:
            assert parts[GRADIENTS] == phase.parts[GRADIENTS]
        # The lowest block may not have been drawn in the step that was followed.
        assert sum(parts.values()) == pytest.approx(phase.total, rel=0.3 if sections else 0.1)
    if offloaded:
        assert max(event["host"] for event in measured) == pytest.approx(predicted.host, rel=0.01)
    assert [event["step"] for event in measured] == (
        [2, STEPS] if not sections else list(range(1, STEPS + 1))
    )


def test_measuring_changes_no_number(
    story_model: Any, arguments: Any, rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"layers": gw.Grass(active=2, period=2, probe=1), "gradient_accumulation_steps": 2}
    measured = trained(story_model(), arguments, rows, "measured", **settings)
    monkeypatch.setattr(StepMemory, "begin", lambda *_, **__: None)
    plain = trained(story_model(), arguments, rows, "plain", **settings)
    assert events(tmp_path / "measured") and not events(tmp_path / "plain")
    assert same_weights(measured.model, plain.model)


def test_a_step_that_fails_leaves_nothing_behind(
    story_model: Any, arguments: Any, rows: Dataset, tmp_path: Path
) -> None:
    """A step that is followed and interrupted: no operation after it is followed."""
    model, calls = story_model(), []

    def interrupt(*_: object) -> None:
        calls.append(_get_current_dispatch_mode() is not None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    model.model.layers[2].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained(model, arguments, rows, "run")
    assert calls == [False, True] and _get_current_dispatch_mode() is None
    torch.ones(1).requires_grad_().exp().sum().backward()


def test_optimizer_state_of_later_draws_counts_in_forward_and_backward() -> None:
    def event(state: int, **more: Any) -> dict[str, Any]:
        phases = {"update": {"weights": 10, "optimizer state": state}}
        return {"event": "memory", "step": 1, "phases": phases | more}

    passes = {"weights": 10, "activations": 50, "optimizer state": 1}
    given = [event(1, **{"forward and backward": passes}), event(7), {"event": "plan"}, event(5)]
    found = measured_memory(given)
    assert found["forward and backward"] == passes | {"optimizer state": 7}
    assert found["update"]["optimizer state"] == 7 and list(found) == ["forward and backward", "update"]
    in_host = [each | {"host": 3} for each in given]
    assert measured_memory(in_host)["forward and backward"] == passes
    assert measured_memory([{"event": "plan"}]) == {}
