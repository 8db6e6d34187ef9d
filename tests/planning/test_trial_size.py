"""How many samples a trial of selections picks: as many as the run is to see twice."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradwise as gw
from gradwise.planning.first_selection import sized_for_run
from gradwise.run.select import select_samples
from gradwise.training.layout import packer
from tests.conftest import numbered_stories, same_weights

Make = Callable[..., gw.Trainer]


@pytest.fixture
def make(story_model: Any, arguments: Any, speeches: Any) -> Make:
    """A trainer over 32 samples in four steps of four, with 12 target samples."""

    def make(name: str, select: Any, **settings: Any) -> gw.Trainer:
        return gw.Trainer(
            story_model(),
            arguments(name, **{"max_steps": 4, "lr_scheduler_type": "constant", **settings}),
            train_dataset=speeches.select(range(32)),
            eval_dataset=speeches.select(range(50, 54)),
            target_dataset=speeches.select(range(36, 48)),
            recipe=gw.Recipe(select=select),
        )

    return make


def by_words(count: int = 4, **settings: Any) -> gw.SelectTrial:
    """A trial that `dsir` wins without being held."""
    return gw.SelectTrial(contenders=("dsir", "full"), count=count, winner="dsir", **settings)


def picked(trainer: gw.Trainer) -> int:
    plan = trainer.session.plan
    assert plan is not None
    return len(np.unique(plan.indices))


@pytest.mark.parametrize(
    ("settings", "steps", "picks", "times"),
    [
        ({"count": 4}, 4, 8, "4"),
        ({"count": 4}, 5, 10, "5"),
        ({"count": 3}, 1, 3, None),
        ({"count": 8}, 4, 8, None),
        ({"count": 9}, 4, 9, None),
        ({"count": 4, "max_epochs": 1.5}, 4, 11, "4"),
        ({"count": 4, "max_epochs": 1}, 4, 16, "4"),
        ({"count": 4, "max_epochs": None}, 4, 4, None),
        ({"count": 4, "picks": 6}, 4, 6, None),
        ({"count": 4}, 40, 32, "40"),  # all that there are
    ],
)
def test_a_run_picks_as_many_as_it_sees_twice(
    make: Make, settings: Any, steps: int, picks: int, times: str | None
) -> None:
    trainer = make("sized", by_words(**settings), max_steps=steps)
    said: list[str] = []
    trainer.session.tell = said.append
    trainer.train()
    assert picked(trainer) == picks
    sentences = [each for each in said if "select.max_epochs" in each]
    assert len(sentences) == (times is not None)
    number = "all 32" if picks == 32 else str(picks)
    assert not sentences or f"select: {number} samples are selected instead of 4, which" in sentences[0]
    assert not sentences or f"see {times} times each" in sentences[0]
    recipe = gw.Recipe.load(trainer.session.folder / "recipe.yaml")
    assert isinstance(recipe.select, gw.SelectTrial)
    assert recipe.select.picks == (picks if times else settings.get("picks"))
    assert recipe.select.count == settings["count"], "what was asked for stays"


@pytest.mark.parametrize("winner", ["grace", "dsir", "random"])
def test_that_run_is_the_one_of_a_recipe_with_that_count(make: Make, winner: Any) -> None:
    contenders: Any = (winner, "full")
    few, many = (gw.SelectTrial(contenders=contenders, count=n, winner=winner) for n in (4, 8))
    sized, plain = make("sized", few), make("plain", many)
    for trainer in (sized, plain):
        trainer.session.tell = lambda _: None
        trainer.train()
    assert same_weights(sized.model, plain.model)


def test_contenders_of_a_trial_pick_as_many(make: Make) -> None:
    trainer = make("tried", gw.SelectTrial(contenders=("dsir", "nearest"), count=4, max_closeness=None))
    trainer.session.tell = lambda _: None
    trainer.train()
    assert picked(trainer) == 8


@pytest.mark.parametrize(("steps", "everything"), [(15, False), (16, True), (40, True)])
def test_a_run_that_sees_all_of_the_data_twice_holds_no_trial(
    make: Make, steps: int, everything: bool
) -> None:
    select = gw.SelectTrial(count=4, steps=1, max_closeness=None)
    trainer = make("all", select, max_steps=steps)
    said: list[str] = []
    trainer.session.tell = said.append
    trainer.train()
    lines = (trainer.session.folder / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    (trial,) = [each for each in events if each["event"] == "select_trial"]
    assert ("losses" in trial) != everything
    assert picked(trainer) == (32 if trial["winner"] == "full" else 30)
    assert trial["winner"] == "full" or not everything
    assert bool([each for each in events if each["event"] == "signals"]) != everything
    assert bool([each for each in said if "select: all 32 samples are selected" in each]) == everything


def test_epochs_decide_nothing(make: Make) -> None:
    """How long a run of epochs is follows from what is selected."""
    trainer = make("epochs", by_words(), max_steps=-1, num_train_epochs=6)
    trainer.session.tell = lambda _: None
    trainer.train()
    assert picked(trainer) == 4 and trainer.state.max_steps == 6


def test_a_resumed_run_keeps_its_picks(make: Make) -> None:
    first = make("same", by_words(), save_strategy="steps", save_steps=2)
    first.session.tell = lambda _: None
    first.train()
    on = make("same", by_words(), save_strategy="steps", save_steps=2)
    on.session.tell = lambda _: None
    on.train(resume_from_checkpoint=str(Path(first.args.output_dir) / "checkpoint-2"))
    assert picked(on) == 8 and same_weights(first.model, on.model)


def test_a_new_run_in_the_same_folder_counts_again(make: Make) -> None:
    for steps, picks in ((4, 8), (3, 6), (5, 10), (2, 4)):
        trainer = make("same", by_words(), max_steps=steps)
        trainer.session.tell = lambda _: None
        trainer.train()
        assert picked(trainer) == picks


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"picks": 40}, r"select\.picks is 40, but only 32 samples"),
        ({"count": 40}, r"select\.count is 40, but only 32 samples"),
    ],
)
def test_more_than_there_are_is_refused(make: Make, settings: Any, said: str) -> None:
    with pytest.raises(gw.RecipeError, match=said):
        make("refused", by_words(**settings)).train()


def test_picks_without_a_bound_are_refused() -> None:
    with pytest.raises(gw.RecipeError, match=r"select\.picks is 5 .*max_epochs, which is null; give count"):
        by_words(picks=5, max_epochs=None)


@pytest.mark.parametrize(("last", "trained"), [(None, 40), (0.2, 32), (0.5, 20)])
def test_steps_of_the_annealing_phase_do_not_count(make: Make, last: float | None, trained: int) -> None:
    context = make("any", by_words()).session.context()
    sized = sized_for_run(context, steps=10, rows=4, last=last, pack=None)
    assert isinstance(sized.recipe.select, gw.SelectTrial)
    assert sized.recipe.select.picks == trained / 2


@pytest.mark.parametrize("longest", [120, 400])
def test_packed_rows_count_as_the_samples_in_them(make: Make, longest: int) -> None:
    context = make("any", by_words()).session.context()
    pack = packer(context.train.dataset, longest)
    per_row = 32 / (len(pack(np.arange(32))) - 1)
    assert per_row > 1.5
    sized = sized_for_run(context, steps=2, rows=4, last=None, pack=pack)
    assert isinstance(sized.recipe.select, gw.SelectTrial)
    assert sized.recipe.select.picks == min(32, int(np.ceil(8 * per_row / 2)))


@pytest.mark.parametrize("steps", [None, 2, 6])
def test_the_command_selects_what_a_run_would(stories: Path, tmp_path: Path, steps: int | None) -> None:
    more = {} if steps is None else {"max_steps": steps}
    recipe = gw.Recipe(
        model=gw.Model(name=str(stories)),
        data=numbered_stories(tmp_path),
        train=gw.Train(batch_size=4, arguments=more),
        select=by_words(),
    )
    chosen = select_samples(recipe, tmp_path / "chosen", tell=lambda _: None, progress=False)
    count = {None: 4, 2: 4, 6: 12}[steps]
    by_count = replace(recipe, train=gw.Train(), select=gw.baselines.Dsir(count=count))
    alone = select_samples(by_count, tmp_path / "alone", tell=lambda _: None, progress=False)
    assert chosen.indices.tolist() == alone.indices.tolist()
