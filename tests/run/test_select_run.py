"""`select_samples`: the same selection as the run's, in files that others can read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import gradwise as gw
from gradwise import Data, DataError, Model, Recipe, Source, Train, baselines
from gradwise.data import load
from gradwise.data.settings import Allowed
from gradwise.numerics.plane import principal_plane
from gradwise.planning import scoring
from gradwise.report.pool import draw_pool
from gradwise.run import train
from gradwise.run.model import load_tokenizer
from gradwise.run.records import records_of
from gradwise.run.select import select_samples
from gradwise.training import Plan
from tests.conftest import some

SELECTIONS = [
    gw.Grace(fraction=0.3, candidates="all", refresh_every=0),
    gw.Grace(count=6, candidates="all", refresh_every=0, importance="head_norm", by_length=True),
    gw.Grace(count=4, candidates=9, refresh_every=0),
    gw.Grace(count=8, candidates=9, refresh_every=0),
    baselines.LossTop(count=5),
    baselines.GradNormTop(count=5),
    baselines.KCenter(count=5),
    baselines.RandomSubset(fraction=0.5),
]


@pytest.fixture
def recipe(tmp_path: Path, stories: Path) -> Recipe:
    """Twenty records in two files."""
    lines = (stories.parent / "plays_train.jsonl").read_text().splitlines()[:20]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:12]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[12:]) + "\n")
    sources = [Source(path=str(tmp_path / f"{name}.jsonl")) for name in "ab"]
    return Recipe(
        model=Model(name=str(stories)),
        data=Data(train=sources, max_length=400),
        train=Train(batch_size=2, learning_rate=1e-3),
        order=baselines.GivenOrder(),
    )


def selected(recipe: Recipe, out: Path, **options: Any) -> list[int]:
    picked = select_samples(recipe, out, tell=lambda _: None, progress=False, **options)
    return picked.indices.tolist()


@pytest.mark.parametrize(
    "select", some(SELECTIONS), ids=lambda one: f"{one.method}-{getattr(one, 'candidates', None)}"
)
def test_is_what_a_run_begins_with(recipe: Recipe, select: Any, tmp_path: Path) -> None:
    chosen = replace(recipe, select=select)
    picks = selected(chosen, tmp_path / "picks")
    train(chosen, tmp_path / "run", tell=lambda _: None, progress=False)
    plan = Plan.load(tmp_path / "run" / "plan" / "plan.safetensors")
    assert plan.indices.tolist() == picks
    table = pyarrow.parquet.read_table(tmp_path / "picks" / "picks.parquet").to_pylist()
    assert [row["index"] for row in table] == picks
    assert all(row["why"] and row["text"] for row in table)


def test_records_are_those_of_the_sources_in_the_order_picked(recipe: Recipe, tmp_path: Path) -> None:
    selected(replace(recipe, select=gw.Grace(count=7)), tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "picks.parquet").to_pylist()
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    for row, record in zip(table, records, strict=True):
        name, _, number = row["origin"].partition(":")
        assert json.loads((tmp_path / name).read_text().splitlines()[int(number) - 1]) == record
    summary = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert summary["picked"] == 7
    assert {name: found["pool"] for name, found in summary["domains"].items()} == {"a": 12, "b": 8}
    assert sum(found["picked"] for found in summary["domains"].values()) == 7


def test_no_text_leaves_the_data_where_they_are(recipe: Recipe, tmp_path: Path) -> None:
    chosen = replace(recipe, select=gw.Grace(count=3))
    selected(chosen, tmp_path / "out")
    selected(chosen, tmp_path / "out", text=False)
    assert not (tmp_path / "out" / "records.jsonl").exists()
    assert "text" not in pyarrow.parquet.read_schema(tmp_path / "out" / "picks.parquet").names


def test_other_settings_do_not_reuse_what_was_measured(recipe: Recipe, tmp_path: Path) -> None:
    """The store refuses; nobody's picks come from signals that were not asked for."""
    selected(replace(recipe, select=gw.Grace(count=3)), tmp_path / "out")
    other = replace(recipe, select=gw.Grace(count=3, importance="norm"))
    with pytest.raises(gw.SignalError):
        selected(other, tmp_path / "out")


