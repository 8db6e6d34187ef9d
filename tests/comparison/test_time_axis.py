"""The cost of deciding is in the seconds shown: whole runs with a decision that takes two seconds longer."""

import time
from pathlib import Path
from typing import Any

import pytest

from gradwise import Recipe
from gradwise.comparison.arms import parse_arms
from gradwise.comparison.runs import run, run_recipe
from gradwise.methods.baselines import LengthTop
from gradwise.report.curves import mean_curve
from gradwise.report.reading import read_run

COST = 2.0


@pytest.mark.slow
def test_an_arm_whose_decision_takes_longer_is_later_by_as_much(
    tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = stories.parent
    recipe = Recipe.from_dict(
        {
            "model": {"name": str(stories)},
            "data": {
                "train": str(assets / "plays_train.jsonl"),
                "validation": str(assets / "plays_held_out.jsonl"),
                "max_length": 32,
                "allow": {"cut": 1},
            },
            "train": {"batch_size": 4},
        }
    )
    select = LengthTop.select

    def slow(self: LengthTop, *args: Any, **kwargs: Any) -> Any:
        time.sleep(COST)
        return select(self, *args, **kwargs)

    monkeypatch.setattr(LengthTop, "select", slow)
    (arm,) = parse_arms(["length_top"], recipe, fraction=0.1)
    settings: dict[str, Any] = {"keep_checkpoints": False, "discard_model": True}
    run(run_recipe(arm.recipe, 0, 3), tmp_path / arm.name, tmp_path / "signals", **settings)
    late = read_run(tmp_path / arm.name, arm.name, 0)
    assert late.deciding >= COST
    # The whole curve, from before the first step on, and the steps come on top.
    axis = mean_curve([late.curve], "seconds")[0]
    assert axis[0] >= COST
    # Lines of the record are rounded to milliseconds.
    assert late.seconds >= axis[-1] - 1e-3
    assert axis[-1] > axis[0]
    assert not list(tmp_path.glob("*/model/*.safetensors"))
    assert late.finished
