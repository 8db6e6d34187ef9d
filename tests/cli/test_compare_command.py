"""`gradwise compare` as a user gives it: whole comparisons, stopped, killed, failing, gone on with."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from gradwise.folders import claimed
from gradwise.run import RunDirectory
from gradwise.training.checkpoint import is_finished
from tests.cli.small_project import Command, Project, Server, Start

ARMS = ("--arms", "full,random", "--fraction", "0.5", "--out", "c")


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of change of every file."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [line for line in RunDirectory(folder).metrics() if "loss" in line]


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines()))


def wait_until(reached: Callable[[], Any], command: Command, patience: float = 180) -> None:
    end = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < end, f"not reached in time: {command.stdout}{command.stderr}"
        time.sleep(0.01)


def refused(command: Command, *words: str, code: int = 2) -> None:
    assert command.code == code, command.stdout + command.stderr
    assert command.stderr.startswith("gradwise: ")
    assert len(command.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in command.stderr


@pytest.fixture(scope="module")
def folder(server: Server, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two arms and three seeds, two runs at a time."""
    project = Project.make(tmp_path_factory.mktemp("compare"), stories)
    command = server.start(
        project.folder, "compare", project.path, *ARMS, "--seeds", "3", "--budget", "steps=4", "--jobs", "2"
    ).wait()
    assert command.code == 0, command.stdout + command.stderr
    assert not command.stderr
    (project.folder / "output.txt").write_text(command.stdout)
    return project.folder


