"""`benchmarks/compare.py`: rates, recipes and tables; its runs are tested with `gradwise compare`."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from gradwise.recipe.yaml_text import read_yaml

compare: Any = importlib.import_module("compare")
compare_rates: Any = importlib.import_module("compare_rates")
compare_tables: Any = importlib.import_module("compare_tables")
compare_tasks: Any = importlib.import_module("compare_tasks")

LOSSES = {
    "random": [1.00, 1.10, 0.90, 1.05, 0.95],
    "full": [0.90, 1.01, 0.80, 0.94, 0.86],
    "lora": [1.01, 1.10, 0.89, 1.06, 0.94],
    "loss_top": [1.30, 1.42, 1.19, 1.36, 1.24],
}


def run(arm: str, seed: int, loss: float | None) -> dict[str, Any]:
    return {
        "arm": arm, "seed": seed, "loss": loss, "domains": {"gsm8k": loss, "dolly": loss},
        "learning_rate": 1e-3, "steps": 60, "tokens": 30_000, "seconds": 20.0, "deciding_seconds": 5.0,
        "session": 0, "load_average": 1.0,
    }  # fmt: skip


@pytest.fixture
def content() -> dict[str, Any]:
    """A result file whose second table is not there yet."""
    entries = {
        f"steps/{arm}/{seed}": run(arm, seed, loss)
        for arm, losses in LOSSES.items()
        for seed, loss in enumerate(losses)
    }
    tries = [{"learning_rate": 1e-3, "loss": 1.0}, {"learning_rate": 3e-3, "loss": None}]
    entries["tuning/full"] = {"chosen": 1e-3, "at_edge": True, "tries": tries}
    entries["command/steps"] = {"command": "gradwise compare it"}
    return {"settings": compare.settings(compare_tasks.task("small_llama")), "entries": entries}


def test_tables_say_what_the_runs_say(content: dict[str, Any]) -> None:
    text = "\n\n".join(compare_tables.sections(content))
    assert "`gradwise compare it`" in text
    assert "| `full` | 0.001: 1.0000, 0.003: - | 0.001 (edge of the grid) |" in text
    assert "| `random` | 0.001 | 5 | 60 | 30,000 | 1.0000 | 0.0791 | 1.000 | 1.000 | 20.0 | 5.0 |" in text
    assert text.count("**Equal") == 1, "no table without runs"


def test_verdicts_of_two_references(content: dict[str, Any]) -> None:
    parts = compare_tables.sections(content)
    against = {
        part.split("`")[1]: [row for row in part.splitlines() if row.startswith("| `")]
        for part in parts
        if part.startswith("Against")
    }
    verdicts = {
        reference: {row.split("`")[1]: row.split("|")[-2].strip() for row in rows}
        for reference, rows in against.items()
    }
    assert verdicts == {
        "random": {"full": "better", "lora": "no difference seen", "loss_top": "worse"},
        "full": {"lora": "worse", "loss_top": "worse"},
    }


def test_runs_without_a_finite_loss_are_left_out(content: dict[str, Any]) -> None:
    content["entries"]["steps/random/7"] = run("random", 7, None)
    assert set(compare_tables.runs_of(content, "steps")["random"]) == set(range(5))


@pytest.mark.parametrize("best", compare_rates.RATES)
def test_search_ends_with_the_best_rate_inside_where_it_can_be(best: float) -> None:
    place = compare_rates.RATES.index(best)
    tries = compare_rates.search(
        (3e-4, 1e-3, 3e-3), lambda rate: float(abs(compare_rates.RATES.index(rate) - place))
    )
    rates = [one.learning_rate for one in tries]
    assert rates == sorted(set(rates))
    assert best == min(tries, key=lambda one: one.loss or 0.0).learning_rate
    ends = (compare_rates.RATES[0], compare_rates.RATES[-1])
    assert rates[0] < best < rates[-1] or best in ends


def test_search_stays_away_from_what_diverges() -> None:
    tries = compare_rates.search((1e-3, 3e-3), lambda rate: None if rate > 1e-3 else rate)
    assert [one.learning_rate for one in tries] == [*compare_rates.RATES[: len(tries) - 1], 3e-3]


def test_rate_goes_into_the_arm(tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text("layers: {method: grass, active: 2}\ntrain: {learning_rate: 1e-3, batch_size: 4}\n")
    compare_rates.write_rate(path, 3e-4)
    assert read_yaml(path) == {
        "layers": {"method": "grass", "active": 2},
        "train": {"learning_rate": 3e-4, "batch_size": 4},
    }


@pytest.mark.parametrize("name", list(compare_tasks.TASKS))
def test_every_arm_is_a_recipe_and_learns_from_no_held_out_file(name: str) -> None:
    made = compare_tasks.task(name)
    arms = made.words or made.first_rates
    for arm in arms:
        recipe = made.recipe(arm, {})
        assert recipe.data is not None
        files = [
            {Path(source.path).resolve() for source in (found if isinstance(found, list) else [found])}
            for found in (recipe.data.train, recipe.data.validation)
            if found is not None and not isinstance(found, str)
        ]
        judged_by = {Path(path).resolve() for path in made.check_rates.values()}
        assert len(files) == 2 and files[0].isdisjoint(files[1])
        assert judged_by.isdisjoint(files[0] | files[1])
    assert set(arms) >= {arm for one in made.comparisons for arm in one.arms}
