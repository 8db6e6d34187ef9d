"""A trial of selections: what it decides, that it leaves nothing behind, and what it refuses."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradwise as gw
from gradwise.data import Collator
from gradwise.planning import first_selection, planner, selecting, trials
from gradwise.planning.trials import halves
from gradwise.run.select import select_samples
from tests.conftest import numbered_stories, same_weights

Make = Callable[..., gw.Trainer]


@pytest.fixture
def make(story_model: Any, arguments: Any, speeches: Any) -> Make:
    """A trainer over 32 samples in four steps of four, with 12 target samples."""

    def make(
        name: str, select: Any, targets: int = 12, order: Any = "shuffle", **settings: Any
    ) -> gw.Trainer:
        trainer = gw.Trainer(
            story_model(),
            arguments(name, **{"max_steps": 4, "lr_scheduler_type": "constant", **settings}),
            train_dataset=speeches.select(range(32)),
            eval_dataset=speeches.select(range(32, 36)),
            target_dataset=speeches.select(range(36, 36 + targets)),
            recipe=gw.Recipe(select=select, order=order),
        )
        trainer.session.tell = lambda _: None
        return trainer

    return make


def always(**settings: Any) -> gw.SelectTrial:
    """A trial that is held however close the pool is to the target."""
    return gw.SelectTrial(max_closeness=None, **settings)


def events(trainer: gw.Trainer, kind: str) -> list[dict[str, Any]]:
    path = trainer.session.folder / "events.jsonl"
    return [event for event in map(json.loads, path.read_text().splitlines()) if event["event"] == kind]


@pytest.mark.parametrize("contenders", [("grace", "random"), ("dsir", "full")])
def test_a_run_after_a_trial_is_the_winners_run(make: Make, contenders: Any) -> None:
    tried = make("tried", always(contenders=contenders, count=8, steps=3))
    tried.train()
    (trial,) = events(tried, "select_trial")
    first, second = (trial["losses"][name] for name in contenders)
    assert trial["winner"] == contenders[first - second > trial["noise"]]
    assert set(trial["losses"]) == set(contenders) and trial["seconds"] > 0
    stated = make("stated", gw.SelectTrial(contenders=contenders, count=8, winner=trial["winner"]))
    stated.train()
    assert not events(stated, "select_trial"), "the winner is known"
    assert same_weights(tried.model, stated.model)


@pytest.mark.parametrize("winner", ["grace", "dsir", "random", "nearest"])
@pytest.mark.parametrize("order", ["shuffle", "herding"])
def test_whoever_wins_selects_as_a_recipe_that_names_it(
    make: Make, monkeypatch: pytest.MonkeyPatch, winner: Any, order: str
) -> None:
    """GRACE scores some samples of the pool where it is alone, and others have more of them scored."""
    contenders: Any = ("grace", "dsir", "random") if winner != "nearest" else ("grace", "nearest")
    decided = trials.decided
    monkeypatch.setattr(trials, "decided", lambda *given: (winner, *decided(*given)[1:]))
    tried = make("tried", always(contenders=contenders, count=4, steps=1), order=order)
    tried.train()
    (trial,) = events(tried, "select_trial")
    assert trial["winner"] == winner
    stated = make("stated", gw.SelectTrial(contenders=contenders, count=4, winner=winner), order=order)
    stated.train()
    assert same_weights(tried.model, stated.model)
    plans = [trainer.session.plan for trainer in (tried, stated)]
    assert plans[0] is not None and plans[1] is not None and plans[0].digest == plans[1].digest


def test_losses_are_those_of_training_on_each_contenders_picks(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a plain loop over copies of the model."""
    kept: dict[str, Any] = {}
    batches = trials._batches

    def watched(context: Any, picked: Any, parts: Any, steps: int) -> Any:
        found = batches(context, picked, parts, steps)
        kept.setdefault("batches", []).append([list(map(int, each)) for each in found])
        kept["picked"] = [*kept.get("picked", []), picked[0].indices]
        return found

    monkeypatch.setattr(trials, "_batches", watched)
    trainer = make("tried", always(contenders=("dsir", "random"), count=8, steps=3), max_grad_norm=0.5)
    start = deepcopy(trainer.model)
    trainer.train()
    (trial,) = events(trainer, "select_trial")
    context = trainer.session.context()
    samples, target = context.train, context.target
    assert target is not None
    judges = [target.inputs[int(row)] for row in set(range(12)) - set(halves(target, "select").rows.tolist())]
    assert trial["judges"] == len(judges) == 6
    for number, name in enumerate(("dsir", "random")):
        assert set(np.concatenate(kept["batches"][number])) <= set(kept["picked"][number].tolist())
        model = deepcopy(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=trainer.args.learning_rate, weight_decay=0.0)
        for done, rows in enumerate(kept["batches"][number]):
            optimizer.param_groups[0]["lr"] = trainer.args.learning_rate * (1 - done / 3)
            batch = Collator(0)([samples.inputs[row] for row in rows])
            optimizer.zero_grad()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        with torch.no_grad():
            losses = [model(**Collator(0)([each])).loss.item() for each in judges]
        assert trial["losses"][name] == pytest.approx(np.mean(losses), rel=1e-4)


