"""PlanSampler: the plan's order whatever the loader does, stopped and continued anywhere."""

import pytest
from torch.utils.data import DataLoader

from gradwise import Plan, PlanError, PlanSampler, Segment

PLAN = Plan.of([[4, 2, 0, 1, 3], [0, 3, 1, 4, 2]])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_a_loader_serves_the_plan(workers: int, batch_size: int) -> None:
    loader = DataLoader(range(5), sampler=PlanSampler(PLAN), batch_size=batch_size, num_workers=workers)  # type: ignore[arg-type]
    served = [int(index) for batch in loader for index in batch]
    assert served == PLAN.indices.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_it_continues_behind_what_training_used(workers: int) -> None:
    sampler = PlanSampler(PLAN)
    loader = DataLoader(range(5), sampler=sampler, batch_size=2, num_workers=workers)  # type: ignore[arg-type]
    stream = iter(loader)
    used = [int(index) for _ in range(2) for index in next(stream)]
    state = sampler.state_dict(used=len(used))
    again = PlanSampler(PLAN)
    again.load_state_dict(state)
    assert len(again) == len(PLAN) - 4
    assert used + list(again) == PLAN.indices.tolist()


def test_a_replacement_must_agree_with_what_was_served() -> None:
    sampler = PlanSampler(PLAN)
    stream = iter(sampler)
    first = [next(stream) for _ in range(5)]
    ahead = PLAN.followed_by([Segment(PLAN.indices[:2], 1, ("refreshed",))], after=1)
    sampler.replace(ahead)
    assert first + list(stream) == [4, 2, 0, 1, 3, 4, 2]
    with pytest.raises(PlanError, match="within the 7 samples"):
        sampler.replace(PLAN)


def test_a_state_of_another_plan_is_refused() -> None:
    with pytest.raises(PlanError, match="belongs to plan"):
        PlanSampler(PLAN).load_state_dict(PlanSampler(Plan.of([[0]])).state_dict())
    with pytest.raises(PlanError, match="outside"):
        PlanSampler(PLAN).load_state_dict({"position": 11, "digest": PLAN.digest})


def test_iterating_again_starts_the_plan_again() -> None:
    sampler = PlanSampler(PLAN)
    assert [list(sampler) for _ in range(2)] == [PLAN.indices.tolist()] * 2
    assert len(sampler) == len(PLAN)
    again = PlanSampler(PLAN)
    again.load_state_dict(sampler.state_dict())  # taken at the plan's end
    assert list(again) == PLAN.indices.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_may_be_an_epoch_of_the_plan(workers: int) -> None:
    halves = Plan((*PLAN.segments[:1], *(Segment(part, 1, ("half",)) for part in ([0, 3], [1, 4, 2]))), 5)  # type: ignore[arg-type]
    sampler = PlanSampler(halves, by_epoch=True)
    loader = DataLoader(range(5), sampler=sampler, batch_size=2, num_workers=workers)  # type: ignore[arg-type]
    served = []
    for _ in range(3):
        assert (len(sampler), len(loader)) == (5, 3)
        served.append([int(index) for batch in loader for index in batch])
    assert served == [[4, 2, 0, 1, 3], [0, 3, 1, 4, 2], [4, 2, 0, 1, 3]]


@pytest.mark.parametrize("used", range(11))
def test_an_epoch_resumes_within_itself(used: int) -> None:
    sampler = PlanSampler(PLAN, by_epoch=True)
    sampler.load_state_dict({"position": used, "digest": PLAN.digest})
    assert len(sampler) == 5
    rest = PLAN.indices.tolist()[used:] or PLAN.indices.tolist()
    assert list(sampler) == rest[: 5 - used % 5]
