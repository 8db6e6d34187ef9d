"""The commands do what they say: what a run leaves behind, how it is stopped, gone on with and repeated."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradwise import Direct, Grace, Plan, Recipe, Signals, __version__
from gradwise.folders import LOCK, MARKER
from gradwise.run import RunDirectory
from gradwise.training.checkpoint import is_finished
from tests.cli.small_project import Project, Server, Start


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def identical(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def measured(run: Path) -> list[dict[str, Any]]:
    """All metrics but the clock's."""
    timeless = [dict(line) for line in RunDirectory(run).metrics()]
    for line in timeless:
        del line["seconds"]
    return timeless


@pytest.mark.slow
class TestTrain:
    @pytest.fixture
    def run(self, gradwise: Start, project: Project) -> Path:
        project.recipe |= {"select": {"method": "loss_top", "count": 16}, "order": "easy_first"}
        command = gradwise("train", project.path, "--out", "first", "--set", "seed=5")
        assert command.code == 0, command.stderr
        assert not command.stderr
        self.told = command.stdout
        return project.folder / "first"

    def test_leaves_behind_what_the_documentation_says(self, run: Path, stories: Path, gradwise: Start):
        self.check_files(run)
        self.check_environment(run)
        self.check_metrics(run)
        self.check_events(run)
        self.check_model(run, stories)
        self.check_warned(run)
        self.check_recipe_runs_again(run, gradwise)

    def check_files(self, run: Path):
        names = {
            "checkpoints",
            "environment.json",
            "events.jsonl",
            "metrics.jsonl",
            "model",
            "plan",
            "recipe.yaml",
            "report.html",
            "scores.json",
        }
        assert {path.name for path in run.iterdir()} == names | {MARKER, LOCK}
        assert not list((run / "model").glob("*.bin"))

    def check_environment(self, run: Path):
        found = json.loads((run / "environment.json").read_text())
        assert found.keys() == {"versions", "machine", "command", "git_revision", "model", "data"}
        assert found["versions"]["gradwise"] == __version__
        assert found["versions"]["torch"] == torch.__version__
        assert found["machine"]["ranks"] == 1
        assert found["command"][1] == "train"
        assert found["model"]["parameters"] == 260_032
        assert re.fullmatch(r"[0-9a-f]{64}", found["data"]["fingerprint"])
        assert found["data"]["report"]["read"] == found["data"]["report"]["kept"] == 24

    def check_metrics(self, run: Path):
        metrics = RunDirectory(run).metrics()
        steps = [line for line in metrics if "loss" in line]
        assert [line["step"] for line in steps] == [1, 2, 3, 4]
        for key in ("loss", "learning_rate", "grad_norm", "label_tokens", "epoch", "seconds"):
            assert all(line[key] > 0 for line in steps), key
        assert [line["epoch"] for line in steps] == [0.5, 1, 1.5, 2]
        held_out = [line for line in metrics if "eval_loss" in line]
        assert [line["step"] for line in held_out] == [0, 2, 4]
        assert held_out[-1]["eval_loss"] < held_out[0]["eval_loss"]

    def check_events(self, run: Path):
        events = [event for event in RunDirectory(run).events() if event["event"] != "memory"]
        kinds = [event["event"] for event in events]
        assert kinds == ["signals", "plan", "probe", "layers", "layers", "finished"]
        assert all(event["seconds"] >= 0 for event in events)
        signals, plan, probe, first, second, finished = events
        assert (signals["quantities"], signals["samples"]) == (["loss"], 24)
        assert signals["seconds"] > 0
        assert (plan["select"], plan["order"], plan["pool"]) == ("loss_top", "easy_first", 24)
        assert (plan["selected"], plan["length"]) == (16, 32)
        assert (probe["steps"], first["step"], second["step"], finished["step"]) == (1, 0, 2, 4)
        assert (len(first["active"]), len(first["scores"]), sum(first["probabilities"])) == (
            2,
            5,
            pytest.approx(1),
        )
        assert finished["seconds"] >= sum(event["seconds"] for event in events[:-1])
        assert finished["peak_memory"] > 0
        assert 0 < finished["trainable_parameters"] < finished["total_parameters"] == 260_032

    def check_model(self, run: Path, stories: Path):
        plan = Plan.load(run / "plan" / "plan.safetensors")
        assert (plan.pool, len(plan), len(set(plan.indices.tolist()))) == (24, 32, 16)
        assert plan.digest == RunDirectory(run).events()[1]["digest"]
        model: Any = AutoModelForCausalLM.from_pretrained(run / "model")
        tokenizer = AutoTokenizer.from_pretrained(run / "model")
        ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
        text = tokenizer.decode(
            model.generate(ids, max_new_tokens=5, do_sample=False)[0], skip_special_tokens=True
        )
        assert re.match("Once upon a time.", text)
        before = AutoModelForCausalLM.from_pretrained(stories).state_dict()
        changed = {
            name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
        }
        drawn = {layer for event in RunDirectory(run).events() for layer in event.get("active", ())}
        assert {int(name.split(".")[2]) for name in changed} == drawn

    def check_warned(self, run: Path):
        assert "24 records read, 24 kept" in self.told
        before, after = (float(value) for value in re.findall(r"held-out loss \w+ +([\d.]+)", self.told))
        assert after < before
        assert re.search(r"steps +4\n", self.told)
        assert re.search(r"\([\d.]+ s of it deciding\)", self.told)

    def check_recipe_runs_again(self, run: Path, gradwise: Start):
        resolved = yaml.safe_load((run / "recipe.yaml").read_text())
        assert resolved["seed"] == 5
        assert resolved["data"]["train"]["path"] == str(run.parent / "train.jsonl")
        (run.parent / "elsewhere").mkdir()
        again = gradwise("train", run / "recipe.yaml", "--out", "again", cwd=run.parent / "elsewhere")
        assert again.code == 0, again.stderr
        second = run.parent / "elsewhere" / "again"
        assert identical(run, second)
        assert measured(run) == measured(second)
        assert Recipe.load(run / "recipe.yaml") == Recipe.load(second / "recipe.yaml")

    @pytest.mark.exhaustive
    def test_another_seed_trains_other_weights(self, gradwise: Start, project: Project):
        for seed in ("1", "2"):
            assert gradwise("train", project.path, "--out", seed, "--set", f"seed={seed}").code == 0
        assert not identical(project.folder / "1", project.folder / "2")

    def test_by_default_goes_to_runs_and_the_recipes_name(self, gradwise: Start, project: Project):
        project.recipe["train"] = {"max_steps": 1}
        project.recipe["layers"] = "all"
        assert gradwise("train", project.path).code == 0
        assert (project.folder / "runs" / "recipe" / "model").is_dir()

    def test_without_held_out_data_the_summary_has_the_training_loss(self, gradwise: Start, project: Project):
        del project.recipe["data"]["validation"]
        command = gradwise("train", project.path, "--out", "run")
        first, last = (
            float(value) for value in re.findall(r"training loss at \w+ +([\d.]+)", command.stdout)
        )
        assert last < first
        first_page = (project.folder / "run" / "report.html").read_text()
        assert "training loss, last step" in first_page
        again = gradwise("report", "run")
        assert again.code == 0 and "report.html" in again.stdout
        assert (project.folder / "run" / "report.html").read_text() == first_page
        refused = gradwise("report", ".")
        assert refused.code == 2 and "holds no run and no comparison" in refused.stderr

    def test_an_adapter_is_what_is_trained_and_saved(self, gradwise: Start, project: Project):
        project.recipe["adapter"] = {"method": "lora", "r": 2}
        command = gradwise("train", project.path, "--out", "run")
        assert command.code == 0, command.stderr
        saved = load_file(project.folder / "run" / "model" / "adapter_model.safetensors")
        assert saved
        assert all("lora_" in name for name in saved)

    @pytest.mark.exhaustive
    def test_the_coreset_is_drawn_as_it_developed(self, gradwise: Start, project: Project):
        project.recipe["select"] = {
            "method": "grace", "count": 16, "candidates": "all", "refresh_every": 2, "anchors": 0.3,
        }  # fmt: skip
        command = gradwise("train", project.path, "--out", "run", "--plot")
        assert command.code == 0, command.stderr
        drawn = project.folder / command.stdout.splitlines()[-1].removeprefix("Drawn: ")
        assert drawn.read_bytes().startswith(b"\x89PNG")
        developed = [event for event in RunDirectory(project.folder / "run").events() if "coverage" in event]
        assert [event["event"] for event in developed] == ["plan", "refresh"]
        for event in developed:
            assert 0 < event["coverage"] <= 1
            assert event["importance"] > event["pool_importance"]

    def test_drawing_a_coreset_needs_one(self, gradwise: Start, project: Project):
        command = gradwise("train", project.path, "--out", "run", "--plot")
        assert command.code == 2
        assert (
            "--plot draws how grace's coreset develops, the influences that d3 orders by and the spectrum"
            in command.stderr
        )
        assert "select is full, order is shuffle" in command.stderr
        assert not (project.folder / "run").exists()

    def test_an_annealing_phase_and_what_it_was_chosen_by(self, gradwise: Start, project: Project):
        project.recipe["train"]["schedule"] = "wsd"
        project.recipe["anneal"] = {"method": "direct", "last": 0.34, "count": 5}
        command = gradwise("train", project.path, "--out", "run", "--plot")
        assert command.code == 0, command.stderr
        drawn = project.folder / command.stdout.splitlines()[-1].removeprefix("Drawn: ")
        assert drawn.name == "spectrum-4.png" and drawn.read_bytes().startswith(b"\x89PNG")
        (event,) = [e for e in RunDirectory(project.folder / "run").events() if e["event"] == "anneal"]
        assert (event["step"], event["selected"], event["room"]) == (4, 5, 16)
        written = Recipe.load(project.folder / "run" / "recipe.yaml")
        assert isinstance(written.anneal, Direct) and written.anneal.last == 0.34

    def test_a_selection_says_where_it_lies_and_why(self, gradwise: Start, project: Project):
        project.recipe["select"] = {"method": "random", "count": 5}
        command = gradwise("select", project.path, "--out", "picked")
        assert command.code == 0, command.stderr
        assert "all of them: drawn at random with seed 0" in command.stdout
        reasons, records = command.stdout.splitlines()[-1].split(", the records: ")
        assert (project.folder / reasons.removeprefix("The picks with their reasons: ")).exists()
        assert len((project.folder / records).read_text().splitlines()) == 5

    @pytest.mark.exhaustive
    def test_the_annealing_phase_alone(self, gradwise: Start, project: Project):
        project.recipe["train"]["schedule"] = "wsd"
        project.recipe["anneal"] = {"method": "direct", "count": 5}
        command = gradwise("select", project.path, "--anneal", "--out", "phase", "--plot")
        assert command.code == 0, command.stderr
        assert "5 samples picked by direct: phase" in command.stdout
        assert (project.folder / "phase" / "spectrum.png").read_bytes().startswith(b"\x89PNG")
        assert len((project.folder / "phase" / "records.jsonl").read_text().splitlines()) == 5
        project.recipe["anneal"] = {"method": "random", "count": 5}
        command = gradwise("select", project.path, "--anneal", "--out", "random", "--plot")
        assert command.code == 2
        assert "--plot draws the spectrum that direct selects by" in command.stderr

    def test_collecting_gives_what_the_recipe_needs(self, gradwise: Start, project: Project):
        project.recipe["select"] = {"method": "grace", "fraction": 0.5}
        command = gradwise("collect", project.path, "--out", "signals")
        assert command.code == 0, command.stderr
        grace, direct = Grace(fraction=0.5), Direct(count=2)
        signals = Signals.open(project.folder / "signals")
        assert len(grace.select(signals).indices) == len(signals) // 2
        assert len(direct.select(signals, validation=signals).indices) == 2

    def test_packing(self, gradwise: Start, project: Project):
        project.recipe["data"] |= {"packing": True, "max_length": 256}
        project.recipe["train"]["batch_size"] = 2
        command = gradwise("train", project.path, "--out", "run")
        assert command.code == 0, command.stderr
        steps = [line for line in RunDirectory(project.folder / "run").metrics() if "loss" in line]
        assert 4 < len(steps) < 24


