"""Data that only the annealing phase trains on: alone, or mixed with the training data in stated shares."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gradwise as gw
from gradwise.comparison.arms import parse_arms
from gradwise.methods.annealer import Annealer
from gradwise.methods.baselines import (
    CosineTop,
    FullAnneal,
    GradNormAnneal,
    Herding,
    InfoBatch,
    LossAnneal,
    PerplexityAnneal,
    RandomAnneal,
)
from gradwise.planning import Samples
from gradwise.planning.phase import (
    Part,
    counts,
    interleaving,
    joined_selections,
    parts_of,
    scored_parts,
    select_parts,
)
from gradwise.planning.shares import shares
from gradwise.run import train
from gradwise.run.select import select_annealing
from gradwise.training import Plan
from tests.conftest import same_weights, some

POOL, OWN, STEPS, BATCH = 24, 12, 8, 4
ONSET, ROOM = STEPS // 2, STEPS // 2 * BATCH
ANNEALERS = [
    gw.Direct(),
    CosineTop(),
    Herding(),
    RandomAnneal(),
    gw.Trial(contenders=("cosine_top", "random"), steps=2),
    LossAnneal(),
    PerplexityAnneal(),
    GradNormAnneal(),
    InfoBatch(),
    FullAnneal(),
]

Make = Callable[..., Any]


@pytest.fixture
def make(story_model: Any, arguments: Any, speeches: Any) -> Make:
    """A trainer over 24 samples in eight steps of four, the last four of them the annealing phase, for which
    there are twelve more samples."""

    def make(
        anneal: Annealer | None,
        name: str = "run",
        own: Any = range(POOL, POOL + OWN),
        changed: dict[str, Any] | None = None,
        saving: str = "no",
        **sections: Any,
    ) -> Any:
        settings: dict[str, Any] = {
            "train_dataset": speeches.select(range(POOL)),
            "eval_dataset": speeches.select(range(60, 68)),
            "anneal_dataset": None if own is None else speeches.select(own),
        }
        if anneal is not None:
            sections["anneal"] = replace(anneal, last=0.5)
        schedule = "warmup_stable_decay" if anneal else "linear"
        return gw.Trainer(
            story_model(),
            arguments(name, max_steps=STEPS, lr_scheduler_type=schedule, save_strategy=saving, save_steps=3),
            recipe=gw.Recipe(**sections),
            **(settings | (changed or {})),
        )

    return make


def phase_of(trainer: Any) -> list[NDArray[np.int64]]:
    """What was trained on before the phase and in it."""
    samples = np.concatenate([trainer.session.schedule.samples(step) for step in range(STEPS)])
    return np.split(samples, [ONSET * BATCH])


class TestParts:
    def test_turns_keep_the_share_over_every_stretch(self) -> None:
        for share in (0.07, 0.25, 0.5, 0.9):
            parts = (Part(np.arange(5), 1 - share), Part(np.arange(5, 8), share))
            order = interleaving(parts, 100)
            assert sorted(order) == list(range(100))
            rest, own = counts(parts, 100)
            taken = np.cumsum(order >= rest)
            assert own == taken[-1] and rest + own == 100
            assert np.all(np.abs(taken - share * np.arange(1, 101)) <= 1)
            assert np.all(np.diff(order[order < rest]) == 1), "each part in its own order"

    def test_sizes_are_divided_by_shares(self) -> None:
        method = RandomAnneal(count=10, candidates=20, share=0.3)
        samples = Samples([0] * 60, [0] * 60, lambda _: {})
        parts = scored_parts(method, samples, parts_of(method, np.arange(40), 40, 20), seed=0)
        assert [len(part.rows) for part in parts] == [14, 6]
        signals = gw.Signals(20)
        picked = select_parts(method, parts, signals, validation=None, room=None, seed=0)
        assert [len(each.indices) for each in picked] == [7, 3]
        both = joined_selections(picked)
        assert len(both.indices) == len(both.why) == 10
        assert np.sum(both.indices >= 40) == 3


@pytest.mark.parametrize("method", some(ANNEALERS, every=4), ids=lambda m: m.method)
def test_every_method_chooses_among_both_parts_in_their_shares(make: Make, method: Annealer) -> None:
    trainer = make(replace(method, share=0.25))
    trainer.train()
    before, phase = phase_of(trainer)
    assert before.max() < POOL, "none is drawn before the phase"
    assert np.all((phase.reshape(-1, BATCH) >= POOL).sum(axis=1) == 1), "one of four in every batch"
    assert trainer.session.plan.pool == POOL + OWN
    assert len(trainer.session.context().train) == POOL


@pytest.mark.parametrize("method", some([FullAnneal(), gw.Direct(count=8)]), ids=lambda m: m.method)
def test_alone_it_is_all_that_the_phase_trains_on(make: Make, method: Annealer, tmp_path: Path) -> None:
    trainer, plain = make(method), make(method, "plain", own=None)
    for each in (trainer, plain):
        each.train()
    before, phase = phase_of(trainer)
    assert before.tolist() == phase_of(plain)[0].tolist(), "the steps before are those of a run without"
    assert phase.min() >= POOL and phase.max() < POOL + OWN
    assert len(set(phase.tolist())) == (method.count or OWN)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (event,) = [each for each in events if each["event"] == "anneal"]
    assert event["looked_at"] == event["from_own_data"]["looked_at"] == OWN
    (planned,) = [each for each in events if each["event"] == "plan"]
    assert (planned["pool"], planned["added"]) == (POOL, OWN)


def test_stopped_and_resumed_it_is_the_same_run(make: Make, tmp_path: Path) -> None:
    """Before the phase, and in it; with an order that measures both kinds of data while training."""
    sections: dict[str, Any] = {
        "anneal": CosineTop(share=0.5, count=8),
        "order": gw.D3(units="domains", probes=2, target_samples=4, overhead=2.0, size=2),
        "saving": "steps",
    }
    whole = make(**sections)
    whole.train()
    for step in (3, 6):
        resumed = make(**sections)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert resumed.session.plan.digest == whole.session.plan.digest
        assert same_weights(whole.model, resumed.model)


def test_other_data_cannot_be_resumed_with(make: Make, tmp_path: Path) -> None:
    make(RandomAnneal(), saving="steps").train()
    checkpoint = str(tmp_path / "run" / "checkpoint-3")
    with pytest.raises(gw.CheckpointError, match="trained on 36 samples, the data now have 35"):
        make(RandomAnneal(), own=range(25, 36)).train(resume_from_checkpoint=checkpoint)
    fewer = {"train_dataset": make(None, own=None).train_dataset.select(range(23))}
    with pytest.raises(gw.CheckpointError, match="12 samples for its annealing phase only, now there are 13"):
        make(RandomAnneal(), own=range(24, 37), changed=fewer).train(resume_from_checkpoint=checkpoint)


def test_samples_that_are_no_dataset(make: Make, speeches: Any) -> None:
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in speeches]
    lists = {"train_dataset": rows[:24], "anneal_dataset": rows[24:36]}
    trainer = make(LossAnneal(share=0.5), changed=lists)
    trainer.train()
    assert np.sum(phase_of(trainer)[1] >= POOL) == ROOM // 2


def test_a_target_chooses_instead_of_what_measures(make: Make, speeches: Any) -> None:
    target, measuring = speeches.select(range(40, 50)), speeches.select(range(60, 68))
    method = CosineTop(count=4)
    by_target = make(method, changed={"target_dataset": target})
    as_validation = make(method, "validation", changed={"eval_dataset": target})
    other = make(method, "other")
    for each in (by_target, as_validation, other):
        each.train()
    assert by_target.session.plan.digest == as_validation.session.plan.digest
    assert by_target.session.plan.digest != other.session.plan.digest
    assert by_target.eval_dataset["input_ids"] == measuring["input_ids"]


class TestRefused:
    @pytest.mark.parametrize(
        ("anneal", "sections", "sentence"),
        [
            ({"share": 0.5}, {}, r"anneal\.share is 0\.5, .* is not given; give it"),
            ({"data": "x.jsonl", "pool": "selection"}, {}, "leave pool out, or give a share below 1"),
            ({"data": "x.jsonl", "share": 0}, {}, "greater than 0"),
            (
                {"data": "x.jsonl"},
                {"order": {"method": "d3", "units": "clusters"}},
                "give order.units: domains, batches or samples",
            ),
            ({"data": "x.jsonl"}, {"order": "easy_first", "signals": {"model": "y"}}, "and not anneal.data"),
        ],
    )
    def test_when_the_recipe_is_read(
        self, anneal: dict[str, Any], sections: dict[str, Any], sentence: str
    ) -> None:
        values = {
            "data": {"train": "t.jsonl"},
            "train": {"schedule": "wsd"},
            "anneal": {"method": "random", **anneal},
            **sections,
        }
        with pytest.raises(gw.RecipeError, match=sentence):
            gw.Recipe.from_dict(values)

    @pytest.mark.parametrize(
        ("anneal", "changed", "sentence"),
        [
            (None, {}, "no effect without `anneal`"),
            (
                RandomAnneal(data=gw.Source("x.jsonl")),
                {"anneal_dataset": None},
                "give it an .anneal_dataset",
            ),
            (RandomAnneal(share=0.5), {"anneal_dataset": None}, "is not given; give it"),
            (RandomAnneal(), {"anneal_dataset": []}, "must hold samples by position; found list"),
            (RandomAnneal(), {"anneal_dataset": [1]}, r"with its columns \(domain, input_ids, labels\)"),
        ],
    )
    def test_by_a_trainer(self, make: Make, anneal: Any, changed: dict[str, Any], sentence: str) -> None:
        with pytest.raises(gw.RecipeError, match=sentence):
            make(anneal, changed=changed)

    @pytest.mark.parametrize(
        ("anneal", "sentence"),
        [
            (RandomAnneal(count=13), r"anneal\.count is 13, but only 12 samples"),
            (RandomAnneal(count=40, share=0.6), r"count is 40, 24 of them for a share of 0\.6, .* only 12"),
            (RandomAnneal(fraction=0.04), r"anneal\.fraction is 0\.04, which is none of 12 samples"),
            (gw.Direct(fraction=0.2, candidates=2), r"anneal\.fraction is 0\.2, which is none of 2 samples"),
            (RandomAnneal(tokens=2), r"anneal\.tokens is 2, and the shortest .* has \d+ label tokens"),
            (RandomAnneal(tokens=9, share=0.25), r"anneal\.tokens is 9, \d of them for a share of 0\.\d+,"),
            (RandomAnneal(share=0.01), r"anneal\.share is 0\.01, of 16 samples from step 4 on"),
        ],
    )
    def test_before_the_first_step(self, make: Make, anneal: Annealer, sentence: str) -> None:
        trainer = make(anneal)
        with pytest.raises(gw.RecipeError, match=sentence):
            trainer.train()
        assert trainer.state.global_step == 0


@pytest.fixture
def recipe(stories: Path, few_speeches: Callable[..., gw.Data], tmp_path: Path) -> gw.Recipe:
    """Trains on twenty speeches, anneals on twelve others; at this rate the steps before change nothing."""
    lines = (stories.parent / "plays_train.jsonl").read_text().splitlines()[40:52]
    (tmp_path / "own.jsonl").write_text("\n".join(lines) + "\n")
    arguments = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "steps", "save_steps": 4}
    return gw.Recipe(
        model=gw.Model(name=str(stories)),
        data=few_speeches(max_length=100, allow={"cut": 1.0}),
        train=gw.Train(batch_size=2, learning_rate=1e-30, schedule="wsd", arguments=arguments),
        order=gw.baselines.GivenOrder(),
        anneal=gw.Direct(last=0.5, data=gw.Source(str(tmp_path / "own.jsonl")), share=0.4, count=10),
    )


def test_a_recipe_finds_the_files_from_its_own_folder(recipe: gw.Recipe, tmp_path: Path) -> None:
    for given in ("own.jsonl", ["own.jsonl"], {"path": "own.jsonl"}):
        values = recipe.to_dict()
        values["anneal"]["data"] = given
        text = json.dumps(values)
        (tmp_path / "recipe.yaml").write_text(text)
        found = gw.Recipe.load(tmp_path / "recipe.yaml")
        assert found.anneal is not None
        (source,) = found.anneal.data if isinstance(found.anneal.data, list) else [found.anneal.data]
        assert source is not None and source.path == str(tmp_path / "own.jsonl")
        assert gw.Recipe.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_a_share_of_a_phase_with_a_short_batch(
    story_model: Any, arguments: Any, speeches: Any, fraction: float | None
) -> None:
    """13 samples in batches of four: the last step has one, which cannot be of two kinds."""

    def make(name: str, last: float) -> Any:
        return gw.Trainer(
            story_model(),
            arguments(name, lr_scheduler_type="warmup_stable_decay"),
            train_dataset=speeches.select(range(13)),
            anneal_dataset=speeches.select(range(24, 36)),
            recipe=gw.Recipe(anneal=RandomAnneal(last=last, share=0.5, fraction=fraction)),
        )

    short = make("short", 0.25)
    with pytest.raises(gw.RecipeError, match=r"anneal\.share is 0\.5, of 1 samples from step 3 on"):
        short.train()
    assert short.state.global_step == 0
    longer = make("longer", 0.5)
    longer.train()
    assert np.sum(longer.session.plan.indices[8:] >= 13) == 3, "half of five, rounded up"


@pytest.mark.slow
def test_in_a_run_and_outside_of_one_the_same_are_chosen(recipe: gw.Recipe, tmp_path: Path) -> None:
    """By the half of a target that chooses; and a run whose files have changed is not resumed."""
    assert recipe.data is not None
    messages: list[str] = []
    aimed = replace(recipe, data=replace(recipe.data, validation=None, target=recipe.data.validation))
    picked = select_annealing(aimed, tmp_path / "picks", tell=lambda _: None, progress=False)
    train(aimed, tmp_path / "run", tell=messages.append, progress=False)
    plan = Plan.load(tmp_path / "run" / "plan" / "plan.safetensors")
    phase = plan.indices[10:]
    assert set(phase.tolist()) == set(picked.indices.tolist())
    assert np.sum(phase >= 20) == np.sum(picked.indices >= 20) == 4
    assert any("4 of its samples choose, 4 others measure" in line for line in messages)
    records = [json.loads(line) for line in (tmp_path / "picks" / "records.jsonl").read_text().splitlines()]
    own = {json.loads(line)["text"] for line in (tmp_path / "own.jsonl").read_text().splitlines()}
    assert [record["text"] in own for record in records] == (picked.indices >= 20).tolist()

    (tmp_path / "run" / "model").rename(tmp_path / "model")  # as if it had been killed before its end
    lines = (tmp_path / "own.jsonl").read_text().splitlines()
    (tmp_path / "own.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    with pytest.raises(gw.CheckpointError, match="The annealing data have changed since the run in"):
        train(aimed, tmp_path / "run", tell=messages.append, progress=False)


def test_alone_outside_of_a_run_the_training_data_are_not_read(recipe: gw.Recipe, tmp_path: Path) -> None:
    assert recipe.data is not None and recipe.anneal is not None
    unread = replace(recipe.data, train=gw.Source(str(tmp_path / "missing.jsonl")))
    alone = replace(recipe, data=unread, anneal=replace(recipe.anneal, share=None))
    picked = select_annealing(alone, tmp_path / "picks", tell=lambda _: None, progress=False)
    assert len(picked.indices) == 10 and picked.indices.max() < 12


def test_another_method_as_an_arm_keeps_the_files(recipe: gw.Recipe) -> None:
    found = parse_arms(["full", "anneal.random", "anneal.full"], recipe)
    phases = [arm.recipe.anneal for arm in found]
    assert recipe.anneal is not None and phases[0] is None
    assert [(each.data, each.share) for each in phases[1:] if each] == 2 * [(recipe.anneal.data, 0.4)]
    assert shares(recipe, layers=5)["anneal"]["share"] is None, "the files' size is not known"
