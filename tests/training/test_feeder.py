"""The feeder: the right samples for any step, nothing stale, the model's random state untouched."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gradwise import DataError, Plan, Segment
from gradwise.data import pack
from gradwise.training.batches import Batches
from gradwise.training.feeder import Feeder


class Watched:
    """Samples that remember who was fetched; with workers each process remembers its own."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        self.fetched.append(index)
        return index


def collate(samples: list[Any]) -> dict[str, Any]:
    return {"samples": samples, "labels": torch.zeros(1, dtype=torch.long)}


PLAN = Plan.of([[3, 0, 4, 1, 2, 5, 6], [6, 5, 4, 3, 2, 1, 0]])


def read(feeder: Feeder, step: int) -> list[int]:
    return [index for part in feeder.step(step) for index in part["samples"]]


def test_workers_draw_by_seed_rank_and_step() -> None:
    """What samples or a collator draw: with one seed for all, every rank would draw the same."""

    def noisy(samples: list[Any]) -> dict[str, Any]:
        return collate(samples) | {"noise": torch.rand(4)}

    def noise(seed: int, rank: int = 0, step: int = 0) -> list[float]:
        batches = Batches(Plan.of([list(range(8))]), 2, 1, rank, 2)
        feeder = Feeder(batches, Watched(8), noisy, seed=seed, num_workers=1)
        drawn = feeder.step(step)[0]["noise"].tolist()
        feeder.close()
        return drawn

    assert noise(1) == noise(1)
    draws = [noise(1), noise(2), noise(1, rank=1), noise(1, step=1)]
    assert len({tuple(each) for each in draws}) == 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_any_start_serves_the_rest_of_the_plan(workers: int, start: int) -> None:
    batches = Batches(PLAN, batch_size=3, micro_batch=1)
    feeder = Feeder(batches, Watched(7), collate, num_workers=workers)
    rest = [read(feeder, step) for step in range(start, batches.steps)]
    assert rest == [batches.samples(step).tolist() for step in range(start, batches.steps)]


def test_nothing_beyond_the_segment_is_fetched() -> None:
    samples = Watched(7)
    feeder = Feeder(Batches(PLAN, batch_size=3, micro_batch=3), samples, collate)
    for step in range(3):
        feeder.step(step)
    assert samples.fetched == PLAN.segments[0].indices.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_replaced_segment_is_served_at_once(workers: int) -> None:
    """Workers have fetched the whole first segment by its end, but nothing of the old second one."""
    feeder = Feeder(Batches(PLAN, 3, 3), Watched(7), collate, num_workers=workers)
    first = [read(feeder, step) for step in range(3)]
    fresh = PLAN.followed_by([Segment(np.array([1, 1, 1, 1, 1, 1, 1]), 1, ("refreshed",))], after=1)
    feeder.batches = Batches(fresh, 3, 3)
    assert first == [[3, 0, 4], [1, 2, 5], [6]]
    assert [read(feeder, step) for step in range(3, 6)] == [[1, 1, 1], [1, 1, 1], [1]]


def test_the_global_random_state_is_the_models() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    feeder = Feeder(Batches(PLAN, 3, 1), Watched(7), collate)
    for step in range(4):
        feeder.step(step)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rank_without_samples_gets_a_batch_without_effect() -> None:
    plan = Plan.of([[0, 1, 2]])
    ranks = [Feeder(Batches(plan, 4, 1, rank, 2), Watched(3), collate) for rank in range(2)]
    parts = [feeder.step(0) for feeder in ranks]
    assert [[part["samples"] for part in rank] for rank in parts] == [[[0], [2]], [[1], [0]]]
    assert [[int(part["labels"]) for part in rank] for rank in parts] == [[0, 0], [0, -100]]


def test_a_collator_without_labels_cannot_leave_a_rank_out() -> None:
    feeder = Feeder(Batches(Plan.of([[0, 1, 2]]), 4, 1, 1, 2), Watched(3), lambda rows: {"samples": rows})
    with pytest.raises(DataError, match="returns no labels"):
        feeder.step(0)


def test_packed_rows_reach_the_collator_as_lists() -> None:
    lengths = np.array([2, 2, 3, 1])
    packer: Callable[[Any], Any] = lambda indices: pack(lengths[indices], 4)  # noqa: E731
    feeder = Feeder(Batches(Plan.of([[0, 1, 2, 3]]), 2, 2, pack=packer), Watched(4), collate)
    assert feeder.step(0)[0]["samples"] == [[0, 1], [2, 3]]
