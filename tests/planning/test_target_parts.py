"""What a run does with a target that stands in the pool, is empty, or has subtasks, before it is divided."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from datasets import concatenate_datasets

import gradwise as gw
from gradwise.data.parts import split
from gradwise.methods.targeting import Subtasks
from gradwise.planning.context import Samples
from gradwise.planning.trials import halves


@pytest.fixture
def said(story_model: Any, arguments: Any, speeches: Any, capsys: Any) -> Any:
    """What a Trainer says before its first step."""

    def said(name: str, changed: Any = None, **options: Any) -> str:
        defaults: dict[str, Any] = {
            "train_dataset": speeches.select(range(32)),
            "eval_dataset": speeches.select(range(50, 54)),
            "recipe": gw.Recipe(select=gw.Grace(count=8)),
        }
        capsys.readouterr()
        trainer = gw.Trainer(
            story_model(), arguments(name, disable_tqdm=True, **(changed or {})), **defaults | options
        )
        said.trainer = trainer  # type: ignore[attr-defined]
        return capsys.readouterr().out

    return said


@pytest.mark.parametrize("method", [gw.Grace(count=8), gw.baselines.Dsir(count=8), gw.SelectTrial(count=8)])
def test_target_samples_in_the_training_data_are_said(said: Any, speeches: Any, method: Any) -> None:
    recipe, target = gw.Recipe(select=method), speeches.select(range(28, 40))
    sentence = "4 of 12 target samples also stand in the training data"
    several = {"a": speeches.select(range(50, 54)), "b": speeches.select(range(54, 56))}
    assert sentence in said("one", recipe=recipe, target_dataset=target)
    assert sentence in said("two", recipe=recipe, target_dataset=target, eval_dataset=several)
    assert "also stand in" not in said("three", recipe=recipe, target_dataset=speeches.select(range(36, 48)))


def test_training_data_do_not_measure_where_evaluation_data_are_divided(said: Any, speeches: Any) -> None:
    recipe = gw.Recipe(select=gw.Grace(count=8, target="validation"))
    heard = said("half", recipe=recipe, eval_dataset=speeches.select(range(26, 46)))
    trainer = said.trainer
    trains = set(map(tuple, trainer.train_dataset["input_ids"]))
    chooses, measures = (
        set(map(tuple, part["input_ids"])) for part in (trainer.target_dataset, trainer.eval_dataset)
    )
    assert measures and not measures & trains and not measures & chooses
    assert f"{len(chooses & trains)} of 10 target samples also stand in the training data" in heard
    assert f"{6 - len(chooses & trains)} of 10 samples that measure are among the training data" in heard


def test_an_empty_target_is_refused(said: Any, speeches: Any) -> None:
    with pytest.raises(gw.RecipeError, match="target_dataset is empty; give at least one sample"):
        said("empty", target_dataset=speeches.select([]))


def test_a_trial_of_an_annealing_phase_names_the_target(said: Any, speeches: Any) -> None:
    recipe = gw.Recipe(anneal=gw.Trial(count=4, contenders=("direct", "random")))
    wsd = {"lr_scheduler_type": "warmup_stable_decay", "max_steps": 8}
    wsd["lr_scheduler_kwargs"] = {"num_decay_steps": 4}
    said("few", wsd, recipe=recipe, target_dataset=speeches.select(range(36, 42)), target_for_select=False)
    with pytest.raises(gw.RecipeError, match=r"one half of the target samples .*; 6 are too few"):
        said.trainer.train()


@pytest.mark.parametrize(
    "sizes", [{"a": 60, "b": 12}, {"a": 40, "b": 10, "c": 10}, {"a": 200, "b": 16}, {"a": 30, "b": 8, "c": 3}]
)
class TestSubtasks:
    @staticmethod
    def _target(speeches: Any, sizes: dict[str, int]) -> Any:
        domain = np.random.default_rng(0).permutation(np.repeat(list(sizes), list(sizes.values())))
        rows = concatenate_datasets([speeches] * 9).select(range(len(domain)))
        rows = rows.remove_columns([name for name in rows.column_names if name == "domain"])
        return rows.add_column("domain", domain.tolist())

    def test_halves_have_those_of_the_whole(self, speeches: Any, sizes: dict[str, int]) -> None:
        target = self._target(speeches, sizes)
        samples = Samples(target, target, list)  # type: ignore[arg-type]
        half = halves(samples, "select")
        whole = Counter(samples.subtask.tolist())  # type: ignore[union-attr]
        for part in (half.choosing, half.judging):
            signals = gw.Signals(len(part), domain=part.domain, subtask=part.subtask)
            subtasks = Subtasks.of_target(signals)
            assert set(subtasks.names) == set(whole)
            for name, share in zip(subtasks.names, subtasks.shares, strict=True):
                assert share * len(part) == pytest.approx(whole[name] / 2, abs=1)
        quarter = halves(half.choosing, "select") if len(half.choosing) >= 8 else half
        large = {name for name, count in whole.items() if count >= 8}
        assert set(quarter.choosing.subtask.tolist()) >= large  # type: ignore[union-attr]

    def test_a_half_of_the_evaluation_data_has_them(
        self, said: Any, speeches: Any, sizes: dict[str, int]
    ) -> None:
        evaluation = self._target(speeches, sizes)
        recipe = gw.Recipe(select=gw.Grace(count=8, target="validation"))
        said("halved", recipe=recipe, eval_dataset=evaluation, train_dataset=speeches.select(range(70, 80)))
        target = said.trainer.session.context().target
        expected = {name if size >= 8 else "others" for name, size in sizes.items()}
        assert set(target.subtask.tolist()) == expected
        assert split(list(evaluation["domain"]), len(evaluation), 0.5).choosing.size == len(target)
