"""GRACE's dial in a run: measured once, obeyed or refused, the same when the run is started again."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import concatenate_datasets

import gradwise as gw
from gradwise.methods.costs import Speeds
from gradwise.methods.grace import nodes
from gradwise.numerics import knn
from gradwise.planning import scoring, selecting
from tests.conftest import same_weights


@pytest.fixture
def run(
    story_model, arguments, speeches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Trains with a selection on a machine of a given speed; returns the trainer and its events."""

    def run(
        select: gw.Grace, *, name: str = "run", order: Any = None, data: Any = speeches, **speed: float
    ) -> Any:
        found = {"train": 0.1, "score": 0.02, **speed}
        monkeypatch.setattr(selecting, "measured_speeds", lambda *_, **__: Speeds(**found))
        recipe = gw.Recipe(select=select, order=order or gw.baselines.Shuffle())
        trainer = gw.Trainer(
            story_model(), arguments(name, num_train_epochs=5), train_dataset=data, recipe=recipe
        )
        trainer.train()
        lines = (tmp_path / name / "events.jsonl").read_text().splitlines()
        return trainer, [json.loads(line) for line in lines]

    return run


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


def test_everything_follows_from_the_share_that_is_allowed(run: Any, monkeypatch: Any) -> None:
    """25 steps of 4 samples take 10 s; half of that pays for scoring all 80 once, and for anchors.

    What was measured decides already in the run that measures, or the recipe that is written would decide
    otherwise than the run that wrote it.
    """
    seen, begin = [], gw.Grace.begin

    def watched(self: gw.Grace, *args: Any, **options: Any) -> Any:
        seen.append(self.speeds)
        return begin(self, *args, **options)

    monkeypatch.setattr(gw.Grace, "begin", watched)
    trainer, events = run(gw.Grace(fraction=0.25, overhead=0.5))
    assert seen == [trainer.session.recipe.select.speeds] and seen[0] is not None
    (forecast,) = of_kind(events, "forecast")
    assert (forecast["candidates"], forecast["training"]) == (80, 10.0)
    assert forecast["share"] <= 0.5
    refreshed = of_kind(events, "refresh")
    assert of_kind(events, "plan")[0]["parts"].keys() == {"graph", "selection"}
    for event in refreshed:
        assert event["parts"].keys() == {"signals", "graph", "propagation", "selection"}
    assert [event["step"] for event in refreshed] == list(range(forecast["every"], 25, forecast["every"]))
    assert sum(event["anchors"] for event in refreshed) <= forecast["allowance"]


def test_a_refresh_without_anchors_is_said_once(run: Any, monkeypatch: Any) -> None:
    """As in a run that takes more steps than were forecast."""
    begin, said = gw.Grace.begin, []
    monkeypatch.setattr(gw.Grace, "begin", lambda *args, **more: begin(*args, **more).changed(allowance=0))
    monkeypatch.setattr("gradwise.session.Session.say", lambda _, sentence: said.append(sentence))
    _, events = run(gw.Grace(fraction=0.25, candidates="all", refresh_every=8))
    assert [event["anchors"] for event in of_kind(events, "refresh")] == [0, 0, 0]
    assert len([line for line in said if "from step 8 on selects no others" in line]) == 1


