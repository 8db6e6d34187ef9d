"""Signals by recipe: `collect_signals`, and a smaller model that decides for the one that is trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gradwise as gw
from gradwise import Data, Model, Recipe, RecipeError, Source, Train, baselines
from gradwise.recipe import SignalSettings
from gradwise.run import train
from gradwise.run.signals import collect_signals
from gradwise.training import Plan
from gradwise.training.checkpoint import PLAN


@pytest.fixture
def recipe(tmp_path: Path, stories: Path) -> Recipe:
    """Picks the three worst of eight."""
    lines = (stories.parent / "plays_train.jsonl").read_text().splitlines()[:8]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    return Recipe(
        model=Model(name=str(stories)),
        data=Data(train=Source(path=str(tmp_path / "train.jsonl")), max_length=400),
        train=Train(batch_size=3, learning_rate=1e-3),
        select=baselines.LossTop(count=3),
    )


@pytest.fixture
def proxy(tmp_path: Path, stories: Path) -> Path:
    """The same tokenizer over other weights, which find other records hard."""
    folder = tmp_path / "proxy"
    model = AutoModelForCausalLM.from_pretrained(stories)
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3 * float(parameter.std()))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(stories).save_pretrained(folder)
    return folder


def picked(recipe: Recipe, out: Path) -> list[int]:
    train(recipe, out, tell=lambda _: None, progress=False)
    plan = Plan.load(out / "plan" / PLAN)
    return sorted(int(index) for segment in plan.segments for index in segment.indices)


def test_a_model_is_its_own_proxy(recipe: Recipe, stories: Path, tmp_path: Path) -> None:
    proxied = replace(recipe, signals=SignalSettings(model=Model(name=str(stories))))
    assert picked(proxied, tmp_path / "proxied") == picked(recipe, tmp_path / "plain")


def test_a_proxy_decides_by_its_own_losses(recipe: Recipe, proxy: Path, tmp_path: Path) -> None:
    proxied = replace(recipe, signals=SignalSettings(model=Model(name=str(proxy))))
    theirs = collect_signals(
        proxied, tmp_path / "signals", want=["loss"], tell=lambda _: None, progress=False
    )
    own = collect_signals(recipe, tmp_path / "own", want=["loss"], tell=lambda _: None, progress=False)
    assert theirs.loss is not None and own.loss is not None
    assert not np.allclose(theirs.loss, own.loss, rtol=1e-2)
    assert picked(proxied, tmp_path / "run") == sorted(np.argsort(-theirs.loss)[:3].tolist())


def test_a_proxy_reads_files_of_one_name(recipe: Recipe, proxy: Path, tmp_path: Path) -> None:
    """Their records have the same origins and the same domain, and are distinguished by their place."""
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    files = [tmp_path / name / "part.jsonl" for name in ("one", "two")]
    for file, part in zip(files, (lines[:4], lines[4:]), strict=True):
        file.parent.mkdir()
        file.write_text("\n".join(part) + "\n")
    settings = SignalSettings(model=Model(name=str(proxy)))
    data = replace(recipe.data, train=[Source(path=str(file)) for file in files])  # type: ignore[type-var]
    expected = picked(replace(recipe, signals=settings), tmp_path / "in one file")
    assert picked(replace(recipe, signals=settings, data=data), tmp_path / "in two") == expected


def test_a_trainer_wants_the_proxy_itself(recipe: Recipe, story_model, arguments, speeches) -> None:
    asked = Recipe(select=recipe.select, signals=SignalSettings(model=Model(name="smaller")))
    with pytest.raises(RecipeError, match=r"signals\.model is for `gradwise train`"):
        gw.Trainer(story_model(), arguments(), train_dataset=speeches, recipe=asked)


def test_rows_are_named_beside_the_store(recipe: Recipe, tmp_path: Path) -> None:
    signals = collect_signals(recipe, tmp_path / "store", want=["loss"], tell=lambda _: None, progress=False)
    rows = pyarrow.parquet.read_table(tmp_path / "store" / "rows.parquet").to_pylist()
    assert [row["origin"] for row in rows] == [f"train.jsonl:{number}" for number in range(1, 9)]
    assert [row["label_tokens"] for row in rows] == list(signals.num_tokens)  # type: ignore[arg-type]