def test_contenders_select_by_one_half_and_the_winner_by_all(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[Any] = []
    inner = selecting.first_selection

    def watched(method: Any, context: Any, scored: Any, **more: Any) -> Any:
        embedding = np.array(scored.target.middle_embedding)
        targets.append((method.method, context.target.inputs["input_ids"], embedding))
        return inner(method, context, scored, **more)

    monkeypatch.setattr(selecting, "first_selection", watched)
    trainer = make("tried", always(contenders=("grace", "nearest"), count=4, steps=1))
    trainer.train()
    whole = trainer.session.context().target
    assert whole is not None
    half = halves(whole, "select")
    (_, _, every), names = targets[-1], [name for name, _, _ in targets]
    assert names[:2] == ["grace", "nearest"] and len(names) == 3
    for _, ids, embedding in targets[:2]:
        assert list(ids) == list(half.choosing.inputs["input_ids"])
        assert np.array_equal(embedding, every[half.rows])
    assert list(targets[-1][1]) == list(whole.inputs["input_ids"])


@pytest.mark.parametrize("contenders", [("grace", "full"), ("dsir", "grace"), ("random", "grace", "dsir")])
def test_a_pool_that_is_close_to_the_target_needs_no_trial(
    make: Make, monkeypatch: pytest.MonkeyPatch, contenders: Any
) -> None:
    """The first contender selects, as in a run whose recipe names it."""
    scored: list[int] = []
    selection_signals = planner.selection_signals

    def watched(*given: Any, **more: Any) -> Any:
        found = selection_signals(*given, **more)
        scored.append(found.signals.middle_embedding is not None and len(found.signals))
        return found

    monkeypatch.setattr(planner, "selection_signals", watched)
    plain = make("plain", gw.SelectTrial(contenders=contenders, count=4))
    said: list[str] = []
    monkeypatch.setattr(plain.session, "tell", said.append)
    plain.train()
    (trial,), (words,) = events(plain, "select_trial"), events(plain, "ngrams")
    assert words["closeness"] == trial["closeness"] > 0.25
    assert trial["winner"] == contenders[0] and trial["steps"] == 0 and "losses" not in trial
    (sentence,) = [each for each in said if "without a trial" in each]
    assert sentence.startswith(f"select: {contenders[0]} selects") and "max_closeness is 0.25" in sentence
    assert not [each for each in said if "wins the trial" in each or "would judge" in each]
    stated = make("stated", gw.SelectTrial(contenders=contenders, count=4, winner=contenders[0]))
    stated.train()
    assert same_weights(plain.model, stated.model) and scored[0] == scored[1]
    recipe = gw.Recipe.load(plain.session.folder / "recipe.yaml")
    assert isinstance(recipe.select, gw.SelectTrial) and recipe.select.winner == contenders[0]


@pytest.mark.parametrize("above", [0.0, 0.05, 1.0])
def test_a_trial_is_held_up_to_a_closeness(make: Make, above: float) -> None:
    """The pool's closeness is between 0.05 and 1."""
    trainer = make(
        "tried", gw.SelectTrial(contenders=("grace", "dsir"), count=4, steps=1, max_closeness=above)
    )
    trainer.train()
    (trial,), (closeness,) = (
        events(trainer, "select_trial"),
        {event["closeness"] for event in events(trainer, "ngrams")[:1]},
    )
    assert 0.05 < closeness < 1
    assert ("losses" in trial) == (above == 1.0)


@pytest.mark.parametrize("contenders", [("dsir", "random"), ("nearest", "dsir"), ("random", "full")])
def test_the_closeness_is_known_where_no_contender_compares_words(make: Make, contenders: Any) -> None:
    trainer = make("tried", gw.SelectTrial(contenders=contenders, count=4, steps=1))
    by_grace = make("grace", gw.SelectTrial(contenders=("grace", "random"), count=4, steps=1))
    trainer.train()
    by_grace.train()
    (trial,), (known,) = events(trainer, "select_trial"), events(by_grace, "select_trial")
    assert trial["winner"] == contenders[0] and trial["closeness"] == known["closeness"]


def test_a_pool_whose_closeness_is_not_known_is_tried(make: Make) -> None:
    """A target of one sample says nothing."""
    assert gw.SelectTrial(count=4).without_trial(None) is None
    trainer = make("tried", gw.SelectTrial(contenders=("dsir", "random"), count=4, steps=1))
    context = trainer.session.context()
    trial: Any = trainer.session.recipe.select
    assert first_selection.pool_closeness(trial, context, None) is not None
    assert context.target is not None
    few = replace(context, target=trials._some(context.target, np.arange(1)))
    assert first_selection.pool_closeness(trial, few, None) is None


@pytest.mark.parametrize("inside", [True, False])
def test_what_stands_in_the_way_of_a_trial_matters_only_where_one_is_held(
    make: Make, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six target samples are too few for halves, and epochs of all of the data are longer."""
    monkeypatch.setattr(first_selection, "pool_closeness", lambda *_: 0.9 if inside else 0.1)
    few = make("few", gw.SelectTrial(contenders=("grace", "random"), count=4), targets=6)
    epochs = make("epochs", gw.SelectTrial(contenders=("grace", "full"), count=4), max_steps=-1)
    for trainer, said in ((few, "6 are too few, give at least 8"), (epochs, "give train.max_steps")):
        if inside:
            trainer.train()
            (trial,) = events(trainer, "select_trial")
            assert trial["winner"] == "grace" and trial["closeness"] == 0.9
        else:
            with pytest.raises(gw.RecipeError, match=said):
                trainer.train()


@pytest.mark.parametrize("closeness", [None, 0.25])
def test_a_sharded_model_is_refused_only_where_a_trial_is_held(make: Make, closeness: float | None) -> None:
    trial = gw.SelectTrial(contenders=("dsir", "random"), count=8, max_closeness=closeness)
    session = make("sharded", trial).session
    session.open(None)
    context = replace(session.context(), sharded=True)
    if closeness is None:
        with pytest.raises(gw.RecipeError, match=r"this one is sharded; give select\.winner"):
            session.planner.first_plan(context)
        return
    assert len(np.unique(session.planner.first_plan(context).indices)) == 8


@pytest.mark.parametrize("lower", [0.0, 0.05, 0.5])
def test_a_winner_within_noise_is_said_to_be_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, lower: float
) -> None:
    spread = np.tile([-0.3, 0.0, 0.3], 2)
    losses = {"before": np.ones(6), "dsir": np.ones(6), "random": 1.0 - lower + spread}
    monkeypatch.setattr(trials, "_losses", lambda *_: losses)
    trainer = make("tried", always(contenders=("dsir", "random"), count=4, steps=1))
    said: list[str] = []
    monkeypatch.setattr(trainer.session, "tell", said.append)
    trainer.train()
    (sentence,) = [each for each in said if "wins the trial" in each]
    assert sentence.startswith(f"select: {'random' if lower == 0.5 else 'dsir'} wins")
    assert ("by less than a standard error" in sentence) == (lower == 0.05)


@pytest.mark.parametrize(
    ("select", "steps", "times"),
    [
        (gw.baselines.Dsir(count=4, target="target"), 5, 5),
        (gw.baselines.Dsir(count=4, target="target"), 3, None),
        (gw.Grace(count=4, target="target", candidates="all", refresh_every=1), 5, None),
        (gw.SelectTrial(count=4, contenders=("dsir", "full"), winner="full"), 45, None),
    ],
)
def test_picks_that_a_run_repeats_often_are_said(make: Make, select: Any, steps: int, times: Any) -> None:
    trainer = make("often", select, max_steps=steps)
    said: list[str] = []
    trainer.session.tell = said.append
    trainer.train()
    sentences = [each for each in said if "in our measurements" in each.lower()]
    assert len(sentences) == (times is not None)
    assert not sentences or f"sees each of its 4 picks {times} times" in sentences[0]


def test_a_new_run_in_the_same_folder_holds_its_own_trial(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data may be others; a winner that the recipe names stays."""
    decided = trials.decided
    for winner in ("random", "dsir"):
        monkeypatch.setattr(trials, "decided", lambda *given, wins=winner: (wins, *decided(*given)[1:]))
        trainer = make("same", always(contenders=("dsir", "random"), count=4, steps=1))
        trainer.train()
        recipe = gw.Recipe.load(trainer.session.folder / "recipe.yaml")
        assert isinstance(recipe.select, gw.SelectTrial) and recipe.select.winner == winner
    named = make("same", always(contenders=("dsir", "random"), count=4, steps=1, winner="random"))
    named.train()
    recipe = gw.Recipe.load(named.session.folder / "recipe.yaml")
    assert isinstance(recipe.select, gw.SelectTrial) and recipe.select.winner == "random"


def test_what_chooses_does_not_judge(make: Make) -> None:
    trainer = make("any", gw.SelectTrial(count=8))
    samples = trainer.session.context().target
    assert samples is not None
    half = halves(samples, "select")
    texts = [[row["input_ids"] for row in part.inputs] for part in (half.choosing, half.judging)]
    assert len(texts[0]) == len(texts[1]) == 6
    assert not [row for row in texts[0] if row in texts[1]]
    assert texts[0] == [samples.inputs[int(row)]["input_ids"] for row in half.rows]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_targets_that_stand_in_the_pool_do_not_judge(
    make: Make, speeches: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Six of 26 target samples are in the pool, four occur twice."""
    rows = np.random.default_rng(seed).permutation(
        [*range(6), *range(36, 52), *np.random.default_rng(seed).integers(36, 52, 4)]
    )
    trainer = make("any", always(count=8, contenders=("nearest", "random"), steps=2))
    context = trainer.session.context()
    dataset = speeches.select(rows.tolist())
    target = replace(context.target, dataset=dataset, inputs=dataset.remove_columns("domain"))  # type: ignore[type-var]
    judges: list[Any] = []
    losses = trials._losses

    def watched(context: Any, selections: Any, parts: Any, judging: Any, *more: Any) -> Any:
        judges.extend(judging.inputs["input_ids"])
        return losses(context, selections, parts, judging, *more)

    monkeypatch.setattr(trials, "_losses", watched)
    said: list[str] = []
    monkeypatch.setattr(trainer.session, "tell", said.append)
    planner.Planner(trainer.session.recipe, 4).first_plan(replace(context, target=target))
    pool = list(context.train.inputs["input_ids"])
    choosing = list(halves(target, "select").choosing.inputs["input_ids"])
    assert len(judges) >= 4 and not [ids for ids in judges if ids in pool or ids in choosing]
    (sentence,) = [each for each in said if "would judge" in each]
    assert f"{13 - len(judges)} of the samples" in sentence and f"{len(judges)} judge." in sentence


@pytest.mark.parametrize(
    ("select", "more", "said"),
    [
        ({"count": 8}, {"max_steps": -1}, "give train.max_steps, or leave full out"),
        ({"count": 8}, {"targets": 7}, "7 are too few, give at least 8"),
    ],
)
def test_what_cannot_be_tried_is_refused(make: Make, select: Any, more: Any, said: str) -> None:
    with pytest.raises(gw.RecipeError, match=said):
        make("refused", always(**select), **more).train()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"contenders": ("grace",)}, "at least two different methods"),
        ({"contenders": ("grace", "grace")}, "at least two different methods"),
        ({"winner": "tsds"}, "none of the contenders"),
    ],
)
def test_settings_that_contradict_each_other(settings: Any, said: str) -> None:
    with pytest.raises(gw.RecipeError, match=said):
        gw.SelectTrial(count=8, **settings)


def test_without_a_run_there_must_be_a_winner() -> None:
    method = gw.SelectTrial(count=2, contenders=("nearest", "random"))
    signals = gw.Signals(6, embedding=np.random.default_rng(0).standard_normal((6, 3), dtype="f4"))
    with pytest.raises(gw.RecipeError, match=r"only a run can do; give select\.winner"):
        method.select(signals, target=signals)
    picked = gw.SelectTrial(count=2, contenders=("nearest", "random"), winner="nearest").select(
        signals, target=signals.take(np.array([1]))
    )
    assert 1 in picked.indices


@pytest.mark.parametrize("winner", ["grace", "dsir", "random"])
def test_the_command_selects_by_the_winner_alone(stories: Path, tmp_path: Path, winner: Any) -> None:
    recipe = gw.Recipe(
        model=gw.Model(name=str(stories)),
        data=numbered_stories(tmp_path),
        select=gw.SelectTrial(count=4, contenders=("grace", "dsir", "random"), winner=winner),
    )
    plainly = {"tell": lambda _: None, "progress": False}
    alone = {
        "grace": gw.Grace(count=4, refresh_every=0),
        "dsir": gw.baselines.Dsir(count=4),
        "random": gw.baselines.RandomSubset(count=4),
    }[winner]
    by_trial = select_samples(recipe, tmp_path / "trial", **plainly)
    by_winner = select_samples(replace(recipe, select=alone), tmp_path / "alone", **plainly)
    assert by_trial.indices.tolist() == by_winner.indices.tolist()
    undecided = replace(recipe.select, winner=None, contenders=(winner, "tsds"))
    near = select_samples(
        replace(recipe, select=replace(undecided, max_closeness=0)), tmp_path / "near", **plainly
    )
    assert near.indices.tolist() == by_winner.indices.tolist(), "the first contender, without a trial"
    summary = json.loads((tmp_path / "near" / "selection.json").read_text())
    assert summary["select"]["winner"] == winner
    for most, said in (
        (None, r"select: a trial"),
        (1.0, "the pool is not known to be close to the target, and a trial"),
    ):
        held = replace(recipe, select=replace(undecided, max_closeness=most))
        with pytest.raises(gw.RecipeError, match=rf"{said} .* only a run can do; give select\.winner"):
            select_samples(held, tmp_path / "held", **plainly)
