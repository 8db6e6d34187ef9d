"""`select_annealing`: what a run's annealing phase would train on if its model were the recipe's."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import gradwise as gw
from gradwise import Data, Model, Recipe, Train, baselines
from gradwise.methods.direct import Direct
from gradwise.methods.trial import Trial
from gradwise.run import train
from gradwise.run.select import select_annealing
from gradwise.training import Plan
from tests.conftest import some

PHASES = [
    Direct(count=6, last=0.5),
    Direct(fraction=0.4, objective="paper", last=0.5, candidates=15),
    baselines.CosineTop(count=6, last=0.5),
    baselines.Herding(count=6, last=0.5),
    baselines.LossAnneal(count=6, last=0.5),
    baselines.RandomAnneal(count=6, last=0.5),
]


@pytest.fixture
def recipe(stories: Path, few_speeches: Callable[..., Data]) -> Recipe:
    """At this learning rate the first half of a run changes nothing."""
    return Recipe(
        model=Model(name=str(stories)),
        data=few_speeches(max_length=400),
        train=Train(
            batch_size=2,
            learning_rate=1e-30,
            schedule="wsd",
            arguments={"eval_strategy": "no", "eval_on_start": False},
        ),
        order=baselines.GivenOrder(),
    )


def selected(recipe: Recipe, out: Path, **options: Any) -> Any:
    return select_annealing(recipe, out, tell=lambda _: None, progress=False, **options)


@pytest.mark.parametrize("phase", some(PHASES), ids=lambda phase: f"{phase.method}-{phase.candidates}")
def test_is_what_a_run_finishes_on(recipe: Recipe, phase: Any, tmp_path: Path) -> None:
    chosen = replace(recipe, anneal=phase)
    picked = selected(chosen, tmp_path / "picks")
    train(chosen, tmp_path / "run", tell=lambda _: None, progress=False)
    plan = Plan.load(tmp_path / "run" / "plan" / "plan.safetensors")
    assert plan.indices[10:16].tolist() == picked.indices.tolist()
    table = pyarrow.parquet.read_table(tmp_path / "picks" / "picks.parquet").to_pylist()
    assert [row["index"] for row in table] == picked.indices.tolist()
    summary = json.loads((tmp_path / "picks" / "selection.json").read_text())
    assert summary["anneal"]["method"] == phase.method and summary["picked"] == 6
    records = (tmp_path / "picks" / "records.jsonl").read_text().splitlines()
    assert len(records) == 6


def test_validation_samples_are_spread_over_the_file(recipe: Recipe, tmp_path: Path) -> None:
    picked = selected(replace(recipe, anneal=Direct(count=3, validation_samples=4)), tmp_path / "out")
    assert picked.details["validation_samples"] == 4
    kept, every = (
        np.asarray(gw.Signals.open(tmp_path / name / "validation").grad)
        for name in ("out", "all")
        if name == "out" or selected(replace(recipe, anneal=Direct(count=3)), tmp_path / "all")
    )
    np.testing.assert_allclose(kept, every[[0, 2, 4, 7]], rtol=1e-4, atol=1e-5)


def test_overlap_is_reported(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.data is not None
    same = replace(recipe, data=replace(recipe.data, validation=recipe.data.train), anneal=Direct(count=3))
    details: list[str] = []
    select_annealing(same, tmp_path / "out", tell=details.append, progress=False)
    assert any("20 of 20 validation samples also occur in the training data" in line for line in details)
    aimed = replace(same, data=replace(recipe.data, validation=None, target=recipe.data.train))
    select_annealing(aimed, tmp_path / "aimed", tell=details.append, progress=False)
    assert any(line.startswith("10 of 10 target samples also stand among") for line in details)


@pytest.mark.parametrize(
    ("phase", "sentence"),
    [
        (None, "no `anneal`"),
        (Direct(count=3, pool="selection"), "give pool: all"),
        (Direct(count=3, precondition=True), "needs the optimizer of a run"),
        (Direct(), "give fraction, count or tokens"),
        (Direct(count=21), "only 20 samples can be chosen from"),
    ],
)
def test_what_only_a_run_can_do_is_refused(recipe: Recipe, tmp_path: Path, phase: Any, sentence: str) -> None:
    with pytest.raises(gw.RecipeError, match=sentence):
        selected(replace(recipe, anneal=phase), tmp_path / "out")


def test_without_validation_data(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.data is not None
    bare = replace(recipe, data=replace(recipe.data, validation=None), anneal=Direct(count=3))
    with pytest.raises(gw.RecipeError, match=r"none are given; give data\.validation"):
        selected(bare, tmp_path / "out")


def events(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]


def test_what_the_phase_chooses_by_is_no_target_of_the_selection(recipe: Recipe, tmp_path: Path) -> None:
    """The choosing half of the validation data is for `anneal` alone, where `select` names no target."""
    assert recipe.data is not None
    halved = replace(
        recipe,
        data=replace(recipe.data, target_share=0.5),
        select=gw.Grace(count=8),
        anneal=Direct(count=4, last=0.5),
    )
    train(halved, tmp_path / "run", tell=lambda _: None, progress=False)
    saved = Recipe.load(tmp_path / "run" / "recipe.yaml")
    assert saved.select.target is None  # type: ignore[union-attr]
    assert "ngrams" not in events(tmp_path / "run")


def test_the_recipe_of_a_run_with_a_target_stays_whole(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.data is not None
    data = replace(recipe.data, validation=None, target=recipe.data.validation)
    aimed = replace(recipe, data=data, select=gw.Grace(count=8))
    train(aimed, tmp_path / "run", tell=lambda _: None, progress=False)
    saved = Recipe.load(tmp_path / "run" / "recipe.yaml")
    assert (saved.data, saved.train) == (aimed.anchored().data, aimed.train)
    assert saved.model is not None and saved.select.target == "target"  # type: ignore[union-attr]
    assert "ngrams" in events(tmp_path / "run")
    (tmp_path / "run" / "model").rename(tmp_path / "model")  # as if it had been killed before its end
    assert train(aimed, tmp_path / "run", tell=lambda _: None, progress=False).finished


def test_a_trial_is_refused_before_anything_is_measured(recipe: Recipe, tmp_path: Path) -> None:
    trial: Any = Trial(contenders=("direct", "random"), count=6, last=0.5)
    with pytest.raises(gw.RecipeError, match="only a run can do"):
        selected(replace(recipe, anneal=trial), tmp_path / "picks")
    assert not (tmp_path / "picks").exists()
