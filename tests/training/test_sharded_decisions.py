"""Runs whose model FSDP2 shards over two ranks select, order and anneal as a run in one process does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from datasets import Dataset

import gradwise as gw
from gradwise.training.sharding import shard_first
from tests.training.sharded_run_worker import run
from tests.training.sharded_runs import launch, served, weights

SPEEDS = {"train": 0.01, "score": 0.003}

GRACE = {"method": "grace", "count": 18, "candidates": "all", "refresh_every": 2, "speeds": SPEEDS}

RUNS: dict[str, dict[str, Any]] = {
    "grace refreshed, direct": {
        "sharded": "as it is loaded",
        "recipe": {"select": GRACE, "anneal": {"method": "direct", "last": 0.5, "count": 6}},
    },
    "grace refreshed, direct, by accelerate": {
        "sharded": "by accelerate",
        "recipe": {"select": GRACE, "anneal": {"method": "direct", "last": 0.5, "count": 6}},
    },
    "direct with preconditioning, by accelerate": {
        "sharded": "by accelerate",
        "recipe": {"anneal": {"method": "direct", "last": 0.5, "count": 6, "precondition": True}},
    },
    "loss_top in an order by losses, cosine_top": {
        "sharded": "as it is loaded",
        "recipe": {
            "select": {"method": "loss_top", "count": 18},
            "order": "easy_first",
            "anneal": {"method": "cosine_top", "last": 0.5, "count": 6},
        },
    },
    "accumulated": {
        "sharded": "as it is loaded",
        "recipe": {"select": GRACE},
        "arguments": {"gradient_accumulation_steps": 2},
    },
}
"""The first is in the ordinary suite."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [list(RUNS)[:1], pytest.param(list(RUNS)[1:], marks=pytest.mark.exhaustive)]
)
def test_as_one_process_does(tmp_path: Path, stories: Path, speeches: Dataset, names: list[str]) -> None:
    speeches.save_to_disk(tmp_path / "data")
    jobs = [
        {**RUNS[name], "model": str(stories), "data": str(tmp_path / "data"), "out": str(tmp_path / name)}
        for name in names
    ]
    launch(tmp_path, jobs)
    for job in jobs:
        two, one = Path(job["out"]), Path(f"{job['out']}, whole")
        run({**job, "sharded": "whole", "out": str(one)})
        assert served(one) == served(two)
        decisions = [_decisions(out) for out in (one, two)]
        assert [event["event"] for event in decisions[0]] == [event["event"] for event in decisions[1]]
        for mine, theirs in zip(*decisions, strict=True):
            assert _numbers(mine) == pytest.approx(_numbers(theirs), rel=1e-3, abs=1e-3)
        together = weights(two)
        for key, values in weights(one).items():
            torch.testing.assert_close(together[key], values, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("checkpointed", [True, False])
def test_what_must_come_before_sharding_is_refused(
    story_model: Any, arguments: Any, speeches: Dataset, checkpointed: bool
) -> None:
    settings = {} if checkpointed else {"torch_compile": True}
    trainer = gw.Trainer(story_model(), arguments(**settings), train_dataset=speeches)
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, activation_checkpointing=checkpointed
    )
    try:
        with pytest.raises(
            gw.RecipeError, match="activation_checkpointing" if checkpointed else "torch_compile"
        ):
            shard_first(trainer, "Samples are to be measured")
    finally:
        del trainer.accelerator.state.fsdp_plugin


def _decisions(out: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] in ("plan", "signals", "refresh", "anneal")]


def _numbers(event: dict[str, Any]) -> dict[str, float]:
    """What a decision says of itself, but for the time that it took."""
    return {
        name: value
        for name, value in event.items()
        if isinstance(value, int | float) and "seconds" not in name and name != "time"
    }
