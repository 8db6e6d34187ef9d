"""Signals as batch systems send them: to every process at once, again after a moment, to any command."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gradwise.run import RunDirectory
from tests.cli.small_project import Command, Project, Start

pytestmark = pytest.mark.slow


def wait_until(reached: Callable[[], object], patience: float = 240) -> None:
    end = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.02)


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def alive(processes: list[int]) -> list[int]:
    """Those that still run; zombies do not."""
    states = {}
    for process in processes:
        path = Path(f"/proc/{process}/stat")
        if path.exists():
            states[process] = path.read_text().rpartition(")")[2].split()[0]
    return [process for process, state in states.items() if state != "Z"]


class TestLoaderWorkers:
    @pytest.fixture
    def long(self, project: Project) -> Project:
        # Long epochs, since workers live for one.
        project.records("train.jsonl", [{"text": f"Story number {number}. " * 4} for number in range(480)])
        project.recipe["train"] |= {"epochs": 200, "batch_size": 1, "eval_strategy": "no"}
        project.recipe["train"]["dataloader_num_workers"] = 2
        return project

    def under_way(self, start: Start, long: Project) -> tuple[Command, RunDirectory, int]:
        """A run that has made some steps since it was started, and which it had made before."""
        run = RunDirectory(long.folder / "run")
        before = max((line["step"] for line in run.metrics()), default=0)
        command = start("train", long.path, "--out", "run", group=True)
        wait_until(lambda: any(line["step"] >= before + 3 for line in run.metrics()))
        wait_until(lambda: len(children(command.pid)) == 2)
        return command, run, before

    def test_sigterm_to_the_whole_group_gives_a_checkpoint_every_time(
        self, start: Start, long: Project
    ) -> None:
        for attempt in range(3):
            command, run, before = self.under_way(start, long)
            workers = children(command.pid)
            os.killpg(command.pid, signal.SIGTERM)
            os.killpg(command.pid, signal.SIGTERM)  # as the launcher passes it on: the same request
            command.wait()
            assert (command.code, command.stderr) == (1, "")
            assert "SIGTERM: stopping after this step, with a checkpoint." in command.stdout
            assert "a checkpoint is saved. Run the same command to resume." in command.stdout
            assert not alive(workers)
            assert max(int(path.name.split("-")[1]) for path in run.checkpoints.glob("checkpoint-*")) > before
            resumed = [event["step"] for event in run.events() if event["event"] == "resume"]
            assert len(resumed) == attempt

    def test_workers_do_not_outlive_a_killed_run(self, start: Start, long: Project) -> None:
        command, _, _ = self.under_way(start, long)
        workers = children(command.pid)
        os.kill(command.pid, signal.SIGKILL)
        command.wait()
        wait_until(lambda: not alive(workers))


@pytest.mark.parametrize(
    ("command", "kept", "written"),
    [
        ("collect --want loss", "out/manifest.json", "out/rows.parquet"),
        ("select", "out/signals/manifest.json", "out/picks.parquet"),
        ("order", "out/signals/manifest.json", "out/ordered.parquet"),
    ],
)
def test_sigterm_ends_scoring_and_the_same_command_continues(
    start: Start, gradwise: Start, project: Project, command: str, kept: str, written: str
) -> None:
    project.records("train.jsonl", [{"text": f"Story number {number}. " * 9} for number in range(500)])
    project.recipe |= {"select": {"method": "loss_top", "count": 16}, "signals": {"batch_tokens": 64}}
    project.recipe["order"] = "easy_first"
    under_way = start(*command.split(), project.path, "--out", "out", group=True)
    wait_until((project.folder / kept).exists)
    os.killpg(under_way.pid, signal.SIGTERM)
    under_way.wait()
    assert under_way.code == 1
    assert under_way.stderr.strip() == "gradwise: stopped; the same command continues from what is saved."
    assert not json.loads((project.folder / kept).read_text())["complete"]
    assert not (project.folder / written).exists()
    again = gradwise(*command.split(), project.path, "--out", "out")
    assert again.code == 0, again.stderr
    assert (project.folder / written).exists()
