"""The annealing phase: decided when the learning rate begins to decay, from the weights at that step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import concatenate_datasets

import gradwise as gw
from gradwise.methods.annealer import Annealer
from gradwise.methods.baselines import CosineTop, FullAnneal, Herding, LossAnneal, RandomAnneal
from gradwise.methods.direct import Direct
from tests.conftest import same_weights, some

EVERY_METHOD = [
    Direct(objective="curvature"),
    Direct(objective="paper"),
    CosineTop(),
    Herding(),
    LossAnneal(),
    RandomAnneal(),
]


@pytest.fixture
def parts(speeches: Any) -> tuple[Any, Any]:
    """60 samples to train on and 20 others to validate on."""
    return speeches.select(range(60)), speeches.select(range(60, 80))


@pytest.fixture
def run(story_model, arguments, parts, tmp_path: Path) -> Callable[..., Any]:
    """Trains with an annealing phase on a WSD schedule; returns the trainer, events and metrics."""

    def run(anneal: Any, *, name: str = "run", select: Any = None, given: Any = None, **changes: Any) -> Any:
        sections = {"select": select or gw.baselines.FullData(), "anneal": anneal}
        if anneal is None:
            changes = {"lr_scheduler_kwargs": {"num_decay_steps": 6}, **changes}
        settings = {"lr_scheduler_type": "warmup_stable_decay", "num_train_epochs": 2, **changes}
        pool, held_out = given or parts
        trainer = gw.Trainer(
            story_model(), arguments(name, **settings), train_dataset=pool, eval_dataset=held_out,
            recipe=gw.Recipe(**sections),
        )  # fmt: skip
        trainer.train()
        events, metrics = (
            [json.loads(line) for line in (tmp_path / name / f"{kind}.jsonl").read_text().splitlines()]
            for kind in ("events", "metrics")
        )
        return trainer, events, metrics

    return run


def decided(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "anneal"]


@pytest.mark.parametrize(
    "method", some(EVERY_METHOD), ids=lambda m: f"{m.method}-{getattr(m, 'objective', '')}"
)
def test_the_phase_and_the_decay_begin_together(run: Any, method: Annealer) -> None:
    """30 steps of 4 samples; the last six decay. Steps are numbered from 1 in the metrics."""
    trainer, events, metrics = run(method)
    (event,) = decided(events)
    assert event["step"] == 24
    rates = [line["learning_rate"] for line in metrics if "loss" in line]
    # The first step of the phase still has the peak: the schedule counts its own steps from 0.
    assert rates[:25] == [1e-3] * 25
    assert np.all(np.diff(rates[24:]) < 0)
    plan = trainer.session.plan
    last = plan.indices[24 * 4 :]
    assert event["selected"] == event["room"] == len(last) == 24
    assert len(set(last.tolist())) == 24, "each pick is seen once"
    assert plan.segments[-1].reason(0).startswith("in the annealing phase: ")


def test_nothing_before_the_phase_is_changed(run: Any) -> None:
    plain, _, before = run(None, name="plain")
    finished, _, after = run(Direct(count=8), name="finished")
    assert [line["loss"] for line in before[:24]] == [line["loss"] for line in after[:24]]
    assert [line["learning_rate"] for line in before] == [line["learning_rate"] for line in after]
    assert plain.session.plan.agrees_with(finished.session.plan, 24 * 4)
    assert not same_weights(plain.model, finished.model)


def test_measuring_leaves_model_and_random_state_as_they_were(run: Any, monkeypatch: Any) -> None:
    """The same picks by a method that measures and by one that does not train the same model."""
    picks = np.arange(10, 34)
    fixed = gw.Selection(picks, why=("these",))
    monkeypatch.setattr(RandomAnneal, "select", lambda *_, **__: fixed)
    monkeypatch.setattr(CosineTop, "select", lambda *_, **__: fixed)
    unmeasured, _, _ = run(RandomAnneal(), name="unmeasured")
    measured, _, _ = run(CosineTop(), name="measured")
    assert same_weights(unmeasured.model, measured.model)


def test_a_phase_that_crosses_epochs_repeats_its_picks(run: Any) -> None:
    """Two epochs of 15 steps, the last 24 of them the phase: its 24 picks are seen four times."""
    trainer, events, _ = run(RandomAnneal(count=24, last=0.8))
    (event,) = decided(events)
    assert (event["step"], event["room"]) == (6, 96)
    entries = trainer.session.plan.indices[6 * 4 :]
    rounds = entries.reshape(4, 24)
    for one in rounds:
        assert set(one.tolist()) == set(rounds[0].tolist())
    assert len({tuple(one.tolist()) for one in rounds}) == 4, "each in an order of its own"


def test_several_rounds_divide_the_phase(run: Any) -> None:
    trainer, events, _ = run(Direct(times=3, last=0.5))
    assert [event["step"] for event in decided(events)] == [15, 20, 25]
    assert [event["room"] for event in decided(events)] == [20, 20, 20]
    assert [event["round"] for event in decided(events)] == [1, 2, 3]
    for first in (15, 20, 25):
        assert len(set(trainer.session.plan.indices[4 * first : 4 * first + 20].tolist())) == 20


def test_every_round_has_orders_of_its_own(run: Any) -> None:
    trainer, events, _ = run(FullAnneal(last=0.5, times=2), num_train_epochs=4)
    assert [event["step"] for event in decided(events)] == [30, 45]
    once, again = trainer.session.plan.indices[30 * 4 :].reshape(2, 60)
    assert sorted(once.tolist()) == sorted(again.tolist())
    assert once.tolist() != again.tolist()


def test_what_was_selected_before_can_be_the_pool(run: Any) -> None:
    grace = gw.Grace(count=20, candidates="all", refresh_every=3, anchors=0.5)
    trainer, events, _ = run(Direct(count=6, pool="selection"), select=grace, num_train_epochs=5)
    refreshed = [event["step"] for event in events if event["event"] == "refresh"]
    (event,) = decided(events)
    assert event["step"] == 20
    assert refreshed == [3, 6, 9, 12, 15, 18], "and none within the phase"
    indices = trainer.session.plan.indices
    assert event["looked_at"] == 20
    last_selection = set(indices[18 * 4 : 20 * 4].tolist())
    assert len(set(indices[20 * 4 :].tolist())) == 6
    assert len(set(indices[20 * 4 :].tolist()) | last_selection) <= 20


def test_few_candidates_come_from_every_domain(run: Any, parts: Any) -> None:
    trainer, events, _ = run(RandomAnneal(candidates=30))
    assert decided(events)[0]["looked_at"] == 30
    domains = np.array(parts[0]["domain"])[trainer.session.plan.indices[24 * 4 :]]
    assert set(domains.tolist()) == {"d0", "d1", "d2"}


def test_what_is_written_of_the_choice(run: Any, tmp_path: Path) -> None:
    _, events, _ = run(Direct(count=9, tau=2.0))
    (event,) = decided(events)
    assert event["tau"] == 2.0
    assert event["parts"].keys() == {"signals", "selection"}
    assert "spectrum" not in event
    found = json.loads((tmp_path / "run" / "plan" / "spectrum-24.json").read_text())
    assert found["spectrum"]["values"] == sorted(found["spectrum"]["values"], reverse=True)
    assert len(found["spectrum"]["pool_energy"]) == len(found["spectrum"]["values"]) <= 20
    import pyarrow.parquet

    picks = pyarrow.parquet.read_table(tmp_path / "run" / "plan" / "picks-24.parquet")
    assert picks.num_rows == 9
    assert {"index", "domain", "why", "stiff_cost", "cosine"} <= set(picks.column_names)


def test_gradients_divided_by_adams_second_moments_select_otherwise(run: Any) -> None:
    plain, _, _ = run(Direct(count=8), name="plain")
    divided, _, _ = run(Direct(count=8, precondition=True), name="divided")
    first, second = (set(made.session.plan.indices[24 * 4 :].tolist()) for made in (plain, divided))
    assert first != second


def test_an_order_that_needs_losses_gets_them_of_the_picks(story_model, arguments, parts) -> None:
    settings = {"lr_scheduler_type": "warmup_stable_decay", "num_train_epochs": 2}
    recipe = gw.Recipe(anneal=Direct(count=12), order=gw.baselines.EasyFirst())
    trainer = gw.Trainer(
        story_model(), arguments(**settings), train_dataset=parts[0], eval_dataset=parts[1], recipe=recipe
    )
    trainer.train()
    assert trainer.session.plan is not None
    once, again = trainer.session.plan.indices[24 * 4 :].reshape(2, 12)
    assert once.tolist() == again.tolist()


def test_full_data_in_the_phase_is_all_of_it(run: Any) -> None:
    trainer, events, _ = run(
        FullAnneal(last=0.5), select=gw.baselines.RandomSubset(count=20), num_train_epochs=6
    )
    assert decided(events)[0]["selected"] == 60
    assert len(set(trainer.session.plan.indices[15 * 4 :].tolist())) == 60


@pytest.mark.parametrize(("epochs", "times"), [(1, 1), (2, 3)])
def test_the_pool_stays_what_was_selected_through_all_rounds(run: Any, epochs: int, times: int) -> None:
    random = gw.baselines.RandomSubset(count=40)
    phase = RandomAnneal(count=5, pool="selection", last=0.6, times=times)
    _, events, _ = run(phase, select=random, num_train_epochs=epochs)
    assert [event["looked_at"] for event in decided(events)] == [40] * times


def test_a_resumed_run_knows_what_was_selected(story_model, arguments, parts, tmp_path: Path) -> None:
    """By the time of the second round the plan no longer tells."""

    def make() -> gw.Trainer:
        settings = {
            "lr_scheduler_type": "warmup_stable_decay", "num_train_epochs": 2, "save_strategy": "steps",
            "save_steps": 12,
        }  # fmt: skip
        recipe = gw.Recipe(
            select=gw.baselines.RandomSubset(count=40),
            anneal=RandomAnneal(count=5, pool="selection", last=0.5, times=2),
        )
        return gw.Trainer(story_model(), arguments(**settings), train_dataset=parts[0], recipe=recipe)

    whole, resumed = make(), make()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-12"))
    assert same_weights(whole.model, resumed.model)
    assert whole.session.plan is not None and resumed.session.plan is not None
    assert whole.session.plan.digest == resumed.session.plan.digest


def test_a_sample_that_cannot_be_measured_is_left_out(run: Any, parts: Any) -> None:
    mute = parts[0].map(
        lambda row, i: {"labels": [-100] * len(row["labels"])} if i == 7 else row, with_indices=True
    )
    for method in (FullAnneal(), LossAnneal(), Direct()):
        trainer, events, _ = run(method, given=(mute, parts[1]), name=method.method, num_train_epochs=3)
        first = decided(events)[0]["step"]
        picked = trainer.session.plan.indices[4 * first :]
        assert method.method == "full" or 7 not in picked.tolist()


def test_room_counts_what_is_served(run: Any, parts: Any) -> None:
    """62 samples in batches of 4, the last two of each epoch dropped: all picks are seen."""
    more = concatenate_datasets([parts[0], parts[1].select(range(2))])
    trainer, events, _ = run(
        RandomAnneal(), given=(more, parts[1].select(range(2, 20))), dataloader_drop_last=True
    )
    (event,) = decided(events)
    served = [trainer.session.schedule.samples(step) for step in range(event["step"], 30)]
    assert event["room"] == event["selected"] == len(set(np.concatenate(served).tolist()))


def test_a_phase_across_epochs_serves_every_pick_where_the_rest_is_dropped(run: Any, parts: Any) -> None:
    """Three epochs of 42 samples in ten steps of four: 60 entries from the middle of the second on."""
    given = (parts[0].select(range(42)), parts[1])
    options: dict[str, Any] = {"given": given, "dataloader_drop_last": True, "num_train_epochs": 3}
    trainer, events, _ = run(RandomAnneal(count=30, last=0.5), **options)
    (event,) = decided(events)
    assert (event["step"], event["room"]) == (15, 60)
    served = np.concatenate([trainer.session.schedule.samples(step) for step in range(15, 30)])
    picks, times = np.unique(served, return_counts=True)
    assert len(picks) == 30 and set(times) == {2}


def test_a_resumed_run_chooses_among_samples_with_weight(
    story_model, arguments, parts, tmp_path: Path
) -> None:
    """Where weights multiply losses, a sample of weight 0 is not trained on, and so is none of the pool."""
    weights = [float(number % 3) for number in range(60)]
    pool = parts[0].add_column("weight", weights)

    def make() -> gw.Trainer:
        settings = {
            "lr_scheduler_type": "warmup_stable_decay", "max_steps": 25, "save_strategy": "steps",
            "save_steps": 19,
        }  # fmt: skip
        recipe = gw.Recipe(
            select=gw.Grace(count=20, candidates="all", refresh_every=3, anchors=0.5),
            anneal=RandomAnneal(count=6, pool="selection"),
            weights="loss",
        )
        return gw.Trainer(story_model(), arguments(**settings), train_dataset=pool, recipe=recipe)

    def candidates() -> int:
        lines = (tmp_path / "out" / "events.jsonl").read_text().splitlines()
        return decided(list(map(json.loads, lines)))[0]["looked_at"]

    whole, resumed = make(), make()
    whole.train()
    before = candidates()
    assert before < 20, "some of the coreset have weight 0"
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-19"))
    assert candidates() == before
    assert same_weights(whole.model, resumed.model)


def test_a_tau_that_cannot_be_met_can_be_mended(story_model, arguments, parts, tmp_path: Path) -> None:
    def make(tau: float, **changes: Any) -> gw.Trainer:
        settings = arguments(
            "mended",
            lr_scheduler_type="warmup_stable_decay",
            num_train_epochs=2,
            save_strategy="steps",
            save_steps=20,
        )
        recipe = gw.Recipe(anneal=Direct(count=50, tau=tau, **changes))
        return gw.Trainer(
            story_model(), settings, train_dataset=parts[0], eval_dataset=parts[1], recipe=recipe
        )

    with pytest.raises(gw.RecipeError, match="give tau"):
        make(0.001).train()
    with pytest.raises(gw.CheckpointError, match="taken with anneal"):
        make(1.0, last=0.3).train(resume_from_checkpoint=True)
    make(1.0).train(resume_from_checkpoint=True)
    with pytest.raises(gw.CheckpointError, match="taken with anneal"):
        make(1.2).train(resume_from_checkpoint=str(tmp_path / "mended" / "checkpoint-20"))


@pytest.mark.parametrize("changed", [FullAnneal(), RandomAnneal(count=5, pool="selection")])
def test_another_method_or_pool_is_another_run(
    story_model, arguments, parts, tmp_path: Path, changed: Annealer
) -> None:
    """Even before the phase begins: what they need is checked, and remembered, from the run's first step."""

    def make(anneal: Annealer) -> gw.Trainer:
        settings = arguments(lr_scheduler_type="warmup_stable_decay", save_strategy="steps", save_steps=5)
        select = gw.baselines.RandomSubset(count=40)
        recipe = gw.Recipe(select=select, anneal=anneal)  # type: ignore[arg-type]
        return gw.Trainer(story_model(), settings, train_dataset=parts[0], recipe=recipe)

    def stops(self: Any, *_: Any, **__: Any) -> Any:
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RandomAnneal, "select", stops)
        with pytest.raises(InterruptedError):
            make(RandomAnneal(count=5)).train()
    with pytest.raises(gw.CheckpointError, match="taken with anneal"):
        make(changed).train(resume_from_checkpoint=True)
    make(RandomAnneal(count=6)).train(resume_from_checkpoint=True)


