"""D3 in a run: measured at live weights, what is ahead put in order, nothing else of the run changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from datasets import Dataset

import gradwise as gw
from gradwise.data import label_words
from gradwise.methods.baselines import Balanced
from gradwise.methods.d3 import D3
from gradwise.numerics.balance import imbalance
from tests.conftest import same_weights, some


@pytest.fixture
def run(story_model, arguments, speeches, tmp_path: Path) -> Callable[..., Any]:
    """Two epochs over 72 samples of three domains in steps of four; returns the trainer and its events."""

    def run(
        order: Any, *, name: str = "run", held_out: Any = None, sections: Any = None, **changes: Any
    ) -> Any:
        settings = {"num_train_epochs": 2, **changes}
        trainer = gw.Trainer(
            story_model(), arguments(name, **settings), train_dataset=speeches.select(range(72)),
            eval_dataset=held_out, recipe=gw.Recipe(order=order, **(sections or {})),
        )  # fmt: skip
        trainer.train()
        return trainer, order_events(tmp_path / name)

    return run


def order_events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == "order"]


def epochs(trainer: Any) -> list[np.ndarray]:
    plan = trainer.session.plan
    return [np.concatenate([s.indices for s in plan.of_epoch(e)]) for e in range(plan.epochs)]


MEASURING = [
    D3(units="domains", probes=2, target_samples=4, overhead=1.0),
    D3(units="domains", edges="lookahead", probes=2, target_samples=4, overhead=1.0),
    D3(units="domains", edges="first_order", probes=2, target_samples=4, overhead=1.0),
    D3(units="domains", edges="orders", trial_steps=2, target_samples=4, overhead=2.0),
    D3(units="batches", probes=2, target_samples=4, overhead=2.0, window=4, commit=2),
    D3(units="samples", edges="lookahead", neighbours=3, probes=1, target_samples=4, overhead=2.0),
    D3(units="clusters", probes=2, target_samples=4, overhead=2.0, size=2),
]


@pytest.mark.parametrize("order", some(MEASURING, 3), ids=lambda d3: f"{d3.units}-{d3.edges}")
def test_every_epoch_holds_every_sample_once(run: Any, order: D3, tmp_path: Path) -> None:
    trainer, events = run(order)
    for entries in epochs(trainer):
        assert sorted(entries.tolist()) == list(range(72))
    assert len(events) >= 2
    steps = [event["step"] for event in events]
    assert np.all(np.diff(steps) > 0) and steps[0] == 0
    assert "nodes" in events[0]
    for event in events:
        if event.get("graph") != event["step"]:  # fewer than two nodes were left to measure
            assert "unmeasured" in event
            continue
        table = pyarrow.parquet.read_table(tmp_path / "run" / "plan" / f"graph-{event['step']}.parquet")
        assert set(table["step"].to_pylist()) == {event["step"]}
        assert np.isfinite(table["weight"].to_numpy()).all()
    assert trainer.session.plan.digest == events[-1]["digest"]


@pytest.mark.parametrize(
    "order",
    [MEASURING[0], pytest.param(MEASURING[1], marks=pytest.mark.slow)],
    ids=lambda d3: f"{d3.units}-{d3.edges}",
)
def test_measuring_leaves_the_run_as_it_was(run: Any, order: D3) -> None:
    """The plan that comes of it, followed without any measuring, trains the same model."""
    measured, events = run(order, name="measured")
    assert any(event.get("nodes") for event in events)
    served = [entries.tolist() for entries in epochs(measured)]
    fixed = gw.Plan.of(served, pool=72)
    again = gw.Trainer(
        _fresh(measured), measured.args, train_dataset=measured.train_dataset, plan=fixed,
        run_dir=Path(measured.args.output_dir).with_name("again"),
    )  # fmt: skip
    again.train()
    assert same_weights(measured.model, again.model)


def _fresh(trainer: Any) -> Any:
    return type(trainer.model).from_pretrained(trainer.model.config._name_or_path)


def test_what_was_served_stays(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Every decision keeps what is behind it, and only changes the order of what is ahead in an epoch."""
    from gradwise.planning.ordering import Ordering

    seen, decide = [], Ordering.decide

    def watched(self: Any, context: Any, plan: Any, step: int) -> Any:
        after = decide(self, context, plan, step)
        seen.append((plan, after, 4 * step))
        return after

    monkeypatch.setattr(Ordering, "decide", watched)
    run(MEASURING[0])
    assert len(seen) > 2
    changed = 0
    for before, after, done in seen:
        assert np.array_equal(before.indices[:done], after.indices[:done])
        assert [len(s) for s in before.segments] == [len(s) for s in after.segments]
        for start, stop in ((done, 72 * (done // 72 + 1)), (72, 144)):
            assert sorted(before.indices[start:stop]) == sorted(after.indices[start:stop])
        changed += not np.array_equal(before.indices, after.indices)
    assert changed


def test_units_of_a_batch_make_batches_of_one_domain(run: Any) -> None:
    trainer, _ = run(D3(units="domains", size=4, overhead=1e-6))
    domain = np.array(trainer.train_dataset["domain"])
    for entries in epochs(trainer):
        batches = domain[entries].reshape(-1, 4)
        assert np.mean([len(set(batch)) == 1 for batch in batches]) == 1.0
        prefixes = np.cumsum(np.eye(3)[[int(batch[0][1]) for batch in batches]], axis=0)
        share = np.arange(1, 19)[:, None] / 3
        assert np.abs(prefixes - share).max() <= 1.0


def test_batches_hold_several_domains_by_default(run: Any) -> None:
    """Before influence is measured, which may then put units of one domain side by side."""
    trainer, _ = run(D3(units="domains", overhead=1e-6), per_device_train_batch_size=8)
    domain = np.array(trainer.train_dataset["domain"])
    for entries in epochs(trainer):
        assert np.mean([len(set(batch)) for batch in domain[entries].reshape(-1, 8)]) > 2


def test_overhead_bounds_how_often_is_measured(run: Any) -> None:
    """36 steps of four cost 144 forward/backward runs. With two probes of three domains and four of a target,
    a curvature costs 3 * 2 * 6 + 4 = 40, the first one 3 * 2 * 2 more."""
    settings: Any = {"probes": 2, "target_samples": 4}
    assert [e["step"] for e in run(D3(units="domains", **settings, overhead=0.4), name="a")[1]] == [0]
    assert [e["step"] for e in run(D3(units="domains", **settings, overhead=0.65), name="b")[1]] == [0, 18]
    assert [e["step"] for e in run(D3(units="domains", **settings, overhead=0.1), name="c")[1]] == []


def test_an_overhead_that_allows_nothing_is_said(story_model, arguments, speeches) -> None:
    trainer = gw.Trainer(
        story_model(),
        arguments(),
        train_dataset=speeches,
        recipe=gw.Recipe(order=D3(units="domains", overhead=0.01)),
    )
    sentences: list[str] = []
    trainer.session.tell = sentences.append
    trainer.train()
    sentence, forecast = sentences
    assert forecast.startswith("Deciding is expected to take ")
    assert "only balanced" in sentence and "order.overhead allows 1 " in sentence


def test_before_a_warm_up_the_peak_rate_counts(run: Any, tmp_path: Path) -> None:
    """Its first step moves nothing."""
    order = D3(units="domains", edges="lookahead", probes=2, target_samples=4, overhead=0.25)
    _, (event,) = run(order, lr_scheduler_type="linear", warmup_steps=4)
    assert event["nodes"] == 3 and event["step"] == 0
    table = pyarrow.parquet.read_table(tmp_path / "run" / "plan" / "graph-0.parquet")
    assert np.all(table["weight"].to_numpy() != 0)


def test_a_balanced_run_is_balanced_by_its_words_and_measures_nothing(run: Any) -> None:
    trainer, events = run(Balanced(), num_train_epochs=4)
    assert events == []
    words = label_words(trainer.train_dataset)
    orders = epochs(trainer)
    for entries in orders:
        assert sorted(entries.tolist()) == list(range(72))
        rng = np.random.default_rng(0)
        by_chance = min(imbalance(words, rng.permutation(72)) for _ in range(100))
        assert imbalance(words, entries) < by_chance
    assert len({tuple(entries.tolist()) for entries in orders}) >= 3


def test_with_grace_before_and_direct_at_the_end(run: Any, speeches: Any, monkeypatch: Any) -> None:
    """What each of them selects is kept; D3 only says in which order. The last seven of 36 steps decay,
    in the middle of an epoch."""
    from gradwise.planning.ordering import Ordering

    decide = Ordering.decide

    def watched(self: Any, context: Any, plan: Any, step: int) -> Any:
        after = decide(self, context, plan, step)
        for start, stop in ((4 * step, 29 * 4), (29 * 4, len(plan))):  # nothing is moved across the onset
            assert sorted(plan.indices[start:stop]) == sorted(after.indices[start:stop])
        return after

    monkeypatch.setattr(Ordering, "decide", watched)
    sections = {
        "select": gw.Grace(count=36, candidates="all", refresh_every=6, anchors=0.5),
        "anneal": gw.Direct(count=12, last=0.2),
    }
    wsd = {"lr_scheduler_type": "warmup_stable_decay", "num_train_epochs": 4}
    d3 = D3(units="domains", size=4, probes=2, target_samples=4, overhead=0.5)
    trainer, events = run(d3, held_out=speeches.select(range(72, 80)), sections=sections, **wsd)
    plan, steps = trainer.session.plan, [event["step"] for event in events]
    assert 29 in steps, "the annealing phase is put in order as it begins"
    assert len(set(plan.indices[29 * 4 :].tolist())) == 12
    folder = Path(trainer.args.output_dir)
    others = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in others if e["event"] == "refresh"] == [6, 12, 18, 24]
    assert all(len(s) % 4 == 0 for s in plan.segments)
    domain = np.array(trainer.train_dataset["domain"])
    batches = domain[plan.indices].reshape(-1, 4)
    assert np.mean([len(set(batch)) == 1 for batch in batches]) > 0.7


def test_only_layers_that_will_be_updated_are_moved(run: Any, monkeypatch: Any) -> None:
    learning = []
    measure = gw.Probe.lookahead

    def watched(self: Any, *rest: Any) -> Any:
        learning.append({n for n, p in self.model.named_parameters() if p.requires_grad and ".layers." in n})
        return measure(self, *rest)

    monkeypatch.setattr(gw.Probe, "lookahead", watched)
    grass = gw.Grass(active=2, period=3, probe=1)
    trainer, events = run(MEASURING[1], sections={"layers": grass})
    folder = Path(trainer.args.output_dir)
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    drawn = {line["step"]: set(line["active"]) for line in lines if line["event"] == "layers"}
    assert len(learning) == len(events)
    for event, names in zip(events, learning, strict=True):
        latest = max(step for step in drawn if step <= event["step"])
        assert {int(name.split(".layers.")[1].split(".")[0]) for name in names} == drawn[latest]


def test_only_what_is_trained_on_next_is_put_in_order(run: Any, monkeypatch: Any) -> None:
    """The rest is put in order again by the next measurement: the plan is the same, in a time that does not
    grow with what is ahead."""
    from gradwise.methods.d3.schedule import Windows
    from gradwise.planning import ordering

    placed, order_units = [], Windows.order

    def watched(self: Any, base: Any, features: Any, limit: Any, first: int | None = None) -> Any:
        placed.append(len(base) if first is None else min(first, len(base)))
        return order_units(self, base, features, limit, first)

    monkeypatch.setattr(Windows, "order", watched)
    d3 = D3(units="domains", probes=2, target_samples=4, overhead=2.0)
    trainer, events = run(d3, name="some")
    steps = [event["step"] for event in events]
    assert len(steps) > 3
    assert sum(placed) < 2 * 144
    served = trainer.session.plan.indices
    monkeypatch.setattr(ordering.Ordering, "_until_next", lambda *_: None)
    placed.clear()
    whole, _ = run(d3, name="all")
    assert sum(placed) > 2 * 144
    assert served.tolist() == whole.session.plan.indices.tolist()
    monkeypatch.undo()
    monkeypatch.setattr(ordering, "REARRANGED", 0)
    least, _ = run(d3, name="least")
    indices = least.session.plan.indices
    assert indices[:72].tolist() != served[:72].tolist() or indices[72:].tolist() != served[72:].tolist()
    for entries in epochs(least):
        assert sorted(entries.tolist()) == list(range(72))


@pytest.mark.parametrize("order", [MEASURING[0], MEASURING[5]], ids=lambda d3: f"{d3.units}-{d3.edges}")
def test_samples_without_label_tokens_are_not_measured(run: Any, speeches: Any, order: D3, monkeypatch: Any):
    """A step on one of them has no gradient; it ended the run."""
    silent = speeches.map(
        lambda row, place: {"labels": [-100] * len(row["labels"])} if place % 4 == 0 else row,
        with_indices=True,
    )
    monkeypatch.setattr(type(speeches), "select", lambda _, rows: Dataset.from_dict(silent[list(rows)]))
    _, events = run(order)
    nodes = [event["nodes"] for event in events if "nodes" in event]
    assert nodes and min(nodes) >= 2
    if order.units == "samples":
        assert min(nodes) < order.window, "a sample of the window had nothing to measure"


@pytest.mark.parametrize(("batch", "seen"), [(4, 72), (8, 72)])
def test_all_single_units_of_an_epoch_are_counted(run: Any, monkeypatch: Any, batch: int, seen: int) -> None:
    nodes, timetable = [], D3.timetable

    def watched(self: Any, steps: int, batch_size: int, count: int) -> Any:
        nodes.append(count)
        return timetable(self, steps, batch_size, count)

    monkeypatch.setattr(D3, "timetable", watched)
    run(D3(units="samples", window=None, overhead=1e-3), per_device_train_batch_size=batch)
    assert nodes == [seen]


class TestMistakes:
    @pytest.mark.parametrize(
        "order", [D3(units="samples"), D3(units="batches", size=2, window=4)], ids=lambda d3: d3.units
    )
    def test_windows_within_one_batch_are_refused(self, run: Any, order: D3) -> None:
        with pytest.raises(gw.RecipeError, match="all of one batch of 8, so that no batch would change"):
            run(order, per_device_train_batch_size=8)

    def test_more_domains_than_can_be_balanced(self, run: Any, monkeypatch: Any) -> None:
        from gradwise.methods.d3 import method

        monkeypatch.setattr(method, "MOST_BALANCED", 200)
        with pytest.raises(gw.RecipeError, match="found 3 domains, more than can be balanced over 72 units"):
            run(MEASURING[0])
        run(D3(units="domains", overhead=1e-6), name="unmeasured")

    def test_a_single_domain_is_named(self, run: Any, story_model, arguments, speeches) -> None:
        one = speeches.remove_columns("domain").add_column("domain", ["all"] * len(speeches))
        trainer = gw.Trainer(
            story_model(), arguments(), train_dataset=one, recipe=gw.Recipe(order=D3(units="domains"))
        )
        with pytest.raises(gw.RecipeError, match="d3 found only one of the domains"):
            trainer.train()

    def test_validation_that_is_not_there(self, run: Any) -> None:
        with pytest.raises(
            gw.RecipeError, match=r"order.target: validation needs one set of validation data"
        ):
            run(D3(units="domains", target="validation"))

    def test_several_sets_of_validation_data(self, run: Any, speeches: Any) -> None:
        several = {"one": speeches.select([72, 73]), "other": speeches.select([74, 75])}
        with pytest.raises(gw.RecipeError, match="needs one set of validation data"):
            run(D3(units="domains", target="validation"), held_out=several)

    def test_packing_is_refused_where_influence_is_measured(self, story_model, arguments, speeches) -> None:
        data = speeches.select(range(40))

        def trainer(order: Any) -> Any:
            return gw.Trainer(
                story_model(),
                arguments(),
                gw.Collator(0),
                data,
                recipe=gw.Recipe(order=order),
                packed_length=64,
            )

        with pytest.raises(gw.RecipeError, match="cannot go with packing yet"):
            trainer(D3(units="domains")).train()
        packed = trainer(Balanced())
        packed.train()
        assert sorted(packed.session.plan.indices.tolist()) == list(range(40))