def test_refreshes_measure_what_was_forecast_where_samples_are_copies(run: Any, speeches: Any) -> None:
    """The forecast counts samples; of 80 samples that are each there twice only 40 can be measured."""
    twice = concatenate_datasets([speeches.select(range(40))] * 2)
    _, events = run(gw.Grace(fraction=0.25, overhead=0.3), data=twice)
    (forecast,), refreshed = of_kind(events, "forecast"), of_kind(events, "refresh")
    assert of_kind(events, "plan")[0]["distinct"] == 40
    assert refreshed[0]["anchors"] == pytest.approx(forecast["anchors"] * forecast["candidates"], abs=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"fraction": 0.2},
        {"count": 900, "importance": "alignment", "weighted": True},
        {"tokens": 40, "importance": "loss", "propagate": "value"},
        {"count": 5, "importance": "norm", "domain_minimum": 0.5, "search": "approximate", "neighbours": 200},
    ],
)
def test_every_grace_can_be_rehearsed(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    refreshed = []
    monkeypatch.setattr(knn, "_merge", _counting(knn._merge, refreshed))
    gw.Grace(**settings).compile_kernels()
    assert refreshed, "a repair was compiled, too"


def _counting(function: Any, calls: list[int]) -> Any:
    def counted(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    return counted


def test_a_narrow_dial_scores_few_and_fills_at_random(run: Any) -> None:
    trainer, events = run(gw.Grace(fraction=0.25, overhead=0.05))
    (forecast,), (plan,) = of_kind(events, "forecast"), of_kind(events, "plan")
    assert forecast["candidates"] == 16
    assert plan["looked_at"] == 16
    assert plan["at_random"] == 20 - int(16 / 1.5)
    assert len(set(trainer.session.plan.indices[:20].tolist())) == 20


def test_an_overhead_that_cannot_be_kept_is_refused(run: Any) -> None:
    with pytest.raises(gw.RecipeError, match=r"select.overhead is 0.05, but scoring 80 samples .* take 0.16"):
        run(gw.Grace(fraction=0.25, overhead=0.05, candidates="all", refresh_every=0))


def test_no_speed_is_measured_where_none_would_change_anything(
    story_model, arguments, speeches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selecting, "measured_speeds", lambda *_, **__: pytest.fail("speeds were measured"))
    asked: list[tuple[Any, int]] = [("all", 80), (1000, 80), (30, 30)]
    for candidates, scored in asked:
        recipe = gw.Recipe(select=gw.Grace(fraction=0.25, candidates=candidates, refresh_every=0))
        name = f"of-{candidates}"
        gw.Trainer(story_model(), arguments(name), train_dataset=speeches, recipe=recipe).train()
        lines = (tmp_path / name / "events.jsonl").read_text().splitlines()
        (forecast,) = of_kind([json.loads(line) for line in lines], "forecast")
        assert (forecast["candidates"], forecast["every"], forecast["share"]) == (scored, 0, None)


def test_without_a_word_on_overhead_what_is_settled_is_done(run: Any) -> None:
    _, events = run(gw.Grace(fraction=0.25, candidates="all", refresh_every=8, anchors=1.0))
    assert [event["step"] for event in of_kind(events, "refresh")] == [8, 16, 24]
    assert {event["anchors"] for event in of_kind(events, "refresh")} == {80}


@pytest.mark.slow
def test_what_was_measured_is_written_down_and_used_again(run: Any, tmp_path: Path) -> None:
    """The recipe in the run directory makes the same run on a machine of another speed; so does the user's
    own recipe in the same folder, where nothing was saved yet."""
    grace = gw.Grace(fraction=0.25, overhead=0.3)
    first, _ = run(grace)
    recipe = gw.Recipe.load(tmp_path / "run" / "recipe.yaml")
    assert recipe == first.session.recipe
    assert recipe.select == replace(grace, speeds=Speeds(train=0.1, score=0.02))
    copied, _ = run(recipe.select, name="copy", score=0.2)
    again, _ = run(grace, score=0.2)
    for trainer in (copied, again):
        assert trainer.session.plan.digest == first.session.plan.digest
        assert same_weights(trainer.model, first.model)
    other, _ = run(grace, name="other", score=0.2)
    assert other.session.plan.digest != first.session.plan.digest
    changed, _ = run(replace(grace, trade_off=0.5), score=0.2)
    assert changed.session.recipe.select.speeds.score == 0.2, "another recipe is measured again"


def test_the_search_that_auto_came_to_is_written_down(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "EXACT_UP_TO", 50)
    for installed, search in ((True, "approximate"), (False, "exact")):
        monkeypatch.setattr(nodes, "find_spec", lambda _, found=installed: found or None)
        grace = gw.Grace(fraction=0.25, candidates="all", refresh_every=0)
        with warnings.catch_warnings(record=True):
            trainer, _ = run(grace, name=search)
        chosen: Any = gw.Recipe.load(tmp_path / search / "recipe.yaml").select
        assert chosen.search == search
    filled: Any = trainer.session.recipe.filled_from(gw.Recipe(select=grace)).select
    assert filled.search == search


def test_an_order_that_needs_all_scores_has_all_scored(run: Any) -> None:
    easy = gw.baselines.EasyFirst()
    _, events = run(gw.Grace(fraction=0.25, refresh_every=0), order=easy)
    assert of_kind(events, "forecast")[0]["candidates"] == 80
    assert not of_kind(run(gw.Grace(fraction=0.25), name="free", order=easy)[1], "refresh")
    with pytest.raises(gw.RecipeError, match="uses what was measured before the run"):
        run(gw.Grace(fraction=0.25, refresh_every=2), name="both", order=easy)
    with pytest.raises(gw.RecipeError, match="easy_first needs signals of all samples"):
        run(gw.Grace(fraction=0.25, candidates=30, refresh_every=0), name="few", order=easy)


def test_measuring_speeds_leaves_the_model_as_it_was(story_model, arguments, speeches) -> None:
    model = story_model()
    recipe = gw.Recipe(select=gw.Grace(fraction=0.25))
    trainer = gw.Trainer(model, arguments(), train_dataset=speeches, recipe=recipe)
    model.eval()
    state, weights = torch.get_rng_state(), {name: p.clone() for name, p in model.named_parameters()}
    assert isinstance(recipe.select, gw.Grace)
    found = scoring.measured_speeds(trainer.session.context(), recipe.select)
    assert min(found.train, found.score, found.compare) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(p.grad is None and torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_packing_and_proxies_are_refused_with_refreshes(story_model, arguments, speeches) -> None:
    recipe = gw.Recipe(select=gw.Grace(fraction=0.25, candidates="all", refresh_every=2))
    packed = gw.Trainer(story_model(), arguments(), train_dataset=speeches, recipe=recipe, packed_length=64)
    with pytest.raises(gw.RecipeError, match="refresh_every is about selecting again, and packing"):
        packed.train()
    proxy = (story_model(), speeches, packed.data_collator)
    proxied = gw.Trainer(story_model(), arguments("p"), train_dataset=speeches, recipe=recipe, proxy=proxy)
    with pytest.raises(gw.RecipeError, match="scores with a model that does not learn"):
        proxied.train()
