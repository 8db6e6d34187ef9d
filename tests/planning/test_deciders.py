"""Every method goes through the same tests as a decision of a run: what it needs, checks, costs, when it is
due, what it decides, what it remembers, and that a resumed run equals one that was never stopped."""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

import gradwise as gw
from gradwise.methods import Anneal, OrderBy, Select
from gradwise.planning import Planner
from gradwise.planning.annealing import Annealing
from gradwise.planning.decider import Decider
from gradwise.signals.request import QUANTITIES
from gradwise.training.target import target_of
from tests.conftest import same_weights, short_run

SETTINGS: dict[str, dict[str, Any]] = {
    **{
        name: {"count": 12}
        for name in (
            "random",
            "loss_top",
            "length_top",
            "grad_norm_top",
            "k_center",
            "dsir",
            "nearest",
            "tsds",
        )
    },
    "grace": {"count": 12, "candidates": "all", "refresh_every": 2, "anchors": 0.5},
    "trial": {"count": 12, "steps": 2},
    "less": {"count": 12, "checkpoints": 2, "warm_up_fraction": 0.2},
    "d3_published": {"chunk": 2, "hessian_probes": 1},
    "d3": {"probes": 2, "target_samples": 4, "overhead": 1.0},
}
"""Settings that a method requires; the others have defaults for everything."""


def _members(union: Any, section: str) -> list[Any]:
    classes = get_args(get_args(union)[0])
    return [pytest.param(section, cls, id=f"{section}-{cls.__name__}") for cls in classes]


METHODS = [*_members(Select, "select"), *_members(OrderBy, "order"), *_members(Anneal, "anneal")]
every_method = pytest.mark.parametrize(("section", "cls"), METHODS)
OWN = (gw.Grace, gw.D3, gw.Direct, gw.Trial, gw.SelectTrial)
several_methods = pytest.mark.parametrize(
    ("section", "cls"),
    [
        one
        if one.values[1] in OWN or number % 3 == 0
        else pytest.param(*one.values, id=one.id, marks=[pytest.mark.exhaustive])
        for number, one in enumerate(METHODS)
    ],
)
"""The four methods and every third of their baselines; all of them in the exhaustive suite."""

KNOWN = {*QUANTITIES, "num_tokens", "domain", "words", "texts"}


def _method(section: str, cls: Any) -> Any:
    name = cls.__dataclass_fields__["method"].default
    return cls(**(SETTINGS.get(name, {}) if section != "anneal" else {}))


class StopAt(TrainerCallback):
    """Asks the run to stop after a step, as a signal would."""

    def __init__(self, trainer: gw.Trainer, step: int) -> None:
        self.trainer, self.step = trainer, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.session.stop_requested = state.global_step + 1 == self.step


def _trainer(folder: Path, model: Any, speeches: Any, section: str, method: Any) -> gw.Trainer:
    """Over 24 samples in six steps of four, with one method that decides."""
    schedule = "warmup_stable_decay" if section == "anneal" else "constant"
    trainer = gw.Trainer(
        model,
        short_run(folder, max_steps=6, lr_scheduler_type=schedule),
        train_dataset=speeches.select(range(24)),
        eval_dataset=speeches.select(range(24, 36)),
        target_dataset=speeches.select(range(36, 44)) if getattr(method, "uses_target", False) else None,
        recipe=gw.Recipe.from_dict({section: gw.Recipe(**{section: method}).to_dict()[section]}),
    )
    trainer.session.tell = lambda _: None
    return trainer


@pytest.fixture
def make(story_model: Any, speeches: Any, tmp_path: Path) -> Callable[..., gw.Trainer]:
    """Makes a trainer in a folder of the test, for a section and its method."""
    return lambda name, section, method: _trainer(tmp_path / name, story_model(), speeches, section, method)


class Whole(NamedTuple):
    """A run that was never stopped."""

    trainer: gw.Trainer
    steps: list[int]
    """The steps before which something was decided."""
    events: dict[str, Any]


