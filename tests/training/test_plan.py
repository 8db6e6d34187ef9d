"""The plan: immutable, hashed, and the same after a trip to disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise import Plan, PlanError, Segment

epochs_strategy = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=30), min_size=1, max_size=4)


@given(epochs_strategy)
def test_a_saved_plan_is_the_same_plan(
    tmp_path_factory: pytest.TempPathFactory, epochs: list[list[int]]
) -> None:
    plan = Plan.of(epochs, pool=51)
    path = tmp_path_factory.mktemp("plan") / "plan.safetensors"
    plan.save(path)
    loaded = Plan.load(path)
    assert loaded.digest == plan.digest and loaded.pool == 51
    assert loaded.indices.tolist() == [index for epoch in epochs for index in epoch]
    assert [segment.epoch for segment in loaded.segments] == list(range(len(epochs)))


def test_reasons_and_weights_survive(tmp_path: Path) -> None:
    segment = Segment(
        np.array([3, 1, 2]), 0, ("a", "b"), reasons=np.array([0, 1, 0]), weights=np.array([0.5, 2.0, 0.1])
    )
    Plan((segment,), pool=4).save(tmp_path / "p")
    loaded = Plan.load(tmp_path / "p").segments[0]
    assert [loaded.reason(i) for i in range(3)] == ["a", "b", "a"]
    assert loaded.weights is not None and loaded.weights.tolist() == [0.5, 2.0, 0.1]


@given(epochs_strategy, st.integers(0, 2**31), st.integers(0, 50))
def test_any_change_changes_the_digest(epochs: list[list[int]], where: int, value: int) -> None:
    plan = Plan.of(epochs, pool=51)
    epoch = where % len(epochs)
    place = where % len(epochs[epoch])
    changed = [list(indices) for indices in epochs]
    changed[epoch][place] = value
    same = changed == epochs
    other = Plan.of(changed, pool=51)
    assert (other.digest == plan.digest) is same
    # What lies before the changed segment keeps its digests: that is how two plans are seen to agree.
    assert other.digests[:epoch] == plan.digests[:epoch]


def test_digest_covers_reasons_weights_epochs_and_pool() -> None:
    base = Segment(np.array([0, 1]), 0, ("a",))
    variants = [
        Plan((base,), 2),
        Plan((base,), 3),
        Plan((Segment(np.array([0, 1]), 0, ("b",)),), 2),
        Plan((Segment(np.array([0, 1]), 0, ("a",), weights=np.array([1.0, 1.0])),), 2),
        Plan((Segment(np.array([0]), 0, ("a",)), Segment(np.array([1]), 0, ("a",))), 2),
        Plan((Segment(np.array([0]), 0, ("a",)), Segment(np.array([1]), 1, ("a",))), 2),
    ]
    assert len({plan.digest for plan in variants}) == len(variants)


def test_nobody_can_alter_a_plan() -> None:
    mine = np.array([0, 1, 2])
    plan = Plan.of([mine])  # type: ignore[list-item]
    mine[0] = 2
    assert plan.indices.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        plan.segments[0].indices[0] = 2


def test_a_later_decision_replaces_what_is_ahead_only() -> None:
    plan = Plan.of([[0, 1, 2], [2, 1, 0], [1, 0, 2]])
    changed = plan.followed_by([Segment(np.array([0, 0, 0]), 1, ("refreshed",))], after=1)
    assert changed.indices.tolist() == [0, 1, 2, 0, 0, 0]
    assert changed.digests[0] == plan.digests[0] and changed.digest != plan.digest
    assert plan.agrees_with(changed, 3) and not plan.agrees_with(changed, 4)
    assert changed.agrees_with(plan, 3) and not changed.agrees_with(plan, 4)


@given(epochs_strategy, epochs_strategy, st.integers(0, 60))
def test_agreement_is_equality_of_the_served_part(
    one: list[list[int]], other: list[list[int]], position: int
) -> None:
    left, right = Plan.of(one, pool=51), Plan.of(other, pool=51)
    position = min(position, len(left))
    if left.agrees_with(right, position):
        assert left.indices[:position].tolist() == right.indices[:position].tolist()
    assert left.agrees_with(left, position)


def test_altered_cut_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    Plan.of([[0, 1, 2, 3]]).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PlanError, match=r"altered|only 4"):
        Plan.load(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(PlanError, match="is damaged"):
        Plan.load(path)
    path.unlink()
    with pytest.raises(PlanError, match="is missing"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan((), 3), "at least one segment"),
        (lambda: Plan.of([[]]), "at least one index"),
        (lambda: Plan.of([[-1]], pool=3), "negative"),
        (lambda: Plan.of([[5]], pool=3), "only 3"),
        (lambda: Plan((Segment(np.array([0]), 1, ("a",)),), 1), "0, 1, 2"),
        (lambda: Segment(np.array([0]), 0, ("a", "b")), "which index has which"),
        (lambda: Segment(np.array([0]), 0, ("a",), reasons=np.array([1])), "outside its list"),
        (lambda: Segment(np.array([0, 1]), 0, ("a",), weights=np.array([1.0])), "shape"),
        (lambda: Plan.of([[0]]).followed_by([], after=2), "cannot keep 2"),
    ],
)
def test_impossible_plans_are_refused(make, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make()
