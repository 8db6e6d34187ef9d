"""A trial of selections: what it decides, that it leaves nothing behind, and what it refuses."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

import gradwise as gw
from gradwise.data import Collator
from gradwise.planning import race
from gradwise.planning.race import halves
from tests.conftest import same_weights

Make = Callable[..., gw.Trainer]


@pytest.fixture
def make(story_model: Any, arguments: Any, speeches: Any) -> Make:
    """A trainer over 32 samples in four steps of four, with 12 target samples."""

    def make(name: str, select: Any, targets: int = 12, **settings: Any) -> gw.Trainer:
        trainer = gw.Trainer(
            story_model(),
            arguments(name, **{"max_steps": 4, "lr_scheduler_type": "constant", **settings}),
            train_dataset=speeches.select(range(32)),
            eval_dataset=speeches.select(range(32, 36)),
            target_dataset=speeches.select(range(36, 36 + targets)),
            recipe=gw.Recipe(select=select),
        )
        trainer.session.tell = lambda _: None
        return trainer

    return make


def events(trainer: gw.Trainer, kind: str) -> list[dict[str, Any]]:
    path = trainer.session.folder / "events.jsonl"
    return [event for event in map(json.loads, path.read_text().splitlines()) if event["event"] == kind]


@pytest.mark.parametrize("contenders", [("grace", "random"), ("dsir", "full")])
def test_a_run_after_a_trial_is_the_winners_run(make: Make, contenders: Any) -> None:
    raced = make("raced", gw.SelectTrial(contenders=contenders, count=8, steps=3))
    raced.train()
    (trial,) = events(raced, "select_trial")
    assert trial["winner"] == min(trial["losses"], key=trial["losses"].get)
    assert set(trial["losses"]) == set(contenders) and trial["seconds"] > 0
    stated = make("stated", gw.SelectTrial(contenders=contenders, count=8, winner=trial["winner"]))
    stated.train()
    assert not events(stated, "select_trial"), "the winner is known"
    assert same_weights(raced.model, stated.model)
    alone = {
        "grace": gw.Grace(count=8, refresh_every=0),
        "dsir": gw.baselines.Dsir(count=8),
        "random": gw.baselines.RandomSubset(count=8),
    }
    if winner := alone.get(trial["winner"]):
        plain = make("plain", winner) if trial["winner"] != "random" else None
        if plain is not None:
            plain.train()
            assert same_weights(raced.model, plain.model)


def test_losses_are_those_of_training_on_each_contenders_picks(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a plain loop over copies of the model."""
    kept: dict[str, Any] = {}
    batches = race._batches

    def watched(context: Any, picked: Any, parts: Any, steps: int) -> Any:
        found = batches(context, picked, parts, steps)
        kept.setdefault("batches", []).append([list(map(int, each)) for each in found])
        kept["picked"] = [*kept.get("picked", []), picked[0].indices]
        return found

    monkeypatch.setattr(race, "_batches", watched)
    trainer = make(
        "raced", gw.SelectTrial(contenders=("dsir", "random"), count=8, steps=3), max_grad_norm=0.5
    )
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


def test_what_chooses_does_not_judge(make: Make) -> None:
    trainer = make("any", gw.SelectTrial(count=8))
    samples = trainer.session.context().target
    assert samples is not None
    half = halves(samples, "select")
    texts = [[row["input_ids"] for row in part.inputs] for part in (half.choosing, half.judging)]
    assert len(texts[0]) == len(texts[1]) == 6
    assert not [row for row in texts[0] if row in texts[1]]
    assert texts[0] == [samples.inputs[int(row)]["input_ids"] for row in half.rows]


@pytest.mark.parametrize(
    ("select", "more", "said"),
    [
        ({"count": 8}, {"max_steps": -1}, "give train.max_steps, or leave full out"),
        ({"count": 8}, {"targets": 7}, "7 are too few, give at least 8"),
    ],
)
def test_what_cannot_be_tried_is_refused(make: Make, select: Any, more: Any, said: str) -> None:
    with pytest.raises(gw.RecipeError, match=said):
        make("refused", gw.SelectTrial(**select), **more).train()


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
    with pytest.raises(gw.RecipeError, match=r"only a run can do; give select\.winner"):
        method.standalone_advice()
    picked = gw.SelectTrial(count=2, contenders=("nearest", "random"), winner="nearest").select(
        signals, target=signals.take(np.array([1]))
    )
    assert 1 in picked.indices
