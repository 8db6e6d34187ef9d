"""`benchmarks/grace.py`: its pools are what they say, its parts measure what they say."""

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

frame: Any = importlib.import_module("frame")
grace: Any = importlib.import_module("grace")
grace_dial: Any = importlib.import_module("grace_dial")
grace_pools: Any = importlib.import_module("grace_pools")
grace_propagation: Any = importlib.import_module("grace_propagation")
grace_scale: Any = importlib.import_module("grace_scale")
compare_tasks: Any = importlib.import_module("compare_tasks")

real_data = pytest.mark.skipif(not frame.DATA.exists(), reason="the real data are not beside the repository")


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grace_pools.made(tmp_path_factory.mktemp("pools") / "grace")


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@real_data
def test_the_dirty_pool_is_as_dirty_as_it_says(pools: Path) -> None:
    dirty, kind = read(pools / "dirty.jsonl"), grace_pools.kinds(pools)
    assert np.bincount(kind).tolist() == [600, 480, 60, 60]
    text = ["\n".join((record["prompt"], record["completion"])) for record in dirty]
    distinct = {text[i] for i in np.flatnonzero(kind == 0)}
    copies = Counter(text[i] for i in np.flatnonzero(kind == 1))
    assert len(distinct) == 600
    assert set(copies.values()) == {20}
    assert set(copies) < distinct
    assert {record["domain"] for record in dirty} == set(grace_pools.CLEAN)


@real_data
def test_nothing_that_is_held_out_is_in_a_pool(pools: Path) -> None:
    held_out = {record["prompt"] for name in ("check", "rates") for record in read(pools / f"{name}.jsonl")}
    clean = read(pools / "clean.jsonl")
    assert len({record["prompt"] for record in clean}) == len(clean) == 1200
    for pool in (clean, read(pools / "dirty.jsonl")):
        assert held_out.isdisjoint(record["prompt"] for record in pool)


@pytest.mark.parametrize("name", [name for name in compare_tasks.TASKS if name.startswith("grace")])
def test_every_arm_is_one(name: str) -> None:
    task = compare_tasks.task(name)
    for arm in task.words:
        select: Any = task.recipe(arm, {}).select
        assert arm == "full" or select.fraction == task.fraction
    if "grace_full_refresh" in task.words:
        oracle: Any = task.recipe("grace_full_refresh", {}).select
        assert (oracle.method, oracle.candidates, oracle.anchors) == ("grace", "all", 1.0)


def test_a_rate_is_tried_over_the_recipes_own() -> None:
    task = compare_tasks.task("grace_dirty_10")
    tried = task.recipe("random", {"train": {"learning_rate": 0.5}})
    assert tried.train.learning_rate == 0.5
    assert task.rate_path("random") == task.recipe_path


def test_a_million_in_small() -> None:
    pytest.importorskip("faiss")
    found = grace_scale.million(rows=4000)
    assert found["nodes"] == 4000
    assert found["picked"] == 400
    assert found["anchors"] == 200
    assert found["recall"] >= 0.95
    assert 0 < found["moved"] < found["anchors"]
    assert found["searched"] >= found["moved"]


def test_ways_of_propagating_are_those_of_the_issue() -> None:
    tried = {(share, way.propagate, way.beta) for _, share, way in grace_propagation.combinations()}
    for share in (0.02, 0.05, 0.1, 0.2):
        for beta in (0.25, 0.5, 0.75):
            assert {(share, "value", beta), (share, "change", beta)} <= tried
    assert tuple(grace_dial.OVERHEADS) == (0.05, 0.15, 0.5)


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        grace.parsed(["--parts", "sped"])
    assert "unknown sped; there are speed, million" in capsys.readouterr().err
