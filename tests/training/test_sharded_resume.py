"""Runs whose model FSDP2 shards stop and resume, on as many ranks or on another number of them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.training.sharded_run_worker import run
from tests.training.test_sharded_decisions import GRACE, WORKER

STOPPED = 3

RECIPE = {"select": GRACE, "anneal": {"method": "direct", "last": 0.5, "count": 6}}

SHARDED = ("as it is loaded", "by accelerate")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, stories: Path, speeches: Dataset) -> Path:
    """One process and both kinds of sharding over two ranks: runs that were never interrupted, runs that were
    stopped and resumed, and runs that were resumed from what the other number of ranks saved."""
    folder = tmp_path_factory.mktemp("resumed")
    speeches.save_to_disk(folder / "data")

    def job(sharded: str, out: str, **changes: Any) -> dict[str, Any]:
        common = {"model": str(stories), "data": str(folder / "data"), "recipe": RECIPE}
        saving = {"arguments": {"save_strategy": "steps", "save_steps": 100}}
        return {"sharded": sharded, **common, "out": str(folder / out), **saving, **changes}

    run(job("whole", "one"))
    run(job("whole", "one, stopped", stopped_after=STOPPED))
    jobs = []
    for sharded in SHARDED:
        dropping: dict[str, Any] = {"options": {"attention_dropout": 0.1}}
        shutil.copytree(folder / "one, stopped", folder / f"{sharded}, from one")
        jobs += [
            job(sharded, f"{sharded}, dropping", **dropping),
            job(sharded, f"{sharded}, dropping, resumed", **dropping, stopped_after=STOPPED),
            job(sharded, f"{sharded}, dropping, resumed", **dropping, resume=True),
            job(sharded, f"{sharded}, to one", stopped_after=STOPPED),
            job(sharded, f"{sharded}, from one", resume=True),
        ]
    _launch(folder, jobs)
    for sharded in SHARDED:
        run(job("whole", f"{sharded}, to one", resume=True))
    return folder


def _launch(folder: Path, jobs: list[dict[str, Any]]) -> None:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(WORKER), str(folder / "jobs.json")], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", SHARDED)
class TestResumed:
    def test_equals_the_run_that_was_never_stopped(self, runs: Path, sharded: str) -> None:
        whole, resumed = (runs / f"{sharded}, dropping{end}" for end in ("", ", resumed"))
        assert (resumed / f"checkpoint-{STOPPED}").is_dir()
        assert _served(whole) == _served(resumed)
        first, second = _weights(whole), _weights(resumed)
        assert all(torch.equal(values, second[name]) for name, values in first.items())
        assert _losses(whole) == _losses(resumed)

    @pytest.mark.parametrize("which", ["to one", "from one"])
    def test_on_another_number_of_ranks(self, runs: Path, sharded: str, which: str) -> None:
        one, resumed = runs / "one", runs / f"{sharded}, {which}"
        assert _served(one) == _served(resumed)
        assert _losses(one) == pytest.approx(_losses(resumed), abs=1e-3)
        other = _weights(resumed)
        for name, values in _weights(one).items():
            torch.testing.assert_close(other[name], values, rtol=1e-3, atol=2e-4)

    def test_a_checkpoint_has_the_files_of_one_process(self, runs: Path, sharded: str) -> None:
        names = [
            {path.name for path in (runs / out / f"checkpoint-{STOPPED}").iterdir()}
            for out in ("one, stopped", f"{sharded}, to one")
        ]
        assert {name for name in names[0] ^ names[1] if not name.startswith("rng_state")} == set()
        first, second = (
            torch.load(runs / out / f"checkpoint-{STOPPED}" / "optimizer.pt", weights_only=True)["state"]
            for out in ("one, stopped", f"{sharded}, to one")
        )
        for number, values in first.items():
            for name, value in values.items():
                torch.testing.assert_close(second[number][name], value, rtol=1e-3, atol=1e-4)


def _served(out: Path) -> list[int]:
    return np.load(out / "served.npy").tolist()


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "weights.pt", weights_only=True)


def _losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]
