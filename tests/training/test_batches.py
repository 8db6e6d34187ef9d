"""How a plan is cut: ranks, accumulation and packing change who computes a sample, never which samples form a
step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise import Plan, PlanError, RecipeError, Segment
from gradwise.data import pack
from gradwise.training.batches import Batches


def served(batches: list[Batches]) -> list[list[int]]:
    """For each step the samples in the order of the plan, put together from all ranks."""
    steps = []
    for step in range(batches[0].steps):
        parts = [rank.of_step(step) for rank in batches]
        assert len({len(part) for part in parts}) == 1, "every rank makes as many passes"
        dealt = [parts[rank][turn] for turn in range(len(parts[0])) for rank in range(len(parts))]
        steps.append([index for part in dealt if part.counts for row in part.rows for index in row])
    return steps


@given(
    length=st.integers(1, 60),
    epochs=st.integers(1, 3),
    layout=st.sampled_from([(8, 8, 1), (8, 4, 1), (8, 2, 1), (8, 4, 2), (8, 2, 2), (8, 1, 4), (8, 2, 4)]),
)
def test_every_layout_serves_the_same_steps(length: int, epochs: int, layout: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(length)
    plan = Plan.of([rng.permutation(length) for _ in range(epochs)])  # type: ignore[misc]
    batch_size, micro_batch, ranks = layout
    dealt = served([Batches(plan, batch_size, micro_batch, rank, ranks) for rank in range(ranks)])
    alone = served([Batches(plan, batch_size, batch_size)])
    assert dealt == alone
    assert [index for step in dealt for index in step] == plan.indices.tolist()
    assert all(len(step) <= batch_size for step in dealt)


def test_a_step_never_reaches_over_an_epoch() -> None:
    batches = Batches(Plan.of([[0, 1, 2], [2, 1, 0]]), batch_size=2, micro_batch=1)
    assert served([batches]) == [[0, 1], [2], [2, 1], [0]]
    assert (batches.steps, batches.steps_per_epoch, batches.micro_batches_per_epoch) == (4, 2, 3)
    assert [batches.used(step) for step in range(5)] == [0, 2, 3, 5, 6]


@given(st.integers(1, 40), st.sampled_from([(8, 4, 1), (8, 2, 2), (6, 1, 3)]))
def test_micro_batches_per_epoch_counts_what_is_dealt(length: int, layout: tuple[int, int, int]) -> None:
    batch_size, micro_batch, ranks = layout
    batches = Batches(Plan.of([range(length)]), batch_size, micro_batch, 0, ranks)
    assert batches.micro_batches_per_epoch == sum(len(batches.of_step(step)) for step in range(batches.steps))
    short = -(-(length % batch_size) // micro_batch) % ranks != 0
    assert batches.has_stand_ins is short


def test_drop_last_leaves_out_what_fills_no_micro_batch() -> None:
    plan = Plan.of([range(11), range(11)])
    assert served([Batches(plan, 8, 4, drop_last=True)]) == [list(range(8))] * 2
    assert served([Batches(plan, 8, 2, drop_last=True)]) == [list(range(8)), [8, 9]] * 2
    with pytest.raises(RecipeError, match="3 rows fill no batch of 4"):
        Batches(Plan.of([range(3)]), 8, 4, drop_last=True)


@given(st.lists(st.integers(1, 10), min_size=2, max_size=40), st.integers(0, 5))
def test_packing_keeps_the_order_and_gives_every_epoch_as_many_steps(lengths: list[int], seed: int) -> None:
    sizes = np.array(lengths)
    rng = np.random.default_rng(seed)
    plan = Plan.of([rng.permutation(len(sizes)) for _ in range(3)])  # type: ignore[misc]
    batches = Batches(plan, 2, 1, pack=lambda indices: pack(sizes[indices], 10))
    assert [index for step in served([batches]) for index in step] == plan.indices.tolist()
    for step in range(batches.steps):
        for part in batches.of_step(step):
            assert all(sizes[list(row)].sum() <= 10 for row in part.rows)
    assert batches.steps == 3 * batches.steps_per_epoch


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(RecipeError, match="not a multiple"):
        Batches(Plan.of([[0]]), 8, 3)
    with pytest.raises(PlanError, match="same number of steps"):
        Batches(Plan.of([[0, 1, 2], [0]]), 1, 1)
    with pytest.raises(PlanError, match="no step 3"):
        Batches(Plan.of([[0, 1, 2]]), 1, 1).of_step(3)


def test_plans_that_the_trainer_would_miscount_are_refused() -> None:
    with pytest.raises(PlanError, match="same number of steps and of passes"):
        Batches(Plan.of([range(10), range(9)]), batch_size=4, micro_batch=1)
    inner = Plan((Segment(np.arange(5), 0, ("a",)), Segment(np.arange(5), 0, ("b",))), pool=5)
    assert Batches(inner, batch_size=4, micro_batch=4).steps == 4
    with pytest.raises(PlanError, match="whole steps"):
        Batches(inner, batch_size=4, micro_batch=1)
