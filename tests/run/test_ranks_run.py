"""Several ranks leave behind what one process does, however slow any of them is at any file, and whichever of
them is killed."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch.distributed as dist

import gradwise as gw
from gradwise.run import train
from gradwise.run.order import order_samples
from gradwise.run.select import select_samples
from gradwise.run.signals import collect_signals
from gradwise.training.checkpoint import checkpoints
from tests.disturbance import Disturbance
from tests.signals.processes import ended, start_trainers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]

TRAINING = {
    "batch_size": 12,
    "per_device_train_batch_size": 2,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "logging_steps": 1,
}

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grass": {"layers": {"method": "grass", "active": 2, "period": 2, "probe": 1}},
    "grace": {"select": {"method": "grace", "count": 24, "candidates": "all", "refresh_every": 2}},
    "direct": {
        "train": TRAINING | {"schedule": "wsd"},
        "anneal": {"method": "direct", "last": 0.34, "count": 12},
        "signals": {"grad_dim": 32},
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    found = (stories.parent / "plays_train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join(found[:36]) + "\n")
    (folder / "valid.jsonl").write_text("\n".join(found[36:42]) + "\n")
    paths = {"train": str(folder / "train.jsonl"), "validation": str(folder / "valid.jsonl")}
    data = paths | {"max_length": 32, "allow": {"cut": 1.0}}
    return {"model": {"name": str(stories)}, "data": data, "train": TRAINING}


def on_ranks(count: int, folder: Path, work: Callable[..., None], *arguments: Any) -> list[int]:
    """Exit statuses of `count` processes as torchrun would start them, but for the seconds of imports."""
    return [ended(process, 600) for process in start_trainers(count, folder, work, *arguments)]


def quietly(_: str) -> None:
    pass


def run(recipe: dict[str, Any], out: Path) -> None:
    outcome = train(gw.Recipe.from_dict(recipe), out, tell=quietly, progress=False)
    assert outcome.finished


def steps_of(run: Path) -> list[dict[str, float]]:
    """What was measured at each step and by each evaluation."""
    kept = ("step", "loss", "grad_norm", "learning_rate", "input_tokens", "label_tokens", "held_out_loss")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in kept if name in line} for line in lines]


def decisions_of(run: Path) -> list[dict[str, Any]]:
    kept = ("event", "step", "active", "selected", "length", "samples", "quantities", "pool")
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [
        {name: line[name] for name in kept if name in line}
        for line in lines
        if line["event"] not in ("resume", "finished", "forecast")
    ]


def check_alike(one: Path, other: Path) -> None:
    left, right = steps_of(one), steps_of(other)
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3), (ours, theirs)
    assert decisions_of(one) == decisions_of(other)
    plans = [gw.Plan.load(each / "plan" / "plan.safetensors").indices.tolist() for each in (one, other)]
    assert plans[0] == plans[1]
    assert sorted(path.name for path in (one / "plan").iterdir()) == sorted(
        path.name for path in (other / "plan").iterdir()
    )
    assert [path.name for path in checkpoints(other / "checkpoints")] == ["checkpoint-2", "checkpoint-3"]


def _interrupt(out: Path) -> None:
    """Leave of a finished run what one that was killed before its last step leaves."""
    shutil.rmtree(out / "model")
    (out / "scores.json").unlink()
    shutil.rmtree(checkpoints(out / "checkpoints")[-1])


def _trained_twice(rank: int, base: dict[str, Any], folder: Path) -> None:
    """Five runs, resumed before their ends, with another rank slow in each."""
    disturbance = Disturbance(folder, seed=rank)
    ranks = dist.get_world_size()
    for number, (name, recipe) in enumerate([*RECIPES.items(), ("again", RECIPES["grace"])]):
        disturbance.delays = 0.06 if number % ranks == rank else 0.01
        run(base | recipe, folder / name)
        if rank == 0:
            _interrupt(folder / name)
        dist.barrier()
        run(base | recipe, folder / name)


@pytest.fixture(scope="module")
def alone(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, recipe in RECIPES.items():
        run(base | recipe, folder / name)
    shutil.copytree(folder / "grace", folder / "again")
    return folder


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_twenty_runs_with_delays_at_every_file(base: dict[str, Any], alone: Path, tmp_path: Path, ranks: int):
    """Ten with two ranks and ten with three, half of them resumed."""
    assert on_ranks(ranks, tmp_path, _trained_twice, base, tmp_path) == [0] * ranks
    for name in (*RECIPES, "again"):
        check_alike(alone / name, tmp_path / name)
        events = (tmp_path / name / "events.jsonl").read_text()
        assert events.count('"event": "resume"') == 1


def _other_commands(rank: int, base: dict[str, Any], folder: Path) -> None:
    Disturbance(folder, delays=0.05, seed=rank)
    how: Any = {"tell": quietly, "progress": False}
    top = gw.Recipe.from_dict(base | {"select": {"method": "loss_top", "count": 9}, "order": "easy_first"})
    select_samples(top, folder / "selection", **how)
    order_samples(top, folder / "order", **how)
    collect_signals(top, folder / "signals", want=("loss", "embedding"), **how)


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.exhaustive), 3])
def test_the_other_commands(base: dict[str, Any], tmp_path: Path, ranks: int):
    one, several = tmp_path / "one", tmp_path / "several"
    for folder in (one, several):
        folder.mkdir()
    _other_commands(0, base, one)
    assert on_ranks(ranks, tmp_path, _other_commands, base, several) == [0] * ranks
    for name in ("selection/picks.parquet", "order/ordered.parquet"):
        tables = [pyarrow.parquet.read_table(folder / name) for folder in (one, several)]
        assert tables[0]["index"].equals(tables[1]["index"])
    losses: Any = [gw.Signals.open(folder / "signals").loss for folder in (one, several)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def _killed(rank: int, base: dict[str, Any], out: Path, victim: int, at: int) -> None:
    Disturbance(out, delays=0.005, seed=at, kill_at=at if rank == victim else None)
    run(base | RECIPES["grass"], out)


def _run_to_the_end(rank: int, base: dict[str, Any], out: Path) -> None:
    del rank
    run(base | RECIPES["grass"], out)


@pytest.mark.parametrize(("victim", "at"), [(0, 40), (0, 90), (0, 180), (1, 2), (1, 4)])
def test_whichever_rank_is_killed_the_run_resumes(
    base: dict[str, Any], alone: Path, tmp_path: Path, victim: int, at: int
):
    out = tmp_path / "run"
    status = on_ranks(2, tmp_path, _killed, base, out, victim, at)
    assert status[victim] == -signal.SIGKILL
    assert status[1 - victim] == 1
    assert on_ranks(2, tmp_path, _run_to_the_end, base, out) == [0, 0]
    check_alike(alone / "grass", out)


def _failing(rank: int, base: dict[str, Any], folder: Path) -> None:
    """What fails on one rank fails on all of them, with the same sentence."""
    how: Any = {"tell": quietly, "progress": False}
    recipe = gw.Recipe.from_dict(base)
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine" / "notes.txt").write_text("mine")
    dist.barrier()
    calls: list[Callable[[], Any]] = [
        lambda: train(recipe, folder / "mine", **how),
        lambda: select_samples(recipe, folder / "mine", **how),
        lambda: order_samples(recipe, folder / "mine", **how),
        lambda: collect_signals(recipe, folder / "mine", want=("loss",), **how),
    ]
    for call in calls:
        with pytest.raises(
            gw.RecipeError, match=r"mine holds files that gradwise did not write \(notes.txt\)"
        ):
            call()
    data = dict(base["data"])
    if rank == 1:
        data["train"] = str(folder / "nowhere.jsonl")
    with pytest.raises(gw.DataError, match="nowhere"):
        train(gw.Recipe.from_dict(base | {"data": data}), folder / "missing", **how)
    if rank == 1:
        other = Path(base["data"]["train"]).read_text().splitlines()[1:]
        (folder / "other.jsonl").write_text("\n".join(other) + "\n")
        data["train"] = str(folder / "other.jsonl")
    with pytest.raises(gw.GradwiseError, match=r"The data differ between rank 0 and rank 1; give all ranks"):
        train(gw.Recipe.from_dict(base | {"data": data}), folder / "different", **how)


def test_what_fails_on_one_rank_fails_on_all(base: dict[str, Any], tmp_path: Path):
    assert on_ranks(2, tmp_path, _failing, base, tmp_path) == [0, 0]
    assert not (tmp_path / "missing" / "model").exists()