def _watch(patched: pytest.MonkeyPatch, steps: list[int]) -> None:
    """Note the steps before which something is decided, and check that what was served stays."""
    again = Planner.again

    def watched(self: Planner, context: Any, plan: Any, step: int) -> Any:
        after = again(self, context, plan, step)
        assert np.array_equal(plan.indices[: 4 * step], after.indices[: 4 * step])
        assert len(plan) == len(after)
        steps.append(step)
        return after

    patched.setattr(Planner, "again", watched)


@pytest.fixture(scope="module")
def whole(_story_model: Any, speeches: Any, tmp_path_factory: Any) -> Callable[..., Whole]:
    """The whole run of a method; trained once for all tests."""

    @cache
    def train(section: str, cls: Any) -> Whole:
        folder = tmp_path_factory.mktemp("whole") / "run"
        trainer = _trainer(folder, copy.deepcopy(_story_model), speeches, section, _method(section, cls))
        steps: list[int] = []
        with pytest.MonkeyPatch.context() as patched:
            _watch(patched, steps)
            trainer.train()
        lines = (folder / "events.jsonl").read_text().splitlines()
        return Whole(trainer, steps, {event["event"]: event for event in map(json.loads, lines)})

    return train


def _decider(planner: Planner, section: str) -> Decider:
    (found,) = [decider for decider in planner.deciders if decider.name == section]
    return found


@every_method
def test_needs_are_signals_that_exist(section: str, cls: Any) -> None:
    method = _method(section, cls)
    assert method.needs <= KNOWN
    assert getattr(method, "validation_needs", frozenset()) <= KNOWN