def test_the_pool_is_drawn_with_its_picks(recipe: Recipe, tmp_path: Path) -> None:
    selected(replace(recipe, select=gw.Grace(count=3)), tmp_path / "out")
    picture = draw_pool(tmp_path / "out" / "signals", tmp_path / "out" / "picks.parquet")
    assert picture.read_bytes().startswith(b"\x89PNG")
    selected(replace(recipe, select=baselines.RandomSubset(count=3)), tmp_path / "random")
    with pytest.raises(gw.SignalError, match="holds no embeddings"):
        draw_pool(tmp_path / "random" / "signals", tmp_path / "random" / "picks.parquet")


def test_the_plane_is_that_of_most_variance() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 5)) * np.array([1, 9, 1, 4, 1])
    plane, share = principal_plane(x + 7)
    assert abs(np.corrcoef(plane[:, 0], x[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(plane[:, 1], x[:, 3])[0, 1]) > 0.99
    assert share == pytest.approx((81 + 16) / 100, abs=0.03)


def test_a_recipe_without_data_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises((gw.RecipeError, DataError), match="names no data"):
        selected(replace(recipe, data=None), tmp_path / "out")


def test_what_scoring_cost_is_written_down(recipe: Recipe, tmp_path: Path) -> None:
    """Also when the signals were all there already."""
    own, costs = replace(recipe, select=baselines.LossTop(count=5)), []
    for _ in range(2):
        selected(own, tmp_path / "out")
        costs.append(json.loads((tmp_path / "out" / "selection.json").read_text())["seconds_measuring"])
    assert costs[0] == costs[1] > 0


def test_sentences_on_samples_set_aside_are_said(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = scoring.collect

    def noting(*args: Any, tell: Any, **options: Any) -> Any:
        tell("1 of 20 samples set aside")
        return collect(*args, tell=tell, **options)

    monkeypatch.setattr(scoring, "collect", noting)
    said: list[str] = []
    own = replace(recipe, select=baselines.LossTop(count=5))
    select_samples(own, tmp_path / "out", tell=said.append, progress=False)
    assert "Warning: 1 of 20 samples set aside" in said


@pytest.mark.parametrize("domains", [("math", None), (None, None)])
def test_records_of_files_of_one_name_are_distinguished(
    recipe: Recipe, tmp_path: Path, domains: tuple[str | None, str | None]
) -> None:
    """Also where they say the same domain themselves, and where a record before them is left out."""
    written, sources = [], []
    for folder, domain in zip("xy", domains, strict=True):
        rows = [json.loads(line) for line in (tmp_path / f"{'ab'['xy'.index(folder)]}.jsonl").open()]
        rows = [{"text": row["text"], "domain": "math"} for row in rows[:4]]
        rows[1]["text"] = " "
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "same.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        written += [rows[0], *rows[2:]]
        sources.append(Source(path=str(path), domain=domain))
    assert recipe.model is not None
    data = Data(train=sources, max_length=400, allow=Allowed(empty=1))
    pool = load(data, "train", load_tokenizer(recipe.model), progress=False)
    assert set(pool.dataset["domain"]) == {"math"} and len(set(pool.dataset["origin"])) == 3
    indices = np.array([5, 0, 3, 1, 3])
    assert list(records_of(sources, pool, indices)) == [written[index] for index in indices]
    (tmp_path / "x" / "same.jsonl").write_text(json.dumps(written[0]) + "\n")
    with pytest.raises(DataError, match=r"The data have changed since they were read: same\.jsonl:4 is no"):
        list(records_of(sources, pool, indices))
