"""The forecast of what deciding costs, in forward passes: against arithmetic by hand, and against the passes
that a run makes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gradwise as gw
from gradwise.data import Collator
from gradwise.methods.baselines import EasyFirst, LossTop
from gradwise.methods.costs import Size, Speeds
from gradwise.methods.trial import Trial
from gradwise.planning.shares import deciding, shares
from gradwise.recipe import Train

SIZE = Size(pool=80, steps=10, batch=4, choosing=12)
"""Training takes 3 x 10 x 4 = 120 forward passes."""

GRACE = gw.Grace(count=20, candidates=40, refresh_every=4, anchors=0.25)

CASES: dict[str, tuple[dict[str, Any], dict[str, float | None]]] = {
    "nothing": ({}, {}),
    # 40 candidates, and a quarter of them before steps 4 and 8.
    "grace": ({"select": GRACE}, {"select": 60 / 120}),
    "its overhead": ({"select": gw.Grace(count=20, overhead=0.3)}, {"select": 0.3}),
    "the pool once": ({"select": LossTop(count=20)}, {"select": 80 / 120}),
    "one scoring run for both": ({"select": LossTop(count=20), "order": EasyFirst()}, {"select": 80 / 120}),
    "an order": ({"order": EasyFirst()}, {"order": 80 / 120}),
    "d3": ({"order": gw.D3(overhead=0.2)}, {"order": 0.2}),
    # Gradients: 3 forward passes for each of 16 candidates and of 12 validation samples, twice.
    "direct": ({"anneal": gw.Direct(candidates=16, times=2)}, {"anneal": 2 * 3 * 28 / 120}),
    # 6 validation samples choose, 6 judge 3 times; 2 contenders are trained for 5 steps of 4 samples.
    "trial": (
        {"anneal": Trial(contenders=("direct", "random"), candidates=16, steps=5, judges=6)},
        {"anneal": (3 * (16 + 6) + 2 * 5 * 4 * 3 + 3 * 6) / 120},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shares_are_those_worked_out_by_hand(name: str) -> None:
    sections, expected = CASES[name]
    schedule: dict[str, Any] = {"schedule": "wsd"} if "anneal" in sections else {}
    recipe = gw.Recipe(train=Train(batch_size=4, **schedule), **sections)
    found = shares(recipe, 5, SIZE)
    assert {name: part["share"] for name, part in found.items()} == pytest.approx(expected)
    assert all(part["why"] for part in found.values())
    assert shares(recipe, 5, SIZE, dict.fromkeys(expected, 0.07)).keys() == expected.keys()


@pytest.mark.parametrize(("share", "scored"), [(None, 30), (0.5, 110)])
def test_samples_of_the_phase_alone_are_scored_with_those_they_are_mixed_with(
    share: float | None, scored: int
) -> None:
    recipe = gw.Recipe(train=Train(batch_size=4, schedule="wsd"), anneal=gw.Direct(share=share))
    found = shares(recipe, 5, replace(SIZE, added=30))
    assert found["anneal"]["share"] == pytest.approx(3 * (scored + 12) / 120)


def test_without_the_size_of_the_pool_only_what_the_recipe_says_is_known() -> None:
    def share(**sections: Any) -> dict[str, float | None]:
        train = sections.pop("train", Train(batch_size=4, epochs=2))
        found = shares(gw.Recipe(train=train, **sections), 5)
        return {name: part["share"] for name, part in found.items()}

    assert share(select=LossTop(fraction=0.5)) == {"select": pytest.approx(1 / 3)}
    assert share(select=LossTop(count=8)) == {"select": None}
    assert share(select=replace(GRACE, refresh_every=0, anchors=None)) == {"select": pytest.approx(40 / 120)}
    steps = Train(batch_size=4, arguments={"max_steps": 10})
    assert share(select=GRACE, train=steps) == {"select": pytest.approx(60 / 120)}
    assert share(layers=gw.Grass(active=5, probe=2)) == {"layers": None}
    assert share(layers=gw.Grass(active=5, probe=2), train=steps) == {"layers": 0.2}


def test_the_sentence_says_what_is_not_known() -> None:
    def part(share: float | None) -> dict[str, Any]:
        return {"share": share, "why": "so"}

    assert deciding({}) is None
    assert deciding({"select": part(0.2), "order": part(0.1)}) == (
        "Deciding is expected to take 30% of the training time: select 20%, order 10%."
    )
    assert deciding({"select": part(0.2), "anneal": part(None)}) == (
        "Deciding is expected to take at least 20% of the training time: select 20%, anneal ?."
    )


def test_a_run_makes_the_passes_that_it_forecast(
    story_model: Any, arguments: Any, speeches: Any, tmp_path: Path
) -> None:
    """Samples that go through the model: one pass forward, two more where gradients come back to its first
    block. Nothing but deciding and training goes through it."""
    model, passes = story_model(), []

    def count(_: object, __: object, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        passes.append(len(hidden))
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: passes.append(2 * len(gradient)))

    model.model.layers[0].register_forward_hook(count)
    recipe = gw.Recipe(
        # With these speeds nothing is timed: scoring a sample is worth a third of training on it.
        select=gw.Grace(count=40, candidates=48, refresh_every=4, anchors=0.25, speeds=Speeds(0.003, 0.001)),
        anneal=gw.Direct(candidates=16),
    )
    given = {"lr_scheduler_type": "warmup_stable_decay", "max_steps": 12}
    held_out = speeches.select(range(60, 80))
    trainer = gw.Trainer(
        model, arguments(**given), Collator(0), speeches.select(range(60)), held_out, recipe=recipe
    )
    sentences: list[str] = []
    trainer.session.tell = sentences.append
    trainer.train()
    events = map(json.loads, (tmp_path / "out" / "events.jsonl").read_text().splitlines())
    (plan,) = [event for event in events if event["event"] == "plan"]
    training = 3 * 12 * 4
    made = (sum(passes) - training) / training
    assert plan["expected"].keys() == {"select", "anneal"}
    # A scoring run begins with a rehearsal on a few samples, which is not forecast.
    assert sum(plan["expected"].values()) == pytest.approx(made, rel=0.25)
    assert sum("Deciding is expected to take" in sentence for sentence in sentences) == 1
