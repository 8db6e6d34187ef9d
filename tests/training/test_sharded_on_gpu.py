"""Runs whose model FSDP2 shards over all GPUs of this machine, by the Trainer's own settings and NCCL."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.training import sharded_run_worker
from tests.training.sharded_runs import LOADED, WAYS, draws, losses, served

pytestmark = pytest.mark.gpu

GRASS: dict[str, Any] = {"method": "grass", "active": 2, "period": 2, "probe": 2}
RECIPES: dict[str, dict[str, Any]] = {
    "grass": {"layers": GRASS},
    "offloaded": {"layers": {**GRASS, "state": "offload"}},
    "grace": {"select": {"method": "grace", "count": 16, "candidates": "all", "refresh_every": 4}},
}


def launch(folder: Path, job: dict[str, Any], ranks: int) -> None:
    """Make a run under torchrun: a forked process could not use the GPU that its parent uses."""
    (folder / "jobs.json").write_text(json.dumps([job]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, sharded_run_worker.__file__, str(folder / "jobs.json")],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("sharded", WAYS)
def test_a_sharded_run_follows_a_whole_one(
    tmp_path: Path, stories: Path, speeches: Dataset, name: str, sharded: str
) -> None:
    ranks = next(number for number in (4, 2, 1) if number <= torch.cuda.device_count())
    if ranks == 1 and sharded == LOADED:
        pytest.skip("transformers does not shard over one GPU")
    speeches.save_to_disk(tmp_path / "data")
    common = {"model": str(stories), "data": str(tmp_path / "data"), "recipe": RECIPES[name], "gpu": True}
    one, all_of_them = tmp_path / "one", tmp_path / "all"
    launch(tmp_path, {**common, "sharded": "whole", "out": str(one)}, ranks=1)
    launch(tmp_path, {**common, "sharded": sharded, "out": str(all_of_them)}, ranks=ranks)
    assert served(one) == served(all_of_them) and draws(one) == draws(all_of_them)
    assert losses(all_of_them) == pytest.approx(losses(one), rel=1e-3)