@several_methods
def test_stopped_and_resumed_equals_uninterrupted(
    make: Any, whole: Any, section: str, cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the weights: nothing served is changed, costs are not negative, nothing is due twice."""
    method, (uninterrupted, steps, _) = _method(section, cls), whole(section, cls)
    assert steps == sorted(set(steps))
    planner = uninterrupted.session.planner
    context = uninterrupted.session.context()
    assert all(value >= 0 for decider in planner.deciders for value in decider.forecast(context))
    decider = _decider(planner, section)
    assert decider.recurs == bool([step for step in steps if step > 0]) or section == "order"
    _watch(monkeypatch, [])
    stopped = make("stopped", section, method)
    stopped.add_callback(StopAt(stopped, 4))
    stopped.train()
    assert stopped.session.stopped and stopped.state.global_step == 4
    resumed = make("stopped", section, method)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.session.plan.digest == uninterrupted.session.plan.digest
    assert same_weights(resumed.model, uninterrupted.model)


@pytest.mark.parametrize("importance", ["relevance", pytest.param("alignment", marks=pytest.mark.slow)])
def test_a_refreshed_selection_towards_a_target_resumes(make: Any, importance: Any) -> None:
    method = gw.Grace(
        count=12, candidates="all", refresh_every=2, anchors=0.5, target="target", importance=importance
    )
    whole = make("whole", "select", method)
    whole.train()
    first = make("parts", "select", method)
    first.add_callback(StopAt(first, 3))
    first.train()
    assert first.state.global_step == 3
    resumed = make("parts", "select", method)
    resumed.train(resume_from_checkpoint=True)
    assert same_weights(whole.model, resumed.model)
    events = [json.loads(line) for line in (Path(whole.args.output_dir) / "events.jsonl").open()]
    assert [line["event"] for line in events].count("refresh") == 2
    (words,) = [line for line in events if line["event"] == "ngrams"]
    assert (words["samples"], words["target"]) == (24, 8)


@pytest.mark.slow
def test_a_trial_is_taken_back_and_its_recipe_repeats_the_run(make: Any, monkeypatch: Any) -> None:
    """The recipe with the winner gives the same run without a trial."""
    from gradwise.planning import trials

    method = gw.Trial(contenders=("random", "cosine_top", "direct"), count=8, steps=3)
    inner, seen = trials._losses, []

    def watched(context: Any, *args: Any) -> Any:
        model, optimizer = context.model, context.optimizer
        before = [p.detach().clone() for p in model.parameters()]
        moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
        rates = [g["lr"] for g in optimizer.param_groups]
        chance = torch.get_rng_state()
        found = inner(context, *args)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        after = [s["exp_avg"] for s in optimizer.state.values()]
        assert moments and all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
        assert rates == [g["lr"] for g in optimizer.param_groups]
        assert torch.equal(chance, torch.get_rng_state())
        seen.append(found)
        return found

    took, decide = [], Annealing.decide

    def timed(self: Annealing, *args: Any) -> Any:
        start = time.perf_counter()
        result = decide(self, *args)
        took.append(time.perf_counter() - start)
        return result

    monkeypatch.setattr(trials, "_losses", watched)
    monkeypatch.setattr(Annealing, "decide", timed)
    whole = make("whole", "anneal", method)
    whole.train()
    (losses,) = seen
    assert not np.array_equal(losses["random"], losses["before"])
    events = [json.loads(line) for line in (Path(whole.args.output_dir) / "events.jsonl").open()]
    (trial,) = [line for line in events if line["event"] == "trial"]
    assert trial["winner"] == min(trial["losses"], key=trial["losses"].get)
    assert trial["judges"] == 6 and trial["seconds"] > 0
    (anneal,) = [line for line in events if line["event"] == "anneal"]
    # Charged once: both events together are at most what the decision took.
    assert anneal["seconds"] + trial["seconds"] <= sum(took) + 0.001 and "trial" not in anneal["parts"]
    settled = gw.Recipe.load(Path(whole.args.output_dir) / "recipe.yaml").anneal
    assert isinstance(settled, gw.Trial) and settled.winner == trial["winner"]
    again = make("again", "anneal", settled)
    again.train()
    assert len(seen) == 1
    assert same_weights(again.model, whole.model)
    assert again.session.plan.digest == whole.session.plan.digest


def test_a_trial_without_gradients_measures_none(make: Any, monkeypatch: Any) -> None:
    """Its contenders choose by chance, and only the judges ask the model."""
    monkeypatch.setattr("gradwise.planning.annealing.scoring_speed", _not_called)
    monkeypatch.setattr("gradwise.planning.scoring._collect", _not_called)
    whole = make("whole", "anneal", gw.Trial(contenders=("random", "full"), steps=2))
    whole.train()
    events = [json.loads(line) for line in (Path(whole.args.output_dir) / "events.jsonl").open()]
    (trial,) = [line for line in events if line["event"] == "trial"]
    assert set(trial["losses"]) == {"random", "full"} and trial["winner"] in trial["losses"]
    assert gw.Trial(contenders=("random", "cosine_top")).needs == {"grad"}
    assert gw.Trial(contenders=("random", "full")).needs == set()


def _not_called(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is to be measured")


def test_a_trial_refuses_what_it_cannot_judge(make: Any) -> None:
    with pytest.raises(gw.RecipeError, match="at least two different methods"):
        gw.Trial(contenders=("random",))
    with pytest.raises(gw.RecipeError, match="none of the contenders"):
        gw.Trial(winner="full")
    with pytest.raises(gw.RecipeError, match="only a run can do"):
        gw.Trial(count=2).select(gw.Signals(4))
    trainer = make("few", "anneal", gw.Trial())
    trainer.eval_dataset = trainer.eval_dataset.select(range(7))
    with pytest.raises(gw.RecipeError, match="7 are too few"):
        trainer.train()


def test_a_half_of_the_evaluation_data_chooses(story_model: Any, arguments: Any, speeches: Any) -> None:
    options: dict[str, Any] = {
        "train_dataset": speeches.select(range(24)),
        "recipe": gw.Recipe(select=gw.Grace(count=6, target="validation")),
    }
    trainer = gw.Trainer(
        story_model(), arguments("run"), eval_dataset=speeches.select(range(24, 34)), **options
    )
    rows = [set(map(tuple, part["input_ids"])) for part in (trainer.target_dataset, trainer.eval_dataset)]
    assert [len(part) for part in rows] == [5, 5]
    assert not rows[0] & rows[1]
    options |= {
        "eval_dataset": speeches.select(range(24, 30)),
        "target_dataset": speeches.select(range(28, 34)),
    }
    trainer = gw.Trainer(story_model(), arguments("other"), **options)
    assert len(trainer.eval_dataset) == 4
    several = {"near": speeches.select(range(24, 30)), "far": speeches.select(range(40, 44))}
    changed: dict[str, Any] = {**options, "eval_dataset": several}
    trainer = gw.Trainer(story_model(), arguments("several"), **changed)
    assert {name: len(each) for name, each in trainer.eval_dataset.items()} == {"near": 4, "far": 4}
    (note,) = target_of(options["recipe"], options["target_dataset"], several, planned=False).notes
    assert note.startswith("eval_dataset 'near': 2 of 6 samples that measure are among")
    streamed: dict[str, Any] = {**options, "target_dataset": options["target_dataset"].to_iterable_dataset()}
    with pytest.raises(gw.RecipeError, match=r"by position, .* found IterableDataset"):
        gw.Trainer(story_model(), arguments("streamed"), **streamed)


def test_a_target_without_effect_is_refused(story_model: Any, arguments: Any, speeches: Any) -> None:
    with pytest.raises(gw.RecipeError, match="target_dataset has no effect with select: random"):
        gw.Trainer(
            story_model(),
            arguments("run"),
            train_dataset=speeches.select(range(24)),
            target_dataset=speeches.select(range(24, 30)),
            recipe=gw.Recipe(select=gw.baselines.RandomSubset(count=6)),
        )


@several_methods
def test_what_is_remembered_is_plain_arrays(whole: Any, section: str, cls: Any) -> None:
    """What a decider keeps, another takes, and gives back the same."""
    trainer = whole(section, cls).trainer
    context, planner = trainer.session.context(), trainer.session.planner
    arrays = planner.state_dict()
    assert all(isinstance(values, np.ndarray) and name.split(".")[0] in ("select", "order", "anneal")
               for name, values in arrays.items())  # fmt: skip
    other = Planner(trainer.session.recipe, batch_size=4)
    other.load_state_dict(arrays, context)
    assert set(other.state_dict()) == set(arrays)
    for name, values in other.state_dict().items():
        assert np.array_equal(values, arrays[name], equal_nan=values.dtype.kind == "f")
    schedule = trainer.session.layout.schedule(trainer.session.plan)
    due = [[planner.due(step, schedule) for planner in (planner, other)] for step in range(1, 6)]
    if section != "order":  # which learns of the annealing phase from the plan
        assert all(one == two for one, two in due)


@several_methods
def test_events_say_what_was_decided(whole: Any, section: str, cls: Any) -> None:
    method, (trainer, _, events) = _method(section, cls), whole(section, cls)
    assert events["plan"]["select"] == trainer.session.recipe.select.method
    assert events["plan"]["order"] == trainer.session.recipe.order.method
    if section == "anneal":
        assert events["anneal"]["method"] == method.method
    if needs := method.needs & set(QUANTITIES):
        assert section == "anneal" or needs <= set(events["signals"]["quantities"])


def test_a_checkpoint_of_another_version_is_refused(make: Any) -> None:
    """Whose arrays had no prefix: without them GRACE would silently stop refreshing."""
    trainer = make("run", "select", gw.Grace(**SETTINGS["grace"]))
    with pytest.raises(gw.CheckpointError, match=r"another version of gradwise, whose decisions \(looked\)"):
        trainer.session.planner.load_state_dict({"looked": np.arange(3)}, None)


@pytest.mark.parametrize(
    ("section", "method", "measurable", "words"),
    [
        ("order", gw.D3(), True, "order: d3 makes trial steps, which a sharded model cannot do yet"),
        ("anneal", gw.Trial(), True, "trains on each contender's picks"),
        ("select", gw.baselines.Less(count=4), True, "trains before it selects"),
        ("anneal", gw.Direct(), False, "cannot measure a model sharded by DeepSpeed or FSDP1"),
        (
            "select",
            gw.Grace(count=4),
            False,
            "cannot measure the .* of a model sharded by DeepSpeed or FSDP1",
        ),
    ],
)
def test_what_a_sharded_model_cannot_do_is_refused(
    make: Any, section: str, method: Any, measurable: bool, words: str
) -> None:
    trainer = make(section, section, method)
    trainer.session.open(None)
    context = replace(trainer.session.context(), sharded=True, measurable=measurable)
    with pytest.raises(gw.RecipeError, match=words):
        trainer.session.planner.first_plan(context)