@pytest.mark.slow
class TestFinished:
    def test_every_run_is_a_run_directory_of_the_same_length(self, folder: Path) -> None:
        for arm in ("full", "random"):
            for seed in range(3):
                run = folder / "c" / "runs" / arm / f"seed-{seed}"
                assert [line["step"] for line in steps_of(run)] == [1, 2, 3, 4]
                recipe = yaml.safe_load((run / "recipe.yaml").read_text())
                assert (recipe["seed"], recipe["select"]["method"]) == (seed, arm)
                assert recipe["layers"] == {"method": "all"}
                assert "kept" in (run / "log.txt").read_text()
                assert (run / "model" / "model.safetensors").exists()
                assert not (run / "checkpoints").exists()
                evaluated = [line["step"] for line in RunDirectory(run).metrics() if "eval_loss" in line]
                assert evaluated == [0, 1, 2, 3, 4]

    def test_says_what_was_asked(self, folder: Path) -> None:
        stored = yaml.safe_load((folder / "c" / "comparison.yaml").read_text())
        assert stored["seeds"] == [0, 1, 2]
        assert stored["reference"] == "random"
        assert stored["budget"] == {"kind": "steps", "amount": 4.0, "margin": 0.05}
        assert stored["steps"] == {"full": 4, "random": 4}
        assert stored["arms"]["random"]["changes"]["select"] == {
            "method": "random",
            "fraction": 0.5,
            "count": None,
        }
        known = stored["data"].pop("recipe")
        assert (stored["data"], known["shared"], known["held_out"]) == ({}, 0, 4)
        assert list(known["fingerprints"]) == ["training", "held-out"]

    def test_the_table_is_of_the_scores(self, folder: Path) -> None:
        output = (folder / "output.txt").read_text()
        table = (folder / "c" / "table.txt").read_text()
        assert table.strip() in output
        assert max(len(line) for line in table.splitlines()) <= 100
        assert "Verdicts on fewer than 5 seeds are preliminary" in table
        found = {row["arm"]: row for row in rows(folder / "c", "results")}
        assert found["random"]["verdict"] == "reference"
        assert re.fullmatch(r"(better|worse|no difference seen) \(preliminary\)", found["full"]["verdict"])
        assert (found["full"]["against"], found["full"]["differs_in"]) == ("random", "select")
        # Four steps of 8 records over 24 or 12.
        assert {arm: float(row["epochs"]) for arm, row in found.items()} == {
            "full": pytest.approx(4 / 3, abs=1e-5),
            "random": 2.0,
        }
        scores = {
            arm: [
                RunDirectory(folder / "c" / "runs" / arm / f"seed-{seed}").scores()["held_out_loss"]["value"]
                for seed in range(3)
            ]
            for arm in found
        }
        gap = sum(a - b for a, b in zip(scores["full"], scores["random"], strict=True)) / 3
        assert float(found["full"]["difference"]) == pytest.approx(gap)
        assert float(found["full"]["mean"]) == pytest.approx(sum(scores["full"]) / 3)

    def test_the_same_as_parquet(self, folder: Path) -> None:
        for name in ("results", "runs"):
            table = pyarrow.parquet.read_table(folder / "c" / f"{name}.parquet").to_pylist()
            assert [row["arm"] for row in table] == [row["arm"] for row in rows(folder / "c", name)]
        assert len(rows(folder / "c", "runs")) == 6

    def test_curves_are_drawn(self, folder: Path) -> None:
        for axis in ("steps", "tokens", "seconds"):
            assert (folder / "c" / f"loss_by_{axis}.png").read_bytes().startswith(b"\x89PNG")

    def test_the_same_command_just_prints_the_table(self, folder: Path, server: Server) -> None:
        before = contents(folder / "c" / "runs")
        command = server.start(
            folder, "compare", folder / "recipe.yaml", *ARMS, "--seeds", "3", "--budget", "steps=4"
        ).wait()
        assert command.code == 0, command.stderr
        assert command.stdout.startswith("c: every run within 4 optimizer steps; 6 of 6 runs finished.")
        assert contents(folder / "c" / "runs") == before

    def test_a_subset_of_the_seeds_is_no_other_comparison(self, folder: Path, server: Server) -> None:
        command = server.start(
            folder, "compare", folder / "recipe.yaml", *ARMS, "--seeds", "0,2", "--budget", "steps"
        ).wait()
        assert command.code == 0, command.stderr

    def test_a_pair_that_is_asked_for_stays_and_a_folder_of_an_earlier_version_is_read(
        self, folder: Path, server: Server, tmp_path: Path
    ) -> None:
        copy = tmp_path / "c"
        shutil.copytree(folder / "c", copy)
        stored = yaml.safe_load((copy / "comparison.yaml").read_text())
        for name in ("pairs", "requested_pairs"):
            del stored[name]
        (copy / "comparison.yaml").write_text(yaml.safe_dump(stored))
        command = ["compare", folder / "recipe.yaml", *ARMS[:-1], copy, "--seeds", "3", "--budget", "steps=4"]
        for more in (["--reference", "full", "--pairs", "full:random"], []):
            done = server.start(folder, *command, *more).wait()
            assert done.code == 0, done.stderr
            found = [(row["arm"], row["against"]) for row in rows(copy, "results")]
            assert found == [("full", ""), ("random", "full")]

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            (["--budget", "steps=5"], "the budget was 4 steps, now 5 steps"),
            (["--budget", "tokens=5"], "the budget was 4 steps, now 5 input tokens"),
            (["--set", "train.batch_size=4"], "train.batch_size was 8, now 4"),
            (["--fraction", "0.25"], "in the arm random, select.fraction was 0.5, now 0.25"),
        ],
    )
    def test_another_comparison_is_refused(
        self, folder: Path, server: Server, changed: list[str], said: str
    ) -> None:
        before = contents(folder / "c")
        command = ["compare", folder / "recipe.yaml", *ARMS, "--seeds", "3", "--budget", "steps=4", *changed]
        refused(server.start(folder, *command).wait(), "c holds another comparison; different: ", said)
        assert contents(folder / "c") == before

    @pytest.mark.parametrize(
        ("part", "sentence"),
        [
            ("training", "The training data of the recipe have changed since the runs in"),
            ("held-out", "The held-out data of the recipe have changed since the runs in"),
            ("model", "The model of the recipe has changed since the runs in"),
        ],
    )
    def test_an_arm_is_not_added_to_runs_on_other_data_or_another_model(
        self, folder: Path, server: Server, tmp_path: Path, part: str, sentence: str
    ) -> None:
        copy = tmp_path / "project"
        shutil.copytree(folder, copy)
        stored = yaml.safe_load((copy / "c" / "comparison.yaml").read_text())
        found = stored["data"]["recipe"]
        (found if part == "model" else found["fingerprints"])[part] = "of another"
        (copy / "c" / "comparison.yaml").write_text(yaml.safe_dump(stored))
        before = contents(copy / "c" / "runs")
        command = ["compare", folder / "recipe.yaml", "--arms", "lisa", "--out", copy / "c", "--seeds", "3"]
        refused(server.start(folder, *command, "--budget", "steps").wait(), sentence)
        assert contents(copy / "c" / "runs") == before

    @pytest.mark.exhaustive
    def test_arms_and_seeds_can_be_added(self, folder: Path, server: Server) -> None:
        before = contents(folder / "c" / "runs" / "full")
        command = server.start(
            folder, "compare", folder / "recipe.yaml", "--arms", "again=full",
            "--out", "c", "--seeds", "0,1,2,5", "--budget", "steps=4", "--discard-models",
        ).wait()  # fmt: skip
        assert command.code == 0, command.stdout + command.stderr
        assert "[4/4]" in command.stdout
        assert contents(folder / "c" / "runs" / "full") == before
        found = {row["arm"]: row for row in rows(folder / "c", "results")}
        assert [found[arm]["seeds"] for arm in ("full", "random", "again")] == ["3", "3", "4"]
        assert found["random"]["verdict"] == "reference"
        # The same recipe under another name: the same numbers, bit for bit.
        scores = [
            (folder / "c" / "runs" / arm / "seed-1" / "scores.json").read_text() for arm in ("full", "again")
        ]
        assert json.loads(scores[0])["scores"] == json.loads(scores[1])["scores"]
        assert not list((folder / "c" / "runs" / "again").glob("*/model/*.safetensors"))
        again = server.start(
            folder, "compare", folder / "recipe.yaml", "--arms", "again=full", "--out", "c",
            "--seeds", "0,1,2,5", "--budget", "steps=4",
        ).wait()  # fmt: skip
        assert again.code == 0
        assert again.stdout.startswith("c: every run")


