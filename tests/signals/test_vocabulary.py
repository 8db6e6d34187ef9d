"""Tokens that the model has no embedding for: one sentence before the first step, in every command."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import gradwise as gw
from gradwise import Data, DataError, Model, Recipe, Train, baselines
from gradwise.comparison.workbench import Workbench
from gradwise.data import Collator
from gradwise.folders import claimed
from gradwise.recipe import SignalSettings
from gradwise.run import train
from gradwise.run.directory import FILES
from gradwise.run.order import order_samples
from gradwise.run.select import select_annealing, select_samples
from gradwise.run.signals import collect_signals

QUIET: dict[str, Any] = {"tell": lambda _: None, "progress": False}


@pytest.fixture
def small(tiny_llama: Any, tokenizer: Any, tmp_path: Path) -> Path:
    """A model with embeddings for 300 tokens, beside a tokenizer with 512."""
    tiny_llama(layers=2, vocab_size=300, max_position_embeddings=512).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def recipe(small: Path, few_speeches: Callable[..., Data]) -> Recipe:
    return Recipe(
        model=Model(name=str(small)),
        data=few_speeches(max_length=400),
        train=Train(batch_size=4, schedule="wsd", arguments={"use_cpu": True}),
        select=baselines.LossTop(count=4),
    )


def _compared(recipe: Recipe, out: Path) -> None:
    with claimed(out / "bench", "run", FILES) as folder:
        Workbench(recipe, out / "shared", folder).planned()


COMMANDS: dict[str, Callable[[Recipe, Path], Any]] = {
    "train": lambda recipe, out: train(replace(recipe, select=baselines.FullData()), out, **QUIET),
    "train, selecting": lambda recipe, out: train(recipe, out, **QUIET),
    "collect": lambda recipe, out: collect_signals(recipe, out, want=["loss"], **QUIET),
    "select": lambda recipe, out: select_samples(recipe, out, **QUIET),
    "select, annealing": lambda recipe, out: select_annealing(
        replace(recipe, anneal=gw.Direct(count=2)), out, **QUIET
    ),
    "order": lambda recipe, out: order_samples(replace(recipe, order=gw.D3(units=4, size=2)), out, **QUIET),
    "compare": _compared,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_in_every_command(recipe: Recipe, command: str, tmp_path: Path) -> None:
    sentence = r"train\.jsonl:1 has token [345]\d\d, and the model has embeddings for 0 to 299"
    with pytest.raises(DataError, match=sentence):
        COMMANDS[command](recipe, tmp_path / "out")


def test_of_validation_samples_alone(recipe: Recipe, tmp_path: Path) -> None:
    """Which `select --anneal` scores as well; the training samples have tokens below 300 only."""
    texts = [" ".join(["the", "a", "to", "he"][: 1 + n % 4] * (1 + n // 4)) for n in range(8)]
    (tmp_path / "low.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert recipe.data is not None
    data = replace(recipe.data, train=gw.Source(path=str(tmp_path / "low.jsonl")))
    own = replace(recipe, data=data, anneal=gw.Direct(count=2))
    with pytest.raises(DataError, match=r"valid\.jsonl:1 has token [345]\d\d"):
        select_annealing(own, tmp_path / "out", **QUIET)


def test_of_the_model_that_measures(recipe: Recipe, small: Path, stories: Path, tmp_path: Path) -> None:
    proxied = replace(
        recipe,
        model=Model(name=str(stories)),
        signals=SignalSettings(model=Model(name=str(small))),
    )
    for command in ("train, selecting", "select"):
        with pytest.raises(DataError, match="has token"):
            COMMANDS[command](proxied, tmp_path / command)


class TestTrainer:
    @pytest.mark.parametrize("part", ["train_dataset", "eval_dataset", "one of the evaluation sets"])
    def test_names_sample_and_token(self, tiny_llama: Any, arguments: Any, part: str) -> None:
        rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]} for _ in range(6)]
        good, bad = (
            Dataset.from_list(rows),
            Dataset.from_list([*rows[:3], {"input_ids": [5, 64], "labels": [5, 64]}]),
        )
        given: dict[str, Any] = {"train_dataset": good, part: bad}
        if part.startswith("one"):
            given = {"train_dataset": good, "eval_dataset": {"a": good, "b": bad}}
        trainer = gw.Trainer(tiny_llama(), arguments(), Collator(0), **given)
        with pytest.raises(
            DataError, match=r"^sample 3 has token 64, and the model has embeddings for 0 to 63"
        ):
            trainer.train()

    @pytest.mark.parametrize("padding", [64, -1])
    def test_padding(self, tiny_llama: Any, arguments: Any, padding: int) -> None:
        rows = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4)
        with pytest.raises(DataError, match=f"The padding token is number {padding}"):
            gw.Trainer(tiny_llama(), arguments(), Collator(padding), rows).train()
