"""`gradwise.run.train` and its parts from Python."""

import json
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradwise import Adapter, Data, Model, Recipe, Source, Train, Trial, baselines, console
from gradwise.errors import CheckpointError
from gradwise.ranks import is_first, world_size
from gradwise.run import RunDirectory, train
from gradwise.run.environment import environment, peak_memory
from gradwise.run.model import load_saved_model
from gradwise.run.summary import summary
from tests.conftest import same_weights


@pytest.fixture
def recipe(tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Two steps; its data lie in the working directory."""
    lines = (stories.parent / "plays_train.jsonl").read_text().splitlines()[:8]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return Recipe(
        model=Model(name=str(stories)),
        data=Data(train=Source(path="train.jsonl"), max_length=400),
        train=Train(batch_size=4, learning_rate=1e-3),
    )


class TestTrain:
    def test_outcome(self, recipe: Recipe):
        messages: list[str] = []
        outcome = train(recipe, "run", tell=messages.append)
        assert (outcome.finished, outcome.steps, outcome.run.path) == (True, 2, Path("run"))
        assert [line.split(":")[0] for line in messages] == ["8 records read, 8 kept", str(recipe.model.name)]  # type: ignore[union-attr]
        assert "0.3 M parameters" in messages[1]

        again = train(recipe, "run", tell=messages.append)
        assert (again.finished, again.steps) == (True, 2)
        assert messages[2:] == ["The run in run is finished already."]

    def test_the_saved_recipe_runs_from_anywhere(
        self, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        train(recipe, "run", tell=lambda _: None)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        saved = Recipe.load(tmp_path / "run" / "recipe.yaml")
        assert isinstance(saved.data, Data)
        assert saved.data.train == Source(path=str(tmp_path / "train.jsonl"))
        train(saved, "run", tell=lambda _: None)
        models = [
            AutoModelForCausalLM.from_pretrained(folder / "run" / "model") for folder in (tmp_path, Path())
        ]
        assert same_weights(*models)

    def test_the_seed_alone_decides(self, recipe: Recipe):
        """An adapter's first weights too, whatever was drawn in the process before."""
        recipe = replace(recipe, adapter=Adapter(options={"r": 2}))
        trained = []
        for noise in (1, 2):
            torch.manual_seed(noise)
            run = train(recipe, f"run{noise}", tell=lambda _: None).run
            trained.append((run.model / "adapter_model.safetensors").read_bytes())
        assert trained[0] == trained[1]

    def test_off_a_terminal_lines_show_that_it_is_alive(
        self, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        monkeypatch.setattr(console, "FIRST_LINE", 0.0)
        monkeypatch.setattr(console, "NEXT_LINE", 0.0)
        train(replace(recipe, train=replace(recipe.train, arguments={"logging_steps": 1})), "run")
        shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: ")]
        assert len(shown) == 2
        assert re.fullmatch(
            r"training: 1 of 2 steps \(50%\), loss \d\.\d{4}, learning rate 0\.001, \d+ s left", shown[0]
        )

    def test_early_stopping_keeps_the_best_and_makes_no_further_step_when_resumed(self, recipe: Recipe):
        """The learning rate is so large that the model soon knows nothing but what it is trained on."""
        for name, text in (
            ("narrow", "Once upon a time there was a number {}."),
            ("other", "The dog saw {} birds."),
        ):
            rows = [json.dumps({"text": text.format(number)}) for number in range(16)]
            Path(f"{name}.jsonl").write_text("\n".join(rows))
        data = Data(train=Source(path="narrow.jsonl"), validation=Source(path="other.jsonl"), max_length=48)
        asked = {"max_steps": 16, "eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1}
        stopping = Train(
            batch_size=4,
            learning_rate=0.05,
            schedule="constant",
            early_stopping_patience=2,
            arguments=asked,
        )
        said: list[str] = []
        recipe = replace(recipe, data=data, train=stopping)
        outcome = train(recipe, "run", tell=said.append)
        assert (outcome.finished, outcome.steps) == (True, 6)
        assert "Training stops after step 6 of 16: the last 2 evaluations were no better" in "".join(said)
        weights = (outcome.run.model / "model.safetensors").read_bytes()
        best = outcome.run.checkpoints / "checkpoint-2" / "model.safetensors"
        assert weights == best.read_bytes()
        score = outcome.run.scores()["held_out_loss"]["value"]
        assert f"after {score:.4f} nats" in " ".join(summary(outcome.run).split())
        shutil.rmtree(outcome.run.model)  # as if killed between the last evaluation and the end
        again = train(recipe, "run", tell=said.append)
        assert (again.finished, again.steps) == (True, 6)
        assert weights == (again.run.model / "model.safetensors").read_bytes()

    def test_killed_between_a_trial_and_the_next_checkpoint_it_is_the_same_run(
        self, few_speeches: Callable[..., Data], stories: Path, tmp_path: Path
    ):
        """By the recipe that it began with, and by its own, which has the winner by then."""
        recipe = Recipe(
            model=Model(name=str(stories)),
            data=few_speeches(),
            train=Train(
                batch_size=4,
                learning_rate=1e-3,
                schedule="wsd",
                arguments={"max_steps": 20, "save_strategy": "steps", "save_steps": 15},
            ),
            anneal=Trial(contenders=("random", "full"), steps=2, last=0.2),
        )
        run = train(recipe, tmp_path / "run", tell=lambda _: None).run
        weights = (run.model / "model.safetensors").read_bytes()
        (trial,) = [event for event in run.events() if event["event"] == "trial"]
        written = Recipe.load(run.recipe_file)
        assert written.anneal is not None and written.anneal.resolved() is not None
        for again in (recipe, recipe, written):
            # As if killed after the trial: the events have it, the checkpoint does not.
            shutil.rmtree(run.model)
            shutil.rmtree(run.checkpoints / "checkpoint-20")
            train(again, run.path, tell=lambda _: None)
            assert Recipe.load(run.recipe_file) == written
            assert (run.model / "model.safetensors").read_bytes() == weights
            trials = [event["losses"] for event in run.events() if event["event"] == "trial"]
            assert trials == ([] if again is written else [trial["losses"]])

    @pytest.mark.parametrize("adapter", [None, Adapter(options={"r": 2})])
    def test_the_template_that_was_learned_is_saved(self, recipe: Recipe, adapter: Adapter | None):
        """With the model, in the checkpoints, and nowhere else."""
        template = (
            "{% for message in messages %}{{ '<s>' + message['role'] + ': ' + message['content'] + '</s>' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
        )
        chat = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Once upon a time."}]
        others = [[{**chat[0], "content": f"Hello {n}."}, chat[1]] for n in range(3)]
        lines = [json.dumps({"messages": messages}) for messages in (chat, *others)]
        Path("chat.jsonl").write_text("\n".join(lines) + "\n")
        data = Data(train=Source(path="chat.jsonl"), max_length=400, chat_template=template)
        changed = replace(recipe, data=data, adapter=adapter)
        before = AutoTokenizer.from_pretrained(changed.model.name)  # type: ignore[union-attr]
        out = train(changed, "run", tell=lambda _: None).run
        for folder in (out.model, *out.checkpoints.iterdir()):
            assert AutoTokenizer.from_pretrained(folder).chat_template == template
        assert before.chat_template is None
        tokenizer = AutoTokenizer.from_pretrained(out.model)
        asked = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_tensors="pt")
        model = load_saved_model(changed.model, out.model)  # type: ignore[arg-type]
        assert model.generate(**asked, max_new_tokens=3).shape[1] <= asked["input_ids"].shape[1] + 3
        # A run resumes from what it saved, adapter or not.
        again = replace(recipe, model=Model(name=str(out.model)))
        assert train(again, "again", tell=lambda _: None).finished

    def test_generation_settings_that_contradict_each_other_do_not_end_a_run(
        self, recipe: Recipe, stories: Path, tmp_path: Path
    ):
        shutil.copytree(stories, tmp_path / "model")
        settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
        (tmp_path / "model" / "generation_config.json").chmod(0o644)
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
        messages: list[str] = []
        out = train(
            replace(recipe, model=Model(name=str(tmp_path / "model"))), "run", tell=messages.append
        ).run
        assert sum("generation settings temperature, top_p have no effect" in line for line in messages) == 1
        saved = json.loads((out.model / "generation_config.json").read_text())
        assert saved["do_sample"] is False and not {"temperature", "top_p"} & saved.keys()

    def test_libraries_speak_as_before(self, recipe: Recipe):
        transformers.utils.logging.set_verbosity_info()
        transformers.utils.logging.disable_progress_bar()
        datasets.enable_progress_bars()
        try:
            train(recipe, "run", tell=lambda _: None)
            assert transformers.utils.logging.get_verbosity() == logging.INFO
            assert not transformers.utils.logging.is_progress_bar_enabled()
            assert not datasets.are_progress_bars_disabled()
        finally:
            transformers.utils.logging.set_verbosity_warning()
            transformers.utils.logging.enable_progress_bar()

    def test_signal_handlers_are_given_back(self, recipe: Recipe):
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        train(recipe, "run", tell=lambda _: None)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

    def test_runs_in_a_thread_too(self, recipe: Recipe):
        """Where signals cannot be handled."""
        outcomes = []
        thread = threading.Thread(target=lambda: outcomes.append(train(recipe, "run", tell=lambda _: None)))
        thread.start()
        thread.join()
        assert outcomes[0].finished

    def test_it_is_not_resumed_with_other_held_out_data(self, recipe: Recipe):
        """Which may choose as well: for the annealing phase, or the best checkpoint."""
        assert recipe.data is not None
        Path("valid.jsonl").write_text('{"text": "Once upon a time."}\n')
        recipe = replace(recipe, data=replace(recipe.data, validation=Source(path="valid.jsonl")))
        train(recipe, "run", tell=lambda _: None, score=False)
        shutil.rmtree("run/model")  # as if it had been killed before its end
        Path("valid.jsonl").write_text('{"text": "There was a cat."}\n')
        with pytest.raises(CheckpointError, match="The held-out data have changed"):
            train(recipe, "run", tell=lambda _: None, score=False)

    def test_held_out_samples_that_are_trained_on_are_named(self, recipe: Recipe):
        messages: list[str] = []
        data = Data(train=Source(path="train.jsonl"), validation=Source(path="train.jsonl"), max_length=400)
        train(replace(recipe, data=data), "run", tell=messages.append)
        assert any(
            "Warning: 8 of 8 held-out samples also occur in the training data" in line for line in messages
        )


class TestEnvironment:
    def test_plain_values(self):
        found = environment(data={"fingerprint": "x"}, model={"name": "m"})
        assert json.loads(json.dumps(found)) == found
        assert found["versions"]["torch"] == torch.__version__
        assert found["machine"]["processors"] == os.cpu_count()

    def test_git_revision_of_the_working_directory_or_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        monkeypatch.chdir(tmp_path)
        assert environment(data={}, model={})["git_revision"] is None

    def test_peak_memory_is_that_of_this_process(self):
        before = peak_memory(torch.device("cpu"))
        assert 2**26 < before < 2**36
        ballast = torch.ones(before // 4 + 2**26)  # float32: larger than the process has ever been
        assert peak_memory(torch.device("cpu")) > before
        del ballast

    @pytest.mark.parametrize(("rank", "first"), [(None, True), ("0", True), ("1", False)])
    def test_ranks(self, monkeypatch: pytest.MonkeyPatch, rank: str | None, first: bool):
        for name, value in (("RANK", rank), ("WORLD_SIZE", "3" if rank else None)):
            monkeypatch.delenv(name, raising=False)
            if value:
                monkeypatch.setenv(name, value)
        assert (is_first(), world_size()) == (first, 3 if rank else 1)


class TestSummary:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Callable[..., RunDirectory]:
        def make(*metrics: dict[str, Any]) -> RunDirectory:
            run = RunDirectory(tmp_path)
            finished = {"step": 1234, "seconds": 99.6, "peak_memory": 3 * 2**29}
            share = {"trainable_parameters": 250_000, "total_parameters": 1_000_000}
            events = [
                {"event": "signals", "seconds": 2.0},
                {"event": "plan", "seconds": 1.0},
                {"event": "probe", "seconds": 0.5},
                {"event": "layers", "seconds": 0.25},
                {"event": "resume", "seconds": 50.0},
                {"event": "finished", **finished, **share},
            ]
            run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in metrics))
            run.events_file.write_text("".join(json.dumps(line) + "\n" for line in events))
            return run

        return make

    def rows(self, run: RunDirectory) -> dict[str, str]:
        return dict(line.strip().split("  ", 1) for line in summary(run).splitlines())

    def test_numbers(self, run: Callable[..., RunDirectory]):
        made = run({"step": 0, "eval_loss": 3.5}, {"step": 1, "loss": 3.0}, {"step": 2, "eval_loss": 2.25})
        found = {name: value.strip() for name, value in self.rows(made).items()}
        assert found == {
            "held-out loss before": "3.5000 nats per token",
            "held-out loss after": "2.2500 nats per token",
            "steps": "1,234",
            "parameters updated at a time": "0.25 M of 1.00 M (25%)",
            "peak memory": "1.50 GiB",
            "time": "100 s (3.8 s of it deciding)",
            "model": str(made.model),
            "record": str(made.path),
        }

    @pytest.mark.parametrize("known", [True, False])
    def test_what_was_forecast_beside_what_was_spent(self, run: Callable[..., RunDirectory], known: bool):
        made = run({"step": 1, "loss": 3.0})
        expected = {"select": 0.125, "layers": 0.01, "anneal": None} if known else {"select": None}
        events = [
            {"event": "forecast", "seconds": 1.0},
            {"event": "refresh", "seconds": 4.2},
            {"event": "plan", "seconds": 0.0, "expected": expected},
        ]
        first = "".join(json.dumps(line) + "\n" for line in events)
        made.events_file.write_text(first + made.events_file.read_text())
        found = {name: value.strip() for name, value in self.rows(made).items()}
        assert found["time"] == "100 s (8.9 s of it deciding)"
        # Signals and plan took 3 s, the refresh 4.2 s, of 91 s of training.
        bill = "select 8%, forecast 12%; layers 1%, forecast 1%; measuring speeds 1%" if known else None
        assert found.get("deciding over training") == bill

    def test_no_before_that_was_not_measured_before(self, run: Callable[..., RunDirectory]):
        found = self.rows(run({"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 2.25}))
        assert "held-out loss before" not in found
        assert "2.2500" in found["held-out loss after"]

    def test_training_loss_over_the_first_and_last_tenth(self, run: Callable[..., RunDirectory]):
        found = self.rows(run(*({"step": n, "loss": float(n)} for n in range(1, 31))))
        assert "2.0000" in found["training loss at first"]
        assert "29.0000" in found["training loss at last"]

    def test_all_layers_are_all_parameters(self, recipe: Recipe):
        outcome = train(replace(recipe, layers=baselines.AllLayers()), "run", tell=lambda _: None)
        assert "0.26 M of 0.26 M (100%)" in summary(outcome.run)