@pytest.mark.slow
class TestStopping:
    STEPS = 60

    @pytest.fixture
    def command(self, project: Project) -> list[Any]:
        project.recipe["train"] |= {"save_strategy": "steps", "save_steps": 5}
        return ["compare", project.path, *ARMS, "--seeds", "2", "--budget", f"steps={self.STEPS}"]

    @pytest.mark.exhaustive
    def test_killed_in_the_middle_it_resumes_without_repeating_a_finished_run(
        self, start: Start, gradwise: Start, project: Project, command: list[Any]
    ) -> None:
        first, second = (project.folder / "c" / "runs" / arm / "seed-0" for arm in ("full", "random"))
        under_way = start(*command)
        wait_until(lambda: is_finished(second / "checkpoints" / "checkpoint-5"), under_way)
        os.kill(under_way.pid, signal.SIGKILL)
        under_way.wait()
        before = contents(first)
        reached = len(steps_of(second))
        time.sleep(1.5)
        # The run that was under way died with its parent, and is no longer in anybody's way.
        assert len(steps_of(second)) <= reached + 2 < self.STEPS
        assert (first / "scores.json").exists()

        again = gradwise(*command)
        assert again.code == 0, again.stdout + again.stderr
        assert "[3/3]" in again.stdout
        assert contents(first) == before
        assert any(event["event"] == "resume" for event in RunDirectory(second).events())
        assert [line["step"] for line in steps_of(second)] == list(range(1, self.STEPS + 1))

    @pytest.mark.exhaustive
    def test_asked_to_stop_it_saves_a_checkpoint_and_resumes(
        self, start: Start, gradwise: Start, project: Project, command: list[Any]
    ) -> None:
        run = project.folder / "c" / "runs" / "full" / "seed-0"
        under_way = start(*command)
        wait_until(lambda: len(steps_of(run)) > 2, under_way)
        os.kill(under_way.pid, signal.SIGINT)
        under_way.wait()
        assert under_way.code == 1
        assert not under_way.stderr
        assert "full, seed 0: stopped; the same command resumes it." in under_way.stdout
        assert "Stopped after step" in (run / "log.txt").read_text()
        stopped_at = len(steps_of(run))
        again = gradwise(*command)
        assert again.code == 0, again.stdout + again.stderr
        assert [event["step"] for event in RunDirectory(run).events() if event["event"] == "resume"] == [
            stopped_at
        ]

    @pytest.mark.exhaustive
    def test_a_signal_to_the_whole_group_stops_it_as_one_to_itself(
        self, start: Start, gradwise: Start, project: Project, command: list[Any]
    ) -> None:
        """As batch systems and service managers send it; what the runs are forked off is in the group."""
        first, second = (project.folder / "c" / "runs" / arm / "seed-0" for arm in ("full", "random"))
        under_way = start(*command, group=True)
        wait_until(lambda: len(steps_of(second)) > 2 if second.exists() else False, under_way)
        before = contents(first)
        os.killpg(under_way.pid, signal.SIGTERM)
        under_way.wait()
        assert under_way.code == 1
        assert not under_way.stderr
        assert "random, seed 0: stopped; the same command resumes it." in under_way.stdout
        assert under_way.stdout.endswith("Stopped; the same command resumes it.\n")
        assert "Stopped after step" in (second / "log.txt").read_text()
        assert contents(first) == before
        stopped_at = len(steps_of(second))
        again = gradwise(*command)
        assert again.code == 0, again.stdout + again.stderr
        assert contents(first) == before
        assert [line["step"] for line in steps_of(second)] == list(range(1, self.STEPS + 1))
        resumed = [event["step"] for event in RunDirectory(second).events() if event["event"] == "resume"]
        assert resumed == [stopped_at]

    def test_a_folder_in_use_is_refused(
        self, start: Start, gradwise: Start, project: Project, command: list[Any]
    ) -> None:
        with claimed(project.folder / "c", "comparison"):
            refused(gradwise(*command), "Another process is writing to c")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_an_arm_that_fails_is_shown_and_takes_no_other_down(gradwise: Start, project: Project) -> None:
    (project.folder / "wild.yaml").write_text("train: {learning_rate: 1.0e+30, max_grad_norm: 0.0}\n")
    command = ["compare", project.path, "--arms", "full,wild=full+wild.yaml,deep=grass+deep.yaml"]
    (project.folder / "deep.yaml").write_text("layers: {active: 9}\n")
    command += ["--out", "c", "--seeds", "2", "--budget", "steps=4"]
    first = gradwise(*command)
    assert first.code == 1
    assert not first.stderr
    assert re.search(
        r"wild, seed 0: failed: The training (loss|gradient norm) is \w+ at step \d", first.stdout
    )
    assert "deep, seed 1: failed: layers.active is 9, but the model has 5 layers" in first.stdout
    found = {row["arm"]: row for row in rows(project.folder / "c", "results")}
    assert [found[arm]["failed"] for arm in ("full", "wild", "deep")] == ["0", "2", "2"]
    assert [found[arm]["seeds"] for arm in ("full", "wild", "deep")] == ["2", "0", "0"]
    failures = [row["failure"] for row in rows(project.folder / "c", "runs") if row["arm"] == "wild"]
    assert all("The training" in failure for failure in failures)

    before = contents(project.folder / "c" / "runs" / "full")
    again = gradwise(*command)
    assert again.code == 1
    assert "[1/4]" not in again.stdout  # tried again, failed again
    assert again.stdout.count("failed: The training") >= 2
    assert contents(project.folder / "c" / "runs" / "full") == before


