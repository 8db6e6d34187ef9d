"""Uploads to the hub: the record of a run, which holds texts of the training data, is none of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

import gradwise as gw
from gradwise import Data, Model, Recipe, RecipeError, Train
from gradwise.comparison.compare import compare
from gradwise.run import train

HUB: dict[str, Any] = {"push_to_hub": True, "hub_model_id": "me/mine", "hub_strategy": "end"}


@pytest.fixture
def recipe(stories: Path, few_speeches: Callable[..., Data]) -> Recipe:
    """With uploads, in two steps."""
    arguments = HUB | {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no"}
    return Recipe(
        model=Model(name=str(stories)),
        data=few_speeches(max_length=64, allow={"cut": 1.0}),
        train=Train(batch_size=2, learning_rate=1e-3, arguments=arguments),
    )


@pytest.mark.parametrize("record", [None, "out", "out/record"])
def test_a_record_in_what_is_uploaded_is_refused(
    record: str | None, story_model: Callable[[], Any], arguments: Any, speeches: Any, tmp_path: Path
) -> None:
    """Before the Trainer makes the repository, which it does as it is made."""
    with pytest.raises(RecipeError, match=r"holds texts of the training data; give the Trainer a run_dir"):
        gw.Trainer(
            story_model(),
            arguments(**HUB),
            train_dataset=speeches,
            run_dir=None if record is None else tmp_path / record,
        )


def test_so_is_an_upload_by_hand(story_model: Callable[[], Any], arguments: Any, speeches: Any) -> None:
    trainer = gw.Trainer(story_model(), arguments(), train_dataset=speeches)
    with pytest.raises(RecipeError, match="push_to_hub uploads all of"):
        trainer.push_to_hub()


def test_checkpoints_are_not_uploaded_in_the_making(
    story_model: Callable[[], Any], arguments: Any, speeches: Any, tmp_path: Path
) -> None:
    with pytest.raises(
        RecipeError, match="hub_strategy: checkpoint would upload checkpoints before they are"
    ):
        gw.Trainer(
            story_model(),
            arguments(**HUB | {"hub_strategy": "checkpoint"}),
            train_dataset=speeches,
            run_dir=tmp_path / "record",
        )


def test_a_run_ends_where_its_model_cannot_be_uploaded(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder was left without a model, and every repetition failed the same way."""
    monkeypatch.setattr(transformers.Trainer, "init_hf_repo", lambda *_, **__: None)
    said: list[str] = []
    outcome = train(recipe, tmp_path / "run", tell=said.append, progress=False)
    assert outcome.finished and (tmp_path / "run" / "model" / "model.safetensors").exists()
    (warning,) = [sentence for sentence in said if "could not be uploaded" in sentence]
    assert f"`hf upload me/mine {tmp_path / 'run' / 'model'}`" in warning


def test_a_comparison_uploads_nothing(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="push_to_hub would upload the model of every run to one repository"
    ):
        compare(recipe, ["full"], out=tmp_path / "comparison")
    without = replace(recipe, train=Train(batch_size=2, learning_rate=1e-3))
    arm = tmp_path / "hub.yaml"
    arm.write_text("train: {push_to_hub: true, hub_model_id: me/mine}\n")
    with pytest.raises(RecipeError, match="push_to_hub would upload"):
        compare(without, [str(arm)], out=tmp_path / "comparison")
    assert not (tmp_path / "comparison").exists()
