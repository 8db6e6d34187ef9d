"""`order_samples`: one pass in order, in files that others can read."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaModel

import gradwise as gw
from gradwise import Data, Model, Recipe, Source, Train, baselines
from gradwise.data import label_words, load
from gradwise.data.settings import Allowed
from gradwise.planning import scoring
from gradwise.run import train
from gradwise.run.order import order_samples
from gradwise.training import Plan
from tests.conftest import some

EACH = 16

PASSES = [
    (baselines.EasyFirst(), baselines.RandomSubset(count=9)),
    (baselines.Interleave(), gw.Grace(count=8, candidates=9, refresh_every=0)),
    (baselines.HerdedOrder(), baselines.FullData()),
    (baselines.MostUsefulFirst(), baselines.LossTop(count=9)),
]


@pytest.fixture
def recipe(tmp_path: Path, stories: Path) -> Recipe:
    """Speeches and problems, and as few of both held out."""
    sources: dict[str, list[Source]] = {"train": [], "held_out": []}
    for part, count in (("train", EACH), ("held_out", 4)):
        for name in ("plays", "gsm8k"):
            lines = (stories.parent / f"{name}_{part}.jsonl").read_text().splitlines()
            lines = (
                sorted(lines[: 8 * count], key=len)[-count:]
                if name == "plays"
                else sorted(lines, key=len)[:count]
            )
            path = tmp_path / f"{name}_{part}.jsonl"
            path.write_text("\n".join(lines) + "\n")
            sources[part].append(Source(path=str(path), domain=name))
    return Recipe(
        model=Model(name=str(stories)),
        data=Data(
            train=sources["train"],
            validation=sources["held_out"],
            max_length=192,
            template="plain",
            allow=Allowed(cut=1.0, empty=1.0),
        ),
        train=Train(batch_size=4, learning_rate=1e-3),
        order=gw.D3(units="domains", size=4, probes=2, target_samples=4),
        seed=3,
    )


def ordered(recipe: Recipe, out: Path, **options: Any) -> Any:
    return order_samples(recipe, out, tell=lambda _: None, progress=False, **options)


def table(out: Path) -> dict[str, list[Any]]:
    return pyarrow.parquet.read_table(out / "ordered.parquet").to_pydict()


@pytest.mark.parametrize(("order", "select"), some(PASSES), ids=lambda one: getattr(one, "method", None))
def test_is_the_first_pass_of_a_run(recipe: Recipe, order: Any, select: Any, tmp_path: Path) -> None:
    chosen = replace(
        recipe, order=order, select=select, train=Train(batch_size=4, arguments={"max_steps": 1})
    )
    found = ordered(chosen, tmp_path / "out")
    assert recipe.data is not None
    bare = replace(chosen, data=replace(recipe.data, validation=None))
    train(bare, tmp_path / "run", tell=lambda _: None, progress=False, score=False)
    plan = Plan.load(tmp_path / "run" / "plan" / "plan.safetensors")
    assert found.indices.tolist() == plan.indices[: len(found.indices)].tolist()
    assert table(tmp_path / "out")["index"] == found.indices.tolist()
    assert not (tmp_path / "out" / "graph.parquet").exists()


def test_another_trainer_reads_the_records_in_order(recipe: Recipe, tmp_path: Path) -> None:
    found = ordered(recipe, tmp_path / "out")
    files = str(tmp_path / "out" / "ordered.parquet")
    rows: Any = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "c")
    )
    assert sorted(rows["index"]) == list(range(2 * EACH))
    assert list(rows["position"]) == list(range(2 * EACH))
    assert list(rows["index"]) == found.indices.tolist()
    for row in rows:
        name, _, number = row["origin"].partition(":")
        record = json.loads((tmp_path / name).read_text().splitlines()[int(number) - 1])
        assert {key: row[key] for key in record} == record
        assert row["domain"] == name.partition("_")[0]
    by_unit = np.array(rows["unit"]).reshape(-1, 4)
    assert (by_unit == by_unit[:, :1]).all()
    assert len({unit[0] for unit in by_unit.tolist()}) == 2 * EACH // 4


@pytest.mark.parametrize("edges", ["curvature", "lookahead", "first_order"])
def test_d3_orders_as_it_does_in_python(
    recipe: Recipe, edges: Any, story_model: Callable[[], Any], tokenizer: Any, tmp_path: Path
) -> None:
    assert recipe.data is not None
    d3 = gw.D3(units="domains", edges=edges, probes=2, target_samples=4)
    # A quarter of a batch of five, rounded up, is two. What is unset is curvature, as in a run.
    asked = replace(d3, edges=None) if edges == "curvature" else d3
    found = ordered(
        replace(recipe, order=asked, train=Train(batch_size=5, arguments={"optim": "adamw_torch"})),
        tmp_path / "out",
    )
    pool, model = load(recipe.data, "train", tokenizer, progress=False), story_model()
    # The rate cannot matter to which of two steps is better first, but for look-ahead's own curvature.
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    probe = gw.Probe(model, optimizer, pool.dataset, gw.Collator.for_tokenizer(tokenizer), clip=1.0)
    known = gw.Signals(len(pool), domain=np.array(pool.dataset["domain"]), words=label_words(pool.dataset))
    again = replace(d3, size=2).order(known, probe=probe, seed=3)
    assert found.indices.tolist() == again.indices.tolist()
    np.testing.assert_array_equal(found.graph.weight, again.graph.weight)
    graph = pyarrow.parquet.read_table(tmp_path / "out" / "graph.parquet").to_pydict()
    assert graph == again.graph.columns(d3.threshold)


def test_its_summary(recipe: Recipe, tmp_path: Path) -> None:
    found = ordered(recipe, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "order.json").read_text())
    assert stored["sha256"] == hashlib.sha256(found.indices.astype("<i8").tobytes()).hexdigest()
    assert (stored["order"]["method"], stored["order"]["size"], stored["seed"]) == ("d3", 4, 3)
    assert stored["domains"] == {"gsm8k": EACH, "plays": EACH}
    assert stored["objective"] == found.objective and "imbalance" in stored
    assert stored["seconds_measuring"] > 0 and stored["pool"] == stored["ordered"] == 2 * EACH


@pytest.mark.slow
def test_the_same_command_gives_the_same_order(recipe: Recipe, tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        ordered(replace(recipe, seed=seed), tmp_path / name)
        files.append(table(tmp_path / name))
    assert files[0] == files[1] != files[2]


def test_only_picked_samples_are_ordered_and_measured(recipe: Recipe, tmp_path: Path) -> None:
    """Gradients are measured of them alone, and influences too."""
    select = baselines.RandomSubset(count=16)
    order = gw.D3(units=2, size=4, probes=2, target_samples=4)
    found = ordered(replace(recipe, select=select, order=order), tmp_path / "out")
    picks = select.select(gw.Signals(2 * EACH), seed=3).indices
    assert sorted(found.indices.tolist()) == sorted(picks.tolist())
    signals = gw.Signals.open(tmp_path / "out" / "signals")
    assert len(signals) == 16 and signals.grad is not None
    clusters = order.groups(signals, seed=3)
    group = clusters[np.searchsorted(np.sort(picks), found.indices)].reshape(-1, 4)
    assert sum(len(set(unit)) == 1 for unit in group.tolist()) >= 3
    assert len(found.graph) == 2


@pytest.mark.exhaustive
def test_stopped_scoring_resumes(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = replace(recipe.signals, batch_tokens=400)
    chosen = replace(recipe, order=baselines.HerdedOrder(), signals=signals)
    whole, passes, stop_at = ordered(chosen, tmp_path / "whole"), 0, 22
    forward = LlamaModel.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == stop_at:
            raise KeyboardInterrupt
        return forward(*arguments, **options)

    monkeypatch.setattr(LlamaModel, "forward", counted)
    with pytest.raises(KeyboardInterrupt):
        ordered(chosen, tmp_path / "out")
    assert not (tmp_path / "out" / "ordered.parquet").exists()
    counts = []
    for name in ("out", "out", "fresh"):
        passes, stop_at = 0, -1
        assert ordered(chosen, tmp_path / name).indices.tolist() == whole.indices.tolist()
        counts.append(passes)
    # A finished store still has the model tried on a few samples.
    assert counts[1] < counts[0] < counts[2]


def test_no_text_leaves_the_records_where_they_are(recipe: Recipe, tmp_path: Path) -> None:
    ordered(recipe, tmp_path / "out")
    assert {"text", "question"} <= set(table(tmp_path / "out"))
    ordered(recipe, tmp_path / "out", text=False)
    assert list(table(tmp_path / "out")) == ["position", "index", "unit", "domain", "origin", "why"]


def test_columns_that_records_do_not_agree_on(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.data is not None
    records: list[dict[str, Any]] = [
        {
            "text": f"Number {n}.",
            "notes": [{"by": "us", "marks": [n, n + 1]}],
            "level": n if n % 2 else "high",
            "index": 100 + n,
            "domain": "ab"[n % 2],
        }
        for n in range(8)
    ]
    path = tmp_path / "nested.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = replace(recipe.data, train=Source(path=str(path)))
    messages: list[str] = []
    chosen = replace(recipe, data=data, order=baselines.Interleave())
    order_samples(chosen, tmp_path / "out", tell=messages.append, progress=False)
    found = table(tmp_path / "out")
    assert "level" not in found and any("level cannot be a column" in sentence for sentence in messages)
    assert found["record_index"] == [100 + index for index in found["index"]]
    assert found["notes"] == [records[index]["notes"] for index in found["index"]]
    assert "record_domain" not in found and set(found["domain"]) == {"a", "b"}
    assert found["unit"] == [None] * 8


def test_weights_are_whole_copies(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.data is not None and isinstance(recipe.data.train, list)
    first, second = recipe.data.train
    weighted = [replace(first, weight=3.0), second]
    chosen = replace(recipe, data=replace(recipe.data, train=weighted), order=gw.D3())
    found = ordered(chosen, tmp_path / "out")
    assert len(found.indices) == 2 * EACH
    assert np.bincount(found.indices < EACH).tolist() == [8, 24]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"order": gw.D3(units="domains", target="validation"), "validation": None},
            r"none are given; give data\.validation",
        ),
        ({"single": True}, "only one of the domains"),
        ({"packing": True, "order": gw.D3()}, r"give order\.size, or packing: false"),
        ({"model": None}, "names no model"),
        (
            {"order": baselines.EasyFirst(), "select": gw.Grace(count=4, candidates=9)},
            "needs signals of all samples",
        ),
    ],
)
def test_what_cannot_be_ordered_is_refused(
    recipe: Recipe, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    assert recipe.data is not None and isinstance(recipe.data.train, list)
    data = recipe.data
    if change.pop("single", False):
        data = replace(data, train=recipe.data.train[0])
    for name in ("packing", "validation"):
        if name in change:
            data = replace(data, **{name: change.pop(name)})
    with pytest.raises(gw.RecipeError, match=sentence):
        ordered(replace(recipe, data=data, **change), tmp_path / "out")
    assert not (tmp_path / "out" / "ordered.parquet").exists()


def test_the_target_can_be_the_validation_data(recipe: Recipe, tmp_path: Path) -> None:
    aims = [
        ordered(
            replace(recipe, order=gw.D3(units="domains", target=target, probes=2, target_samples=8)),
            tmp_path / target,
        )
        for target in ("pool", "validation")
    ]
    assert not np.allclose(aims[0].graph.influence, aims[1].graph.influence)


def test_both_orders_are_tried_and_the_cost_is_stated(recipe: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    order = gw.D3(units="domains", edges="orders", trial_steps=2, target="validation", target_samples=4)
    found = order_samples(
        replace(recipe, order=order, train=Train(batch_size=4, learning_rate=1e-2)),
        tmp_path / "out",
        tell=said.append,
        progress=False,
    )
    assert any("of 2 nodes, 8 trial steps in total" in sentence for sentence in said)
    assert sorted(found.indices.tolist()) == list(range(2 * EACH))
    weight = found.graph.weight
    assert np.isnan(np.diag(weight)).all() and weight[0, 1] == -weight[1, 0] != 0.0


def test_no_trial_is_made_on_the_samples_that_judge_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the trial steps would take all samples there are."""
    asked, real = [], gw.Probe.orders

    def seen(self: Any, nodes: Any, on: Any) -> Any:
        asked.append((np.concatenate([np.concatenate(steps) for steps in nodes]), np.asarray(on)))
        return real(self, nodes, on)

    monkeypatch.setattr(gw.Probe, "orders", seen)
    order = gw.D3(units="domains", edges="orders", trial_steps=EACH // 4, target_samples=4)
    ordered(replace(recipe, order=order), tmp_path / "out")
    ((tried, target),) = asked
    assert len(target) == 4 and len(tried) == 2 * EACH - 4
    assert not np.intersect1d(tried, target).size


def test_edges_that_need_a_model_say_so() -> None:
    signals = gw.Signals(
        40, domain=np.repeat(["a", "b"], 20), grad=np.ones((40, 2)), loss=np.ones(40, np.float32)
    )
    with pytest.raises(gw.RecipeError, match=r"asks a model; give a gradwise\.Probe"):
        gw.D3(units="domains", edges="lookahead").order(signals)
    with pytest.raises(gw.RecipeError, match="only one of the domains"):
        gw.D3(units="domains").order(signals, np.arange(20))


def test_samples_that_could_not_be_scored_are_left_out(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are scored for the selection, or for the order of what was selected."""
    score = scoring.collect

    def spoilt(*args: Any, **options: Any) -> Any:
        found = score(*args, **options)
        return replace(found, ok=np.arange(len(found)) != 2)

    monkeypatch.setattr(scoring, "collect", spoilt)
    for name, select in (("all", gw.baselines.FullData()), ("top", gw.baselines.LossTop(fraction=1.0))):
        own = replace(recipe, select=select, order=gw.baselines.EasyFirst())
        found = order_samples(own, tmp_path / name, tell=lambda _: None, progress=False)
        assert sorted(found.indices.tolist()) == [n for n in range(2 * EACH) if n != 2]
