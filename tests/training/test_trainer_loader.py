"""Streamed data in gradwise's Trainer: a layer policy, and nothing that needs positions."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset

import gradwise as gw
from gradwise.training.trainer_loader import Position, RepeatedPrompts, TrainerLoader
from tests.conftest import same_weights

GRASS = gw.Recipe(layers=gw.Grass(active=2, period=2, probe=1))


@pytest.fixture
def stream(speeches: Dataset) -> Dataset:
    """20 speeches, five batches of four."""
    return speeches.select(range(20)).select_columns(["input_ids", "labels"])


@pytest.fixture
def streamed(story_model: Callable[[], Any], arguments: Callable[..., Any], stream: Dataset) -> Any:
    """Makes a Trainer on streamed data."""

    def make(name: str, *, recipe: gw.Recipe | None = GRASS, data: Any = None, **options: Any) -> Any:
        settings = arguments(name, **({"max_steps": 6, "save_strategy": "steps", "save_steps": 2} | options))
        data = data or stream.to_iterable_dataset()
        if recipe is None:
            return transformers.Trainer(story_model(), settings, gw.Collator(0), data)  # type: ignore[arg-type]
        return gw.Trainer(story_model(), settings, gw.Collator(0), data, recipe=recipe)  # type: ignore[arg-type]

    return make


class Sized(IterableDataset):
    """A stream that knows its length."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_without_decisions_it_is_the_plain_trainer(streamed: Any, accumulation: int) -> None:
    options = {"max_steps": 2, "gradient_accumulation_steps": accumulation}
    ours = streamed("ours", recipe=gw.Recipe(), **options)
    theirs = streamed("theirs", recipe=None, **options)
    ours.train()
    theirs.train()
    assert same_weights(ours.model, theirs.model)


def test_a_stream_is_trained_on_from_its_beginning_though_layers_were_measured_on_it(
    streamed: Any, stream: Dataset
) -> None:
    served: list[list[list[int]]] = []

    def collate(rows: list[Any]) -> Any:
        served.append([row["input_ids"] for row in rows])
        return gw.Collator(0)(rows)

    trainer = streamed("out", max_steps=20)
    trainer.data_collator = collate
    trainer.train()
    batches = [stream[start : start + 4]["input_ids"] for start in range(0, 20, 4)]
    assert served[:20] == batches * 4
    events = [
        json.loads(line) for line in Path(trainer.args.output_dir, "events.jsonl").read_text().splitlines()
    ]
    drawn = [event["active"] for event in events if event["event"] == "layers"]
    assert len(drawn) == 10 and all(len(active) == 2 for active in drawn)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


@pytest.mark.parametrize("kind", ["unsized", "sized"])
@pytest.mark.parametrize("step", [2, 4, 6])
def test_stopped_and_resumed(streamed: Any, stream: Dataset, kind: str, step: int) -> None:
    """Five steps are an epoch: the last checkpoint lies in the second."""
    data = None if kind == "unsized" else Sized(stream)
    whole = streamed("whole", data=data, max_steps=8)
    whole.train()
    resumed = streamed("whole", data=data, max_steps=8)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / f"checkpoint-{step}"))
    assert same_weights(whole.model, resumed.model)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            gw.Recipe(select=gw.baselines.RandomSubset(count=2)),
            "select cannot be used here.*stream.*`layers` alone",
        ),
        (gw.Recipe(order=gw.D3()), "order cannot be used here"),
        (gw.Recipe(weights="loss"), "weights: loss cannot be used here"),
    ],
)
def test_what_needs_positions_is_refused(streamed: Any, recipe: gw.Recipe, said: str) -> None:
    with pytest.raises(gw.RecipeError, match=said):
        streamed("out", recipe=recipe)


def test_a_plan_or_packing_of_a_stream_is_refused(
    story_model: Callable[[], Any], arguments: Callable[..., Any], stream: Dataset
) -> None:
    data: Any = stream.to_iterable_dataset()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"plan": gw.Plan.of([[0]])}, "a plan"), ({"packed_length": 64}, "packed_length"),
    ]  # fmt: skip
    for options, said in cases:
        with pytest.raises(gw.RecipeError, match=f"{said} cannot be used here"):
            gw.Trainer(story_model(), arguments(max_steps=2), gw.Collator(0), data, **options)


def test_an_empty_stream_is_refused(streamed: Any, stream: Dataset) -> None:
    with pytest.raises(gw.DataError, match="empty"):
        streamed("out", data=stream.to_iterable_dataset().filter(lambda _: False)).train()


def test_a_checkpoint_of_a_plan_does_not_continue_on_a_stream(
    streamed: Any, stream: Dataset, story_model: Callable[[], Any], arguments: Callable[..., Any]
) -> None:
    settings = arguments("whole", max_steps=6, save_strategy="steps", save_steps=2)
    gw.Trainer(story_model(), settings, gw.Collator(0), stream, recipe=GRASS).train()
    with pytest.raises(gw.CheckpointError, match="follows a plan"):
        streamed("whole").train(resume_from_checkpoint=True)


@pytest.mark.parametrize("count", [3, 4])
def test_steps_of_a_loader_with_a_length_end_with_its_epoch(count: int) -> None:
    loader = TrainerLoader(DataLoader(range(count), batch_size=1), 2, begin=lambda _: None)  # type: ignore[arg-type]
    sizes = [len(loader.step()) for _ in range(4)]
    assert sizes == ([2, 1, 2, 1] if count == 3 else [2] * 4)
    assert loader.steps_per_epoch == 2


def test_what_is_measured_ahead_is_served_again_and_not_used() -> None:
    loader = TrainerLoader(DataLoader(range(6), batch_size=1), 1, begin=lambda _: None)  # type: ignore[arg-type]
    seen = [int(loader.ahead(number)[0]) for number in (0, 2, 1)]
    assert seen == [0, 2, 1] and loader.position == Position()
    assert [int(loader.step()[0]) for _ in range(7)] == [0, 1, 2, 3, 4, 5, 0]
    assert loader.position == Position(1, 1)


def test_opening_a_loader_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    loader = TrainerLoader(DataLoader(range(6), batch_size=1), 1, begin=lambda _: None)  # type: ignore[arg-type]
    loader.step()
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("chunk", "group", "repeats"), [(2, 3, 1), (3, 2, 2), (1, 4, 3)])
def test_prompts_are_repeated_as_trl_repeats_them(chunk: int, group: int, repeats: int) -> None:
    utils = pytest.importorskip("trl.trainer.utils")
    theirs = utils.RepeatSampler(range(7), group, chunk, repeats, shuffle=False)
    ours = RepeatedPrompts(chunk, group, repeats)
    ours.order = range(7)
    assert list(ours) == list(theirs) and len(ours) == len(theirs) == len(list(ours))
