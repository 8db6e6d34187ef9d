"""The forecast of what deciding costs, in forward passes: against arithmetic by hand, and against the passes
that a run makes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gradwise as gw
from gradwise.data import Collator
from gradwise.methods.baselines import EasyFirst, HerdedOrder, Less, LossTop, UniformLayers
from gradwise.methods.cost_counts import Shape, engine_check, per_sample, scoring
from gradwise.methods.costs import RunSize, Speeds
from gradwise.methods.trial import SelectTrial, Trial
from gradwise.planning.shape import model_shape
from gradwise.planning.shares import cost_per_sample, deciding, shares
from gradwise.recipe import Adapter, Train

SIZE = RunSize(pool=80, steps=10, batch=4, choosing=12, aside=7)
"""Training takes 3 x 10 x 4 = 120 forward passes."""

GRACE = gw.Grace(count=20, candidates=40, refresh_every=4, anchors=0.25)

SHAPE = Shape(head=0.2, width=400, padding=1.5, labelled=0.5, shortest=0.5, longest=1.5)
"""Training takes 1.5 times as many tokens as a mean sample of the pool has: 180 forward passes."""

LOSS, HEAD_NORM, GRAD = 0.9, 0.9 + 0.4 * 0.1, 2 * 0.9 + 0.8 * (0.15 + 80 / 400)
"""Forward passes of scoring a sample: blocks 0.8, head 0.2 at half of the tokens."""

MIDDLE = 0.8 / 2
"""Half of the blocks."""

TRY_LOSS, TRY_HEAD_NORM, TRY_MIDDLE = 3 * 2 * LOSS, 3 * 2 * HEAD_NORM, 3 * 2 * MIDDLE
"""Forward passes before a scoring run: three of the shortest samples, and three of the longest."""

NORM = 2 * 0.9 + 0.8 * 0.65
TRY_GRAD = 2.4 * (3 * 2 * GRAD + (NORM + 2) * (2 * 0.5 + 1.5))

TRIAL = per_sample(Trial().needs, SHAPE)
TRY_TRIAL = engine_check(Trial().needs, SHAPE)

CASES: dict[str, tuple[dict[str, Any], dict[str, float | None]]] = {
    "nothing": ({}, {}),
    # 40 candidates, and a quarter of them before steps 4 and 8, when the model was tried before.
    "grace": ({"select": GRACE}, {"select": (TRY_HEAD_NORM + 60 * HEAD_NORM) / 180}),
    "its overhead": ({"select": gw.Grace(count=20, overhead=0.3)}, {"select": 0.3}),
    "towards a target": (
        {"select": replace(GRACE, target="target")},
        {"select": (TRY_MIDDLE + (60 + 3 * 7) * MIDDLE) / 180},
    ),
    "the pool once": ({"select": LossTop(count=20)}, {"select": (TRY_LOSS + 80 * LOSS) / 180}),
    "one scoring run for both": (
        {"select": LossTop(count=20), "order": EasyFirst()},
        {"select": (TRY_LOSS + 80 * LOSS) / 180},
    ),
    # What the selection scores is paid for; the clusters' gradients come on top.
    "more for the order": (
        {"select": LossTop(count=20), "order": HerdedOrder()},
        {
            "select": (TRY_LOSS + 80 * LOSS) / 180,
            "order": (TRY_GRAD - TRY_LOSS + 80 * (GRAD - LOSS)) / 180,
        },
    ),
    # Two epochs over 8 samples, and scoring all samples and 7 of a target after each; the order's own
    # scoring run is at the weights that train.
    "a warm-up": (
        {"select": Less(count=20, checkpoints=2, warm_up_fraction=0.1), "order": HerdedOrder()},
        {
            "select": (TRY_GRAD + 2 * ((80 + 7) * GRAD + 8 * 3 * 1.5)) / 180,
            "order": (TRY_GRAD + 80 * GRAD) / 180,
        },
    ),
    # All samples and 7 of the target, 2 contenders for 5 steps of 4 samples, 3 judges before and after each.
    "trial of selections": (
        {"select": SelectTrial(contenders=("grace", "random"), count=20, steps=5)},
        {"select": (TRY_MIDDLE + 87 * MIDDLE + 2 * 5 * 4 * 3 * 1.5 + 3 * 3) / 180},
    ),
    # Nothing is scored for these.
    "trial by words": (
        {"select": SelectTrial(contenders=("dsir", "random"), count=20, steps=5, judges=2)},
        {"select": (2 * 5 * 4 * 3 * 1.5 + 3 * 2) / 180},
    ),
    # In a trial GRACE has no overhead to keep to, nor has it as the winner of one.
    "winner": (
        {"select": SelectTrial(contenders=("grace", "random"), count=20, winner="grace")},
        {"select": (TRY_MIDDLE + 87 * MIDDLE) / 180},
    ),
    "an order": ({"order": EasyFirst()}, {"order": (TRY_LOSS + 80 * LOSS) / 180}),
    "d3": ({"order": gw.D3(overhead=0.2)}, {"order": 0.2}),
    # Gradients of 16 candidates and, in a scoring run of their own, of 12 validation samples, twice.
    "direct": (
        {"anneal": gw.Direct(candidates=16, times=2)},
        {"anneal": (TRY_GRAD + 2 * 28 * GRAD) / 180},
    ),
    # 6 validation samples choose, 6 judge 3 times; 2 contenders are trained for 5 steps of 4 samples.
    "trial": (
        {"anneal": Trial(contenders=("direct", "random"), candidates=16, steps=5, judges=6)},
        {"anneal": (TRY_TRIAL + 16 * TRIAL + 6 * GRAD + 2 * 5 * 4 * 3 * 1.5 + 3 * 6) / 180},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shares_are_those_worked_out_by_hand(name: str) -> None:
    sections, expected = CASES[name]
    schedule: dict[str, Any] = {"schedule": "wsd"} if "anneal" in sections else {}
    recipe = gw.Recipe(train=Train(batch_size=4, **schedule), **sections)
    found = shares(recipe, 5, SIZE, shape=SHAPE)
    assert {name: part["share"] for name, part in found.items()} == pytest.approx(expected)
    assert all(part["why"] for part in found.values())
    assert shares(recipe, 5, SIZE, dict.fromkeys(expected, 0.07)).keys() == expected.keys()


def test_a_scoring_run_costs_its_trial_and_its_samples() -> None:
    assert scoring({"num_tokens"}, 100, SHAPE) == 0
    assert scoring({"grad"}, 0, SHAPE) == 0
    assert scoring({"grad"}, 100, SHAPE) == engine_check({"grad"}, SHAPE) + 100 * per_sample({"grad"}, SHAPE)
    # Measured on a Llama of 10 M parameters, over a forward/backward (docs/results/signals-cost.md).
    llama = Shape(head=0.16, width=384)
    for needs, ratio in ((("loss",), 0.31), (("head_norm",), 0.345), (("loss", "grad"), 0.77)):
        assert per_sample(needs, llama) / 3 == pytest.approx(ratio, rel=0.1)
    assert per_sample(("grad", "grad_norm"), llama) / 3 == pytest.approx(0.99, rel=0.1)


@pytest.mark.parametrize("winner", [None, "grace"])
def test_a_trial_scores_what_its_contenders_ask_for(winner: Any) -> None:
    trial = SelectTrial(contenders=("grace", "dsir"), count=20, steps=5, winner=winner)
    recipe = gw.Recipe(train=Train(batch_size=4), select=trial)
    (part,) = shares(recipe, 5, replace(SIZE, scored=50), shape=SHAPE).values()
    steps = 0 if winner else 2 * 5 * 4 * 3 * 1.5 + 3 * 3
    assert part["share"] == pytest.approx((TRY_MIDDLE + 57 * MIDDLE + steps) / 180)
    assert "50 samples" in part["why"] and "overhead" not in part["why"]


@pytest.mark.parametrize(("share", "scored"), [(None, 30), (0.5, 110)])
def test_samples_of_the_phase_alone_are_scored_with_those_they_are_mixed_with(
    share: float | None, scored: int
) -> None:
    recipe = gw.Recipe(train=Train(batch_size=4, schedule="wsd"), anneal=gw.Direct(share=share))
    found = shares(recipe, 5, replace(SIZE, added=30), shape=SHAPE)
    assert found["anneal"]["share"] == pytest.approx((TRY_GRAD + GRAD * (scored + 12)) / 180)


def test_frozen_layers_make_training_and_measuring_cheaper() -> None:
    def of(**sections: Any) -> dict[str, float]:
        recipe = gw.Recipe(train=Train(batch_size=4), **sections)
        found = {name: part["share"] for name, part in shares(recipe, 5, SIZE, shape=SHAPE).items()}
        return found | {"step": cost_per_sample(recipe, 5, SHAPE)}

    frozen = UniformLayers(active=2)
    # Of 5 blocks in 0.8 of the model, the lowest of two drawn ones is on average the second.
    assert of(layers=frozen)["step"] == pytest.approx(1 + 0.2 + 0.8 * 0.8 + 0.8 * 2 / 5)
    assert of(adapter=Adapter())["step"] == pytest.approx(2 + 340 / 400)
    step = of(layers=frozen)["step"]
    assert of(layers=frozen, order=gw.D3(overhead=0.2))["order"] == pytest.approx(
        0.2 * 3 / step * (step - 1) / 2
    )
    assert of(layers=frozen, order=gw.D3(overhead=0.2, edges="orders"))["order"] == pytest.approx(0.2)


def test_an_update_counts_by_the_weights_it_touches_and_the_tokens_of_a_step() -> None:
    shape = replace(SHAPE, step_tokens=512)

    def step(**sections: Any) -> float:
        recipe = gw.Recipe(train=Train(batch_size=4), **sections)
        return cost_per_sample(recipe, 5, shape) - cost_per_sample(recipe, 5, SHAPE)

    assert step() == pytest.approx(256 / 512)
    assert step(layers=UniformLayers(active=2)) == pytest.approx(0.8 * 2 / 5 * 256 / 512)
    always = UniformLayers(active=2, embeddings="always")
    assert step(layers=always) == pytest.approx((0.8 * 2 / 5 + 0.2) * 256 / 512)
    assert step(adapter=Adapter()) == 0
    # Shares are over training with its updates, and measuring updates nothing.
    d3 = gw.Recipe(train=Train(batch_size=4), order=gw.D3(overhead=0.2))
    assert shares(d3, 5, SIZE, shape=shape)["order"]["share"] == pytest.approx(0.2 * 3 / 3.5)
    once = gw.Recipe(train=Train(batch_size=4), select=LossTop(count=20))
    found = shares(once, 5, SIZE, shape=shape)["select"]["share"]
    assert found == pytest.approx((TRY_LOSS + 80 * LOSS) / (180 * 3.5 / 3))


def test_without_the_size_of_the_pool_only_what_the_recipe_says_is_known() -> None:
    def share(**sections: Any) -> dict[str, float | None]:
        train = sections.pop("train", Train(batch_size=4, epochs=2))
        found = shares(gw.Recipe(train=train, **sections), 5, shape=SHAPE)
        return {name: part["share"] for name, part in found.items()}

    assert share(select=LossTop(fraction=0.5)) == {"select": pytest.approx(LOSS / 4.5)}
    assert share(select=LossTop(count=8)) == {"select": None}
    once = (TRY_HEAD_NORM + 40 * HEAD_NORM) / 180
    assert share(select=replace(GRACE, refresh_every=0, anchors=None)) == {"select": pytest.approx(once)}
    steps = Train(batch_size=4, arguments={"max_steps": 10})
    assert share(select=GRACE, train=steps) == {"select": pytest.approx(CASES["grace"][1]["select"])}
    assert share(layers=gw.Grass(active=5, probe=2)) == {"layers": None}
    assert share(layers=gw.Grass(active=5, probe=2), train=steps) == {
        "layers": pytest.approx(2 * 3.4 / (10 * (3 - 0.2)))
    }


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


@pytest.mark.parametrize(("layers", "middle"), [(2, 1 / 2), (5, 3 / 5), (6, 1 / 2)])
def test_the_shape_of_a_model_says_where_its_middle_is(tiny_llama: Any, layers: int, middle: float) -> None:
    assert model_shape(tiny_llama(layers=layers)).middle == middle


@pytest.fixture
def counted(story_model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[float]]:
    """A model of five blocks and the samples that went through it: a fifth of a pass forward for each block,
    and as much again where gradients come back to it. What costs more than passes is left out of the
    forecast."""
    model, passes = story_model(), []
    for name, value in {
        "PROJECTING": 0.0,
        "PROJECTING_WIDTH": 0.0,
        "NORMS": 0.0,
        "CHECK_FACTOR": 1.0,
    }.items():
        monkeypatch.setattr(f"gradwise.methods.cost_counts.{name}", value)
    monkeypatch.setattr("gradwise.planning.planner.shape_of", lambda *_: Shape(head=0.0, middle=3 / 5))

    def count(_: object, __: object, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        passes.append(len(hidden) / 5)
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: passes.append(len(gradient) / 5))

    assert len(model.model.layers) == 5
    for block in model.model.layers:
        block.register_forward_hook(count)
    return model, passes


@pytest.mark.parametrize("winner", [None, "grace"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_trial_makes_the_passes_that_it_forecast_before_it(
    counted: Any, arguments: Any, speeches: Any, tmp_path: Path, winner: Any, seed: int
) -> None:
    model, passes = counted
    trial = gw.SelectTrial(
        contenders=("grace", "dsir", "random"), count=4, steps=4, winner=winner, max_closeness=None
    )
    trainer = gw.Trainer(
        model, arguments(max_steps=12, lr_scheduler_type="constant", seed=seed), Collator(0),
        speeches.select(range(48)), speeches.select(range(70, 74)), recipe=gw.Recipe(select=trial),
        target_dataset=speeches.select(range(48, 64)),
    )  # fmt: skip
    sentences: list[str] = []
    trainer.session.tell = sentences.append
    trainer.train()
    (plan,) = [
        event
        for event in map(json.loads, (tmp_path / "out" / "events.jsonl").read_text().splitlines())
        if event["event"] == "plan"
    ]
    training, steps_of_trial = 3 * 12 * 4, 0 if winner else 3 * 3 * 4 * 4
    # Of three passes of a training step two are counted.
    made = (sum(passes) - training * 2 / 3 + steps_of_trial / 3) / training
    assert plan["expected"]["select"] == pytest.approx(made, rel=0.1)
    expected = [each for each in sentences if "that is expected to take" in each]
    assert len(expected) == (0 if winner else 1)
    if not winner:
        share = plan["expected"]["select"]
        assert f"is expected to take {share:.0%} of the training time" in expected[0]
        (won,) = [number for number, each in enumerate(sentences) if "wins the trial" in each]
        assert sentences.index(expected[0]) < won


def test_a_run_makes_the_passes_that_it_forecast(
    counted: Any, arguments: Any, speeches: Any, tmp_path: Path
) -> None:
    """Nothing but deciding and training goes through the model."""
    model, passes = counted
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
    made = (sum(passes) - training * 2 / 3) / training
    assert plan["expected"].keys() == {"select", "anneal"}
    assert sum(plan["expected"].values()) == pytest.approx(made, rel=0.25)
    assert sum("Deciding is expected to take" in sentence for sentence in sentences) == 1
