"""Starts runs on two processes whose model FSDP2 shards, and reads what they left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from tests.signals.processes import ended, start_trainers
from tests.training import sharded_run_worker

SAMPLED = {
    "method": "grass", "active": 3, "period": 2, "probe": 2, "embeddings": "sampled", "state": "drop",
}  # fmt: skip
"""A policy that draws embeddings and head too, and forgets the state of what it freezes."""

LOADED = "as it is loaded"
WAYS = (
    (LOADED, "by accelerate") if Version(transformers.__version__) >= Version("5.19") else ("by accelerate",)
)
"""How a model of a Trainer can be sharded, with the installed transformers."""

Work = Callable[[list[dict[str, Any]]], None]


def launch(folder: Path, jobs: list[dict[str, Any]], work: Work = sharded_run_worker.main) -> None:
    """Make runs on two processes, one after another, as `sharded_run_worker` does, or another worker.

    Skips the test where transformers cannot train a model that is sharded as it is loaded.
    """
    if LOADED not in WAYS and any(job.get("sharded") == LOADED for job in jobs):
        pytest.skip("needs transformers 5.19")
    processes = start_trainers(2, folder, lambda _: work(jobs))
    assert [ended(process, 500) for process in processes] == [0, 0]


def served(out: Path) -> list[int]:
    """The samples of a run's plan."""
    return np.load(out / "served.npy").tolist()


def weights(out: Path) -> dict[str, torch.Tensor]:
    """A run's weights at its end."""
    return torch.load(out / "weights.pt", weights_only=True)


def losses(out: Path) -> list[float]:
    """The training loss of each step."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def draws(out: Path) -> list[list[int]]:
    """The layers that were drawn."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [event["active"] for event in events if event["event"] == "layers"]
