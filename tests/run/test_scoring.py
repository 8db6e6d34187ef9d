"""scores.json: written at the end of a run, or later, the same either way; failures lose no run."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gradwise import Adapter, Data, DataError, Model, Recipe, RecipeError, Source, Train
from gradwise.data import load
from gradwise.data.parts import split
from gradwise.errors import CheckpointError
from gradwise.evaluation import Choice, EvaluationError, Function, Generate, Metrics, score
from gradwise.methods.baselines import FullAnneal
from gradwise.run import RunDirectory, train
from gradwise.run.model import load_tokenizer
from gradwise.run.summary import summary
from tests.conftest import some

FUNCTIONS = """
import torch
def weight(model, tokenizer, validation):
    open("calls", "a").write("x")
    return {"sum": sum(float(p.detach().abs().sum()) for p in model.parameters()), "drawn": torch.rand(1)}
def fails(model, tokenizer, validation):
    raise ValueError("not yet")
def interrupted(model, tokenizer, validation):
    raise KeyboardInterrupt
"""


def silent(_: str) -> None:
    pass


@pytest.fixture
def recipe(tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Two steps, held-out data of two domains, a function and two tasks."""
    monkeypatch.chdir(tmp_path)
    for name, source, count in (
        ("train", "plays_train", 8),
        ("one", "plays_held_out", 3),
        ("two", "plays_train", 12),
    ):
        lines = (stories.parent / f"{source}.jsonl").read_text().splitlines()[:count]
        (tmp_path / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines[-8:]))
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "ask.jsonl").write_text(
        "".join(json.dumps({"q": f"Once {n}", "a": n % 2, "c": ["upon", "a time"]}) + "\n" for n in range(3))
    )
    tasks = [
        Choice(name="ends", path="ask.jsonl", prompt="q", choices="c", answer="a"),
        Generate(name="on", path="ask.jsonl", prompt="q", answer="{{c}}", max_new_tokens=3),
    ]
    held_out = [Source(path=f"{name}.jsonl", domain=name) for name in ("one", "two")]
    return Recipe(
        model=Model(name=str(stories)),
        data=Data(train=Source(path="train.jsonl"), validation=held_out, max_length=400),
        train=Train(batch_size=4, learning_rate=1e-3, arguments={"use_cpu": True}),
        metrics=Metrics(tasks=tasks, functions=[Function(path="mine.py:weight", better="lower")]),
    )


def plain(recipe: Recipe) -> Recipe:
    """Without anything to measure."""
    assert recipe.data is not None
    return replace(recipe, data=replace(recipe.data, validation=None), metrics=Metrics())