def test_another_number_of_steps_is_another_run(story_model, arguments, parts, tmp_path: Path) -> None:
    def make(steps: int) -> gw.Trainer:
        settings = arguments(
            "longer",
            lr_scheduler_type="warmup_stable_decay",
            max_steps=steps,
            save_strategy="steps",
            save_steps=10,
        )
        recipe = gw.Recipe(anneal=RandomAnneal(count=5))
        return gw.Trainer(
            story_model(), settings, train_dataset=parts[0], eval_dataset=parts[1], recipe=recipe
        )

    make(30).train()
    with pytest.raises(gw.CheckpointError, match="planned with another number of steps"):
        make(28).train(resume_from_checkpoint=str(tmp_path / "longer" / "checkpoint-10"))


def test_more_rounds_than_steps_are_as_many_as_steps(story_model, arguments, parts, tmp_path: Path) -> None:
    """And none after the last, which a resumed run would find missing in its plan."""

    def make() -> gw.Trainer:
        settings = {"lr_scheduler_type": "warmup_stable_decay", "save_strategy": "steps", "save_steps": 13}
        recipe = gw.Recipe(anneal=RandomAnneal(count=5, last=0.2, times=5))
        return gw.Trainer(story_model(), arguments(**settings), train_dataset=parts[0], recipe=recipe)

    whole, resumed = make(), make()
    whole.train()
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in decided(events)] == [12, 13, 14]
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-13"))
    assert same_weights(whole.model, resumed.model)


