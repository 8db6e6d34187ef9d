"""Comparisons: learning rates and recipes; their runs are tested with `gradwise compare`."""

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.compare import rates, run
from benchmarks.compare.run import missing
from benchmarks.compare.task import Comparison
from benchmarks.compare.tasks import TASKS
from gradwise.comparison.budget import parse_budget
from gradwise.recipe.yaml_text import read_yaml


@pytest.mark.parametrize("best", rates.RATES)
def test_search_ends_with_the_best_rate_inside_where_possible(best: float) -> None:
    place = rates.RATES.index(best)
    tries = rates.search((3e-4, 1e-3, 3e-3), lambda rate: float(abs(rates.RATES.index(rate) - place)))
    tried = [one.learning_rate for one in tries]
    assert tried == sorted(set(tried))
    assert best == min(tries, key=lambda one: one.loss or 0.0).learning_rate
    assert tried[0] < best < tried[-1] or best in (rates.RATES[0], rates.RATES[-1])


def test_search_avoids_what_diverges() -> None:
    tries = rates.search((1e-3, 3e-3), lambda rate: None if rate > 1e-3 else rate)
    assert [one.learning_rate for one in tries] == [*rates.RATES[: len(tries) - 1], 3e-3]


def test_the_rate_is_written_into_the_arm(tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text("layers: {method: grass, active: 2}\ntrain: {learning_rate: 1e-3, batch_size: 4}\n")
    rates.write_rate(path, 3e-4)
    assert read_yaml(path) == {
        "layers": {"method": "grass", "active": 2},
        "train": {"learning_rate": 3e-4, "batch_size": 4},
    }


@pytest.mark.parametrize("name", list(TASKS))
def test_every_arm_is_a_recipe_and_trains_on_no_held_out_file(name: str) -> None:
    task = TASKS[name]()
    judged_by = {Path(path).resolve() for path in task.check_rates.values()}
    for arm in task.arms:
        recipe = task.recipe(arm, {"train": {"learning_rate": 0.5}})
        assert recipe.train.learning_rate == 0.5
        assert read_yaml(task.rate_path(arm))["train"]["learning_rate"] < 0.5
        data = recipe.data
        assert data is not None and not isinstance(data, str)
        files = []
        for sources in (data.train, data.validation or data.target):
            listed = sources if isinstance(sources, list) else [sources]
            files.append({Path(source.path).resolve() for source in listed})  # type: ignore[union-attr]
        assert files[0].isdisjoint(files[1])
        assert judged_by.isdisjoint(files[0] | files[1])
        if name.startswith("grace") and arm != "full":
            assert recipe.select.fraction == task.fraction  # type: ignore[union-attr]
    for comparison in task.comparisons:
        assert set(comparison.arms) <= set(task.arms)
    assert {arm for _, _, *arms in task.claims for arm in arms} <= set(task.arms)


def test_the_full_refresh_scores_everything() -> None:
    select = TASKS["grace_dirty_10"]().recipe("grace_full_refresh").select
    assert (select.method, select.candidates, select.anchors) == ("grace", "all", 1.0)  # type: ignore[union-attr]


def test_only_missing_runs_are_asked_for() -> None:
    done = {("a", 0), ("a", 1), ("b", 0)}
    asked = missing(["a", "b", "c", "d"], [0, 1], lambda arm, seed: (arm, seed) in done)
    assert asked == [(["b"], [1]), (["c", "d"], [0, 1])]


def test_a_command_names_arms_seeds_and_budget() -> None:
    task = TASKS["four"]()
    comparison = Comparison("time", (("random", "full"), ("grace",)), ("random", "full"), "60")
    whole, one = task.command(comparison, 5), task.command(comparison, [3], ["full", "grace"])
    after = {word: (whole[place + 1], one[place + 1]) for place, word in enumerate(whole[:-1])}
    # A number alone would be a number of seeds.
    assert after["--seeds"] == ("5", "3,")
    assert after["--reference"] == ("random", "full")
    assert [len(each.split(",")) for each in after["--arms"]] == [3, 2]
    assert {parse_budget(each).amount for each in after["--budget"]} == {60.0}


def test_runs_of_another_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Namespace(task="four", out=tmp_path / "four.json", threads=1)
    for loss in (6.8661, 6.8659):
        monkeypatch.setattr(run, "untrained_loss", lambda _, loss=loss: loss)
        run.Benchmark(options)._check_model()
    monkeypatch.setattr(run, "untrained_loss", lambda _: 6.8161)
    with pytest.raises(SystemExit, match=r"another model.*6\.8661, and here 6\.8161"):
        run.Benchmark(options)._check_model()