class TestWritten:
    @pytest.mark.slow
    def test_what_score_says_of_the_saved_model(self, recipe: Recipe):
        run = train(recipe, "run", tell=silent).run
        found = json.loads(run.scores_file.read_text())
        assert set(found) == {"scores", "seconds"}
        assert found["seconds"] > 0
        assert recipe.data is not None
        tokenizer = load_tokenizer(Model(name=str(run.model)))
        again = score(
            AutoModelForCausalLM.from_pretrained(run.model),
            tokenizer,
            recipe.metrics,
            load(recipe.data, "validation", tokenizer, progress=False).dataset,
        )
        assert found["scores"] == {name: entry.as_dict() for name, entry in again.items()} == run.scores()
        assert list(again) == [
            *("held_out_loss", "held_out_loss/one", "held_out_loss/two"),
            *("weight/sum", "weight/drawn", "ends", "on"),
        ]
        assert "ends                          " in summary(run)
        shown = [line.split("  ")[1:] for line in summary(run).splitlines() if "held-out loss" in line]
        assert [line[0] for line in shown] == ["held-out loss before", "held-out loss after"]
        assert f"{again['held_out_loss'].value:.4f} nats per token over 11 samples" in shown[1][-1]
        assert "held_out_loss  " not in summary(run)

    @pytest.mark.parametrize("kind", some(["plain", "adapter", "bf16", "template"], 3))
    def test_later_as_at_the_end(self, recipe: Recipe, kind: str):
        """A run killed between its model and its scores: the same command gives the same scores."""
        if kind == "adapter":
            recipe = replace(recipe, adapter=Adapter(options={"r": 2, "init_lora_weights": False}))
        if kind == "bf16":
            recipe = replace(recipe, train=replace(recipe.train, arguments={"use_cpu": True, "bf16": True}))
        if kind == "template":
            chat = "{% for m in messages %}[{{m.content}}]{% endfor %}"
            tasks = [replace(task, chat=True) for task in recipe.metrics.tasks]
            assert recipe.data is not None
            data = replace(recipe.data, chat_template=chat)
            recipe = replace(recipe, data=data, metrics=replace(recipe.metrics, tasks=tasks))
        messages: list[str] = []
        run = train(recipe, "run", tell=silent).run
        before, model = run.scores(), {path: path.stat().st_mtime_ns for path in run.model.iterdir()}
        events = run.events_file.read_bytes()
        run.scores_file.unlink()
        outcome = train(recipe, "run", tell=messages.append)
        assert (outcome.finished, outcome.steps) == (True, 2)
        assert messages == ["The run in run is finished already.", "Its model is not scored yet; scoring it."]
        assert run.scores() == before
        assert {path: path.stat().st_mtime_ns for path in run.model.iterdir()} == model
        assert run.events_file.read_bytes() == events

        messages.clear()
        written = run.scores_file.stat().st_mtime_ns
        train(recipe, "run", tell=messages.append)
        assert messages == ["The run in run is finished already."]
        assert run.scores_file.stat().st_mtime_ns == written

    def test_later_without_what_the_annealing_phase_trains_on(self, recipe: Recipe, stories: Path):
        """Such samples measure neither at the end of a run nor later."""
        held_out = (stories.parent / "plays_held_out.jsonl").read_text().splitlines(keepends=True)[:8]
        Path("held_out.jsonl").write_text("".join(held_out))
        measuring = split(["held_out"] * 8, 8, 0.5).measuring
        Path("last.jsonl").write_text(held_out[measuring[0]] + Path("train.jsonl").read_text())
        assert recipe.data is not None
        recipe = replace(
            recipe,
            data=replace(recipe.data, validation=None, target=Source(path="held_out.jsonl")),
            train=replace(recipe.train, schedule="wsd"),
            anneal=FullAnneal(last=0.5, data=Source(path="last.jsonl")),
            metrics=Metrics(),
        )
        run = train(recipe, "run", tell=silent).run
        before = run.scores()
        assert before["held_out_loss"]["samples"] == 3
        run.scores_file.unlink()
        assert train(recipe, "run", tell=silent).finished
        assert run.scores() == before

    def test_in_the_precision_of_the_training(self, recipe: Recipe):
        """`use_cpu` need not be set where there is nothing but a CPU."""
        own = {"use_cpu": True} if torch.accelerator.is_available() else {}
        given = replace(recipe.train, arguments=own | {"bf16": True})
        run = train(replace(recipe, train=given, metrics=Metrics()), "run", tell=silent).run
        assert recipe.data is not None
        tokenizer, losses = load_tokenizer(Model(name=str(run.model))), []
        held_out = load(recipe.data, "validation", tokenizer, progress=False).dataset
        model = AutoModelForCausalLM.from_pretrained(run.model)
        for enabled in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                losses.append(score(model, tokenizer, Metrics(), held_out)["held_out_loss"].value)
        assert losses[0] != losses[1]
        assert run.scores()["held_out_loss"]["value"] == losses[0]

    def test_only_where_there_is_something_to_measure(self, recipe: Recipe):
        run = train(plain(recipe), "run", tell=silent).run
        assert not run.scored
        assert run.scores() == {}

    def test_not_where_it_is_not_wanted(self, recipe: Recipe):
        run = train(recipe, "run", tell=silent, score=False).run
        messages: list[str] = []
        assert train(recipe, "run", tell=messages.append, score=False).finished
        assert messages == ["The run in run is finished already."]
        assert not run.scored
        train(recipe, "run", tell=silent)
        assert run.scored

    def test_its_cost_is_not_the_runs(self, recipe: Recipe):
        run = train(recipe, "run", tell=silent).run
        assert run.events()[-1]["event"] == "finished"
        assert run.scores_file.stat().st_mtime_ns >= run.events_file.stat().st_mtime_ns

    def test_validation_data_alone(self, recipe: Recipe):
        run = train(replace(recipe, metrics=Metrics()), "run", tell=silent).run
        assert list(run.scores()) == ["held_out_loss", "held_out_loss/one", "held_out_loss/two"]

    def test_metrics_alone(self, recipe: Recipe):
        assert recipe.data is not None
        recipe = replace(recipe, data=replace(recipe.data, validation=None))
        run = train(recipe, "run", tell=silent).run
        assert list(run.scores()) == ["weight/sum", "weight/drawn", "ends", "on"]
        assert run.scores()["weight/sum"]["samples"] == 0


def with_function(recipe: Recipe, name: str) -> Recipe:
    return replace(recipe, metrics=replace(recipe.metrics, functions=[Function(path=f"mine.py:{name}")]))


