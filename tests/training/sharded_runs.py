"""Starts runs on two processes whose model FSDP2 shards, and reads what they left."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

SAMPLED = {
    "method": "grass", "active": 3, "period": 2, "probe": 2, "embeddings": "sampled", "state": "drop",
}  # fmt: skip
"""A policy that draws embeddings and head too, and forgets the state of what it freezes."""

WORKER = Path(__file__).with_name("sharded_run_worker.py")


def launch(folder: Path, jobs: list[dict[str, Any]], worker: Path = WORKER, ranks: int = 2) -> None:
    """Make runs on several processes, one run after another, as `sharded_run_worker` does, or another
    worker."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, str(worker), str(folder / "jobs.json")],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-6000:]


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