@pytest.mark.slow
@pytest.mark.exhaustive
def test_equal_tokens_are_as_many_whole_steps_as_fit(gradwise: Start, project: Project) -> None:
    project.records(
        "train.jsonl",
        [{"text": f"{number} times. " + "Once upon a time. " * (number % 6)} for number in range(24)],
    )
    project.recipe["train"]["batch_size"] = 4
    project.recipe["select"] = {"method": "length_top", "count": 8}
    budget = 1500
    command = ["compare", project.path, "--arms", "full,length_top", "--out", "c", "--seeds", "2"]
    done = gradwise(*command, "--budget", f"tokens={budget}")
    assert done.code == 0, done.stdout + done.stderr
    stored = yaml.safe_load((project.folder / "c" / "comparison.yaml").read_text())
    for arm in ("full", "length_top"):
        for seed in range(2):
            steps = steps_of(project.folder / "c" / "runs" / arm / f"seed-{seed}")
            tokens = [line["input_tokens"] for line in steps]
            assert len(steps) == stored["steps"][arm][seed]
            assert budget - 4 * 64 < sum(tokens) <= budget
    mean = {row["arm"]: float(row["steps"]) for row in rows(project.folder / "c", "results")}
    assert mean["length_top"] < mean["full"]  # its samples are longer


