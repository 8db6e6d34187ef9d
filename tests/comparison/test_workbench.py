"""What is known of an arm before it runs: its annealing phase is decided later, and charged all the same."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gradwise import Data, Model, Recipe, Train
from gradwise.comparison.budget import Speed
from gradwise.comparison.workbench import Workbench, calibrate
from gradwise.folders import claimed
from gradwise.run.directory import FILES
from gradwise.stored import read_lines


@pytest.fixture
def recipe(stories: Path, few_speeches: Callable[..., Data]) -> Recipe:
    return Recipe(
        model=Model(name=str(stories)),
        data=few_speeches(max_length=100, allow={"cut": 1.0}),
        train=Train(batch_size=2, learning_rate=1e-3, schedule="wsd"),
    )


def bench(recipe: Recipe, tmp_path: Path) -> Workbench:
    """With a folder that is claimed for a moment only, as nobody else wants it."""
    with claimed(tmp_path / "bench", "run", FILES) as folder:
        (folder.path / "plan").mkdir(exist_ok=True)
    return Workbench(recipe, tmp_path / "shared", folder)


def forecast_seconds(planned: Any) -> float:
    """Seconds that decisions at certain steps are expected to take."""
    context = planned.session.context()
    return sum(decider.forecast(context).seconds for decider in planned.session.planner.deciders)


def test_what_the_annealing_phase_will_take_is_charged(recipe: Recipe, tmp_path: Path) -> None:
    own = Recipe.from_dict(recipe.to_dict() | {"anneal": {"method": "direct"}})
    planned = bench(own, tmp_path).planned()
    assert forecast_seconds(planned) > 0
    unmeasured = Recipe.from_dict(recipe.to_dict() | {"anneal": {"method": "random"}})
    planned = bench(unmeasured, tmp_path).planned()
    assert forecast_seconds(planned) == 0
    found = calibrate(own, 0.1, tmp_path / "folder", tmp_path / "shared")
    assert found.speed.deciding > 0 and found.steps == 10


BATCHES = {"method": "d3", "units": "batches", "overhead": 20.0, "window": 2, "commit": 1}


@pytest.mark.parametrize(
    ("order", "times"),
    [
        ({"method": "balanced"}, 0),
        (BATCHES, 5),
        (BATCHES | {"edges": "orders"}, 10),
        ({"method": "d3_published", "chunk": 4}, 3),
        ({"method": "d3_published", "chunk": 4, "rule": "trial"}, 3),
    ],
    ids=lambda value: "" if isinstance(value, int) else "-".join(map(str, value.values())),
)
def test_what_an_order_measures_is_timed_once_and_charged(
    order: dict[str, Any], times: int, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps of two samples; the step itself is taken to last a second."""
    monkeypatch.setattr(Workbench, "timed", lambda *_: Speed(deciding=0.0, start=0.0, step=1.0, steps=3))
    own = Recipe.from_dict(recipe.to_dict() | {"order": order})
    step = calibrate(own, 1.0, tmp_path / "folder", tmp_path / "shared").speed.step
    events = read_lines(tmp_path / "folder" / "events.jsonl")
    seconds = [event["seconds"] for event in events if event["event"] == "order"]
    assert len(seconds) == min(times, 1) and all(value > 0 for value in seconds)
    assert step == pytest.approx(1 + times * sum(seconds) / 10, abs=1e-3)


def test_the_optimizer_has_begun_when_that_is_timed(recipe: Recipe, tmp_path: Path) -> None:
    """And no weight has moved."""
    own = Recipe.from_dict(recipe.to_dict() | {"order": BATCHES})
    made = bench(own, tmp_path)
    decided = made.planned()
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    made.while_training(decided, 10)
    assert all(torch.equal(p, before[name]) for name, p in made.model.named_parameters())
    state = decided.optimizer.state
    assert len(state) == len(before) and all(float(each["exp_avg_sq"].sum()) > 0 for each in state.values())
    assert {group["lr"] for group in decided.optimizer.param_groups} == {1e-3}


def test_with_a_layer_policy_measurements_are_counted(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every other step two nodes of two samples by curvature, and sixteen samples of the target; the
    second moments come first, once."""
    monkeypatch.setattr(Workbench, "timed", lambda *_: Speed(deciding=0.0, start=0.0, step=1.0, steps=3))
    own = Recipe.from_dict(recipe.to_dict() | {"order": BATCHES, "layers": {"method": "grass", "active": 2}})
    step = calibrate(own, 1.0, tmp_path / "folder", tmp_path / "shared").speed.step
    curvature, moments = 2 * 2 * 6 + 16, 8
    assert step == pytest.approx(1 + (5 * curvature + moments) / (10 * 2))


def test_rounds_multiply_it(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradwise.planning import scoring

    seconds = iter([0.0, 1.0, 10.0, 15.0, 20.0, 41.0, 50.0, 57.0] * 2)
    expected = []
    for times in (1, 3):
        own = Recipe.from_dict(recipe.to_dict() | {"anneal": {"method": "direct", "times": times}})
        planned = bench(own, tmp_path).planned()
        with monkeypatch.context() as patched:
            patched.setattr(scoring, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
            expected.append(forecast_seconds(planned))
    # Four samples took 5 s and twenty 21 s: a second each, and one before the first; and 2 s more where the
    # model was tried, as in the first run of all. 28 are measured, in two runs, the pool's and that of the
    # validation samples.
    assert expected == [pytest.approx(2 + 30.0), pytest.approx(2 + 3 * 30.0)]


def test_steps_are_timed_without_it(recipe: Recipe, tmp_path: Path) -> None:
    own = Recipe.from_dict(recipe.to_dict() | {"anneal": {"method": "direct"}})
    made = bench(own, tmp_path)
    decided = made.planned()
    (tmp_path / "bench" / "notes.txt").write_text("mine")
    assert made.timed(decided, 3).step > 0
    assert (tmp_path / "bench" / "notes.txt").read_text() == "mine"