class TestFailures:
    def test_an_exception_after_training_loses_nothing(self, recipe: Recipe):
        recipe = with_function(recipe, "fails")
        with pytest.raises(EvaluationError) as caught:
            train(recipe, "run", tell=silent)
        assert str(caught.value) == (
            "The metric fails failed (ValueError: not yet; mine.py, line 7). The model is saved in "
            "run/model; once this is mended, the same command only scores it."
        )
        run = RunDirectory("run")
        assert run.finished and not run.scored
        events = run.events_file.read_bytes()
        with pytest.raises(EvaluationError, match="not yet"):
            train(recipe, "run", tell=silent)
        Path("mine.py").write_text(FUNCTIONS.replace('raise ValueError("not yet")', "return 1"))
        assert train(recipe, "run", tell=silent).finished
        assert run.scores()["fails"]["value"] == 1
        assert run.events_file.read_bytes() == events

    def test_interrupted(self, recipe: Recipe):
        messages: list[str] = []
        outcome = train(with_function(recipe, "interrupted"), "run", tell=messages.append)
        assert not outcome.finished
        assert messages[-1] == (
            "Stopped while scoring; the model is saved in run/model. The same command scores it."
        )
        assert RunDirectory("run").finished and not RunDirectory("run").scored

    def test_metrics_of_an_unscored_run_can_be_mended(self, recipe: Recipe):
        with pytest.raises(EvaluationError):
            train(with_function(recipe, "fails"), "run", tell=silent)
        run = train(recipe, "run", tell=silent).run
        assert "weight/sum" in run.scores()
        assert Recipe.load(run.recipe_file).metrics == recipe.anchored().metrics

    def test_metrics_of_a_scored_run_cannot(self, recipe: Recipe):
        run = train(recipe, "run", tell=silent).run
        other = with_function(recipe, "fails")
        with pytest.raises(
            RecipeError, match=r"^run was scored by other metrics; delete run/scores\.json to"
        ):
            train(other, "run", tell=silent)
        with pytest.raises(RecipeError, match=r"different: metrics.* was .*; seed was 0, now 1"):
            train(replace(other, seed=1), "run", tell=silent)
        assert Recipe.load(run.recipe_file).metrics == recipe.anchored().metrics

    def test_held_out_data_that_changed_in_between(self, recipe: Recipe):
        run = train(recipe, "run", tell=silent).run
        run.scores_file.unlink()
        Path("one.jsonl").write_text('{"text": "Something else."}\n')
        with pytest.raises(CheckpointError, match="The held-out data have changed since the run in run was"):
            train(recipe, "run", tell=silent)

    @pytest.mark.parametrize(
        ("metrics", "message"),
        [
            (Metrics(functions=[Function(path="mine.py:gone")]), "gone is not there in"),
            (Metrics(functions=[Function(path="gone.py:f")]), "gone.py cannot be imported"),
            (
                Metrics(tasks=[Generate(name="t", path="gone.jsonl", prompt="q", answer="a")]),
                "metrics.tasks: t: no file or folder",
            ),
            (
                Metrics(tasks=[Generate(name="t", path="ask.jsonl", prompt="q", answer="{{b}}")]),
                "line 1: answer: 'b' is undefined",
            ),
            (
                Metrics(
                    tasks=[Generate(name="t", path="ask.jsonl", prompt="q", answer="a", max_new_tokens=600)]
                ),
                "has only 512 positions",
            ),
        ],
        ids=["function", "file", "records", "column", "positions"],
    )
    def test_mistakes_come_before_the_first_step(self, recipe: Recipe, metrics: Metrics, message: str):
        with pytest.raises((RecipeError, DataError), match=re.escape(message)):
            train(replace(recipe, metrics=metrics), "run", tell=silent)
        run = RunDirectory("run")
        assert not run.started and not run.events()


class TestRanks:
    @pytest.mark.slow
    @pytest.mark.exhaustive
    def test_two_ranks_score_as_one(self, recipe: Recipe, tmp_path: Path):
        """The held-out loss is shared, the rest is the first rank's; one file comes of it."""
        recipe.anchored().save("recipe.yaml")
        scores = []
        for ranks in (1, 2):
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            subprocess.run(
                [sys.executable, *launch, "-m", "gradwise", "train", "recipe.yaml", "--out", f"run{ranks}"],
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                timeout=300,
                capture_output=True,
            )
            assert Path("calls").read_text() == "x"
            Path("calls").unlink()
            scores.append(RunDirectory(f"run{ranks}").scores())
        one, two = scores
        assert one.keys() == two.keys()
        assert {n: s["value"] for n, s in two.items()} == pytest.approx(
            {n: s["value"] for n, s in one.items()}, rel=1e-3
        )
        assert [s["samples"] for s in one.values()] == [s["samples"] for s in two.values()]


def test_sharding_is_refused_before_training(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gradwise.run.execute._sharded", lambda _: True)
    with pytest.raises(RecipeError, match="metrics cannot be taken on a model that FSDP or DeepSpeed shards"):
        train(recipe, "run", tell=silent)
    messages: list[str] = []
    outcome = train(replace(recipe, metrics=Metrics()), "run", tell=messages.append)
    assert outcome.finished and not outcome.run.scored
    assert (
        messages[-1] == "The model is sharded and not scored here; the same command in one process scores it."
    )
    assert train(recipe, "run", tell=silent).run.scored
