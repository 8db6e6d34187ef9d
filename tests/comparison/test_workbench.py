"""What is known of an arm before it runs: its annealing phase is decided later, and charged all the same."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gradwise import Data, Model, Recipe, Train
from gradwise.comparison.budget import Speed
from gradwise.comparison.workbench import Workbench, calibrate
from gradwise.folders import claimed
from gradwise.run.directory import FILES


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


def test_what_the_annealing_phase_will_take_is_charged(recipe: Recipe, tmp_path: Path) -> None:
    own = Recipe.from_dict(recipe.to_dict() | {"anneal": {"method": "direct"}})
    planned = bench(own, tmp_path).planned()
    assert planned.session.planner.forecast(planned.session.context()).seconds > 0
    unmeasured = Recipe.from_dict(recipe.to_dict() | {"anneal": {"method": "random"}})
    planned = bench(unmeasured, tmp_path).planned()
    assert planned.session.planner.forecast(planned.session.context()).seconds == 0
    found = calibrate(own, 0.1, tmp_path / "folder", tmp_path / "shared")
    assert found.speed.deciding > 0 and found.steps == 10


def test_what_an_order_will_measure_is_charged(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps of two, for which twenty times as much may be measured; nodes are batches, two at a time."""
    monkeypatch.setattr(Workbench, "timed", lambda *_: Speed(deciding=0.0, start=0.0, step=1.0, steps=3))
    batches, steps = {"units": "batches", "overhead": 20.0, "window": 2, "commit": 1}, []
    d3 = {"method": "d3"} | batches
    for order in ({"method": "balanced"}, d3, d3 | {"edges": "orders"}):
        own = Recipe.from_dict(recipe.to_dict() | {"order": order})
        steps.append(calibrate(own, 1.0, tmp_path / "folder", tmp_path / "shared").speed.step)
    # Before every other step two nodes of four samples by curvature, and sixteen samples of the target; or
    # before every step one on each, alone and after the other, and the target five times without going back.
    # By curvature the second moments come first, once.
    curvature, orders, moments = 2 * 4 * 6 + 16, 2 * 2 * (2 + 0.5) + 5 * 16 / 3, 16
    by_curvature = (5 * curvature + moments) / (10 * 2)
    assert steps == [1.0, pytest.approx(1 + by_curvature), pytest.approx(1 + orders / 2)]


def test_rounds_multiply_it(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradwise.planning import scoring

    seconds = iter([0.0, 1.0, 10.0, 15.0, 20.0, 41.0] * 2)
    expected = []
    for times in (1, 3):
        own = Recipe.from_dict(recipe.to_dict() | {"anneal": {"method": "direct", "times": times}})
        planned = bench(own, tmp_path).planned()
        with monkeypatch.context() as patched:
            patched.setattr(scoring, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
            expected.append(planned.session.planner.forecast(planned.session.context()).seconds)
    # Four samples took 5 s and twenty 21 s: a second each, and one before the first; 28 are measured, in two
    # runs, the pool's and that of the validation samples.
    assert expected == [pytest.approx(30.0), pytest.approx(3 * 30.0)]


def test_steps_are_timed_without_it(recipe: Recipe, tmp_path: Path) -> None:
    own = Recipe.from_dict(recipe.to_dict() | {"anneal": {"method": "direct"}})
    made = bench(own, tmp_path)
    decided = made.planned()
    (tmp_path / "bench" / "notes.txt").write_text("mine")
    assert made.timed(decided, 3).step > 0
    assert (tmp_path / "bench" / "notes.txt").read_text() == "mine"