@pytest.mark.parametrize("saved_at", [23, 24, 25])
def test_resumed_around_the_beginning_it_is_the_same_run(
    story_model, arguments, parts, tmp_path: Path, saved_at: int
) -> None:
    """At step 24 the checkpoint is taken before the phase is decided: the resumed run decides it."""

    def make(name: str) -> gw.Trainer:
        settings = {
            "lr_scheduler_type": "warmup_stable_decay", "num_train_epochs": 2, "save_strategy": "steps",
            "save_steps": saved_at,
        }  # fmt: skip
        return gw.Trainer(
            story_model(), arguments(name, **settings), train_dataset=parts[0], eval_dataset=parts[1],
            recipe=gw.Recipe(anneal=Direct(count=9)),
        )  # fmt: skip

    whole = make("whole")
    whole.train()
    resumed = make("whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{saved_at}"))
    assert same_weights(whole.model, resumed.model)
    assert whole.session.plan is not None and resumed.session.plan is not None
    assert whole.session.plan.digest == resumed.session.plan.digest


class TestRefused:
    def test_without_validation_data(self, run: Any, parts: Any) -> None:
        with pytest.raises(gw.RecipeError, match="direct selects by the gradients of validation data"):
            run(Direct(count=5), given=(parts[0], None))

    def test_another_schedule(self, run: Any) -> None:
        with pytest.raises(gw.RecipeError, match=r"needs schedule: wsd .* found linear"):
            run(Direct(count=5), lr_scheduler_type="linear")

    def test_a_decay_of_another_length(self, run: Any) -> None:
        with pytest.raises(gw.RecipeError, match="makes 6 of 30 steps, and lr_scheduler_kwargs say"):
            run(Direct(count=5), lr_scheduler_kwargs={"num_decay_steps": 7})

    def test_a_warm_up_that_reaches_into_it(self, run: Any) -> None:
        with pytest.raises(gw.RecipeError, match="takes 28 of 30 steps to rise"):
            run(Direct(count=5), warmup_steps=28)

    def test_a_plan_beside_it(self, story_model, arguments, parts) -> None:
        with pytest.raises(gw.RecipeError, match="A plan says what is trained on to the end"):
            gw.Trainer(
                story_model(), arguments(), train_dataset=parts[0], plan=gw.Plan.of([range(60)]),
                recipe=gw.Recipe(anneal=RandomAnneal()),
            )  # fmt: skip

    def test_more_than_there_are(self, run: Any) -> None:
        with pytest.raises(gw.RecipeError, match=r"anneal\.count is 500, but only 60 samples") as caught:
            run(Direct(count=500))
        assert caught.value is not None

    @pytest.mark.parametrize("changes", [{"optim": "sgd"}, {"layers": gw.Grass(active=2)}])
    def test_an_optimizer_without_second_moments_of_everything(
        self, story_model, arguments, parts, changes: dict[str, Any]
    ) -> None:
        sections = {"layers": changes.pop("layers")} if "layers" in changes else {}
        settings = arguments(lr_scheduler_type="warmup_stable_decay", **changes)
        recipe = gw.Recipe(anneal=Direct(count=5, precondition=True), **sections)
        trainer = gw.Trainer(
            story_model(), settings, train_dataset=parts[0], eval_dataset=parts[1], recipe=recipe
        )
        with pytest.raises(gw.RecipeError, match="needs an Adam-like optimizer and layers: all"):
            trainer.train()

    def test_packing(self, story_model, arguments, parts) -> None:
        settings = arguments(lr_scheduler_type="warmup_stable_decay")
        recipe = gw.Recipe(anneal=RandomAnneal())
        trainer = gw.Trainer(story_model(), settings, train_dataset=parts[0], recipe=recipe, packed_length=64)
        with pytest.raises(gw.RecipeError, match="anneal cannot go with packing"):
            trainer.train()

    def test_a_proxy(self, story_model, arguments, parts) -> None:
        settings = arguments(lr_scheduler_type="warmup_stable_decay")
        recipe = gw.Recipe(anneal=Direct())
        trainer = gw.Trainer(
            story_model(), settings, train_dataset=parts[0], eval_dataset=parts[1], recipe=recipe,
            proxy=(story_model(), parts[0], None),
        )  # fmt: skip
        with pytest.raises(gw.RecipeError, match="measures with one that does not learn"):
            trainer.train()


def test_validation_samples_among_the_training_data_are_called_out(run: Any, parts: Any) -> None:
    both = concatenate_datasets([parts[0], parts[1].select(range(3))])
    with pytest.warns(UserWarning, match="3 of 20 validation samples also occur in the training data"):
        run(Direct(count=5), given=(both, parts[1]))