@pytest.mark.slow
@pytest.mark.exhaustive
def test_equal_time_ends_every_whole_schedule_within_calibrated_steps(
    gradwise: Start, project: Project
) -> None:
    project.recipe["train"] |= {"schedule": "cosine", "batch_size": 4}
    command = ["compare", project.path, "--arms", "full,lisa,loss_top", "--out", "c", "--seeds", "1"]
    done = gradwise(*command, "--budget", "time=3", "--fraction", "0.5", "--jobs", "2")
    assert done.code == 0, done.stdout + done.stderr
    stored = yaml.safe_load((project.folder / "c" / "comparison.yaml").read_text())
    for arm in ("full", "lisa", "loss_top"):
        speed = stored["calibration"][arm]
        planned = speed["deciding"] + speed["start"] + stored["steps"][arm] * speed["step"]
        assert 2.85 - 1.001 * speed["step"] < planned <= 2.851
        steps = steps_of(project.folder / "c" / "runs" / arm / "seed-0")
        assert len(steps) == stored["steps"][arm]
        # The schedule was followed to its end.
        assert steps[-1]["learning_rate"] < 0.1 * steps[0]["learning_rate"]
    assert stored["calibration"]["loss_top"]["deciding"] > stored["calibration"]["full"]["deciding"]
    # Measured once, by the calibration; the run was charged for it all the same.
    events = RunDirectory(project.folder / "c" / "runs" / "loss_top" / "seed-0").events()
    (signals,) = [event for event in events if event["event"] == "signals"]
    assert signals["shared"] is True
    assert len(list((project.folder / "c" / "signals").glob("*.npz"))) == 1
    command[command.index("full,lisa,loss_top")] = "full,random"
    refused(gradwise(*command, "--budget", "time", "--fraction", "0.5"), "was measured with --jobs 2; resume")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_the_reference_does_is_the_budget_unless_one_is_given(gradwise: Start, project: Project) -> None:
    for kind, amount in (("steps", 4), ("tokens", None)):
        done = gradwise(
            "compare", project.path, "--arms", "full,random", "--fraction", "0.5", "--seeds", "1",
            "--budget", kind, "--out", kind,
        )  # fmt: skip
        assert done.code == 0, done.stdout + done.stderr
        stored = yaml.safe_load((project.folder / kind / "comparison.yaml").read_text())
        assert (
            len(steps_of(project.folder / kind / "runs" / "random" / "seed-0")) == 4
        )  # 2 epochs, 12 samples
        assert amount is None or stored["budget"]["amount"] == amount