class TestStopping:
    """Long enough to be stopped on its way: 120 steps, checkpoints every 50."""

    train: ClassVar = {"epochs": 40, "save_strategy": "steps", "save_steps": 50, "eval_strategy": "no"}

    @pytest.fixture
    def long(self, project: Project) -> Project:
        project.recipe["train"] |= self.train
        return project

    @pytest.fixture(scope="class")
    def never_stopped(self, server: Server, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        project = Project.make(tmp_path_factory.mktemp("never_stopped"), stories)
        project.recipe["train"] |= self.train
        assert server.start(project.folder, "train", project.path, "--out", "run").wait().code == 0
        return project.folder / "run"

    @staticmethod
    def wait_until(reached: Callable[[], bool], patience: float = 120):
        end = time.monotonic() + patience
        while not reached():
            assert time.monotonic() < end, "not reached in time"
            time.sleep(0.01)

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
    def test_a_stopped_run_resumes_as_if_it_had_not_been(
        self, start: Start, gradwise: Start, long: Project, never_stopped: Path, kind: signal.Signals
    ):
        command = start("train", long.path, "--out", "run")
        run = RunDirectory(long.folder / "run")
        self.wait_until(lambda: any(line["step"] >= 5 for line in run.metrics()))
        os.kill(command.pid, kind)
        command.wait()
        assert command.code == 1
        assert not command.stderr
        assert f"{kind.name}: stopping after this step, with a checkpoint." in command.stdout
        stopped = re.search(
            r"Stopped after step (\d+) of 120; a checkpoint is saved. Run the same command", command.stdout
        )
        assert stopped
        assert is_finished(run.checkpoints / f"checkpoint-{stopped[1]}")
        assert not run.model.exists()
        steps_before = run.metrics_file.read_bytes()

        again = gradwise("train", long.path, "--out", "run")
        assert again.code == 0, again.stderr
        assert f"Resuming from {Path('run') / 'checkpoints' / f'checkpoint-{stopped[1]}'}" in again.stdout
        assert [event["step"] for event in run.events() if event["event"] == "resume"] == [int(stopped[1])]
        assert run.metrics_file.read_bytes().startswith(steps_before)
        assert identical(run.path, never_stopped)
        assert measured(run.path) == measured(never_stopped)

    @pytest.mark.exhaustive
    def test_a_killed_run_resumes_too(
        self, start: Start, gradwise: Start, long: Project, never_stopped: Path
    ):
        command = start("train", long.path, "--out", "run")
        run = RunDirectory(long.folder / "run")
        self.wait_until(lambda: is_finished(run.checkpoints / "checkpoint-50"))
        os.kill(command.pid, signal.SIGKILL)
        assert command.wait().code == -signal.SIGKILL
        assert gradwise("train", long.path, "--out", "run").code == 0
        resumed = [event["step"] for event in run.events() if event["event"] == "resume"]
        assert resumed in ([50], [100])
        assert identical(run.path, never_stopped)
        assert measured(run.path) == measured(never_stopped)

    def test_twice_stops_at_once(self, start: Start, long: Project):
        long.recipe["train"] |= {"epochs": 1000, "eval_on_start": False}
        command = start("train", long.path, "--out", "run")
        run = RunDirectory(long.folder / "run")
        self.wait_until(lambda: any(line["step"] >= 5 for line in run.metrics()))
        # Until it is gone, however much of its farewell the first one lets it get through.
        os.kill(command.pid, signal.SIGINT)
        os.kill(command.pid, signal.SIGINT)
        command.wait()
        assert command.code == 1
        assert "Traceback" not in command.stderr

    def test_while_loading_it_leaves_without_a_traceback(self, start: Start, long: Project):
        long.records("train.jsonl", [{"text": f"Story number {number}. " * 9} for number in range(100_000)])
        command = start("train", long.path, "--out", "run")
        self.wait_until(lambda: (long.folder / "run" / "recipe.yaml").exists())
        os.kill(command.pid, signal.SIGINT)
        assert command.wait().code == 1
        assert command.stderr.strip() == "gradwise: stopped; the same command continues from what is saved."


def test_schema_prints_a_json_schema(tmp_path: Path):
    """In a fresh interpreter, as a shell would start it."""
    command = [sys.executable, "-m", "gradwise", "schema"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert not done.stderr
    schema = json.loads(done.stdout)
    assert schema == Recipe.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tiny_demo_lowers_the_held_out_loss_by_all_four_methods(gradwise: Start, tmp_path: Path):
    command = gradwise("demo", "--tiny", "--no-compare", "--out", "demo")
    assert command.code == 0, command.stderr
    before, after = (float(value) for value in re.findall(r"held-out loss \w+ +([\d.]+)", command.stdout))
    assert after < before - 1
    run = tmp_path / "demo" / "run"
    assert (run / "model" / "model.safetensors").is_file()
    page = (run / "report.html").read_text()
    for section in ("samples", "pool", "order", "layers", "annealing"):
        assert f'<section id="{section}">' in page
    assert "Not everything could be read" not in page
