"""A torch sampler that serves a plan and can stop and resume anywhere."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from gradwise.errors import PlanError
from gradwise.text import shown
from gradwise.training.plan import Plan


class PlanSampler(Sampler[int]):
    """Yields the indices of a plan in order, whatever the batch size or number of loader workers.

    One iteration serves the plan from where it stands to its end, and the next one starts the plan again.
    With `by_epoch` one iteration serves one epoch of the plan, for trainers that count epochs themselves.

    A loader with workers draws ahead of what is trained on. Its queue cannot be seen from here, so
    `state_dict` takes the number of samples that training has used; without workers it may be left out.

    >>> sampler = PlanSampler(Plan.of([[2, 0, 1]]))
    >>> stream = iter(sampler)
    >>> next(stream), sampler.state_dict()["position"]
    (2, 1)
    >>> again = PlanSampler(Plan.of([[2, 0, 1]]))
    >>> again.load_state_dict(sampler.state_dict())
    >>> list(again)
    [0, 1]
    >>> list(again)
    [2, 0, 1]

    Args:
        plan: what to serve.
        by_epoch: serve one epoch of the plan in each iteration; after the last one the first comes again.
    """

    def __init__(self, plan: Plan, *, by_epoch: bool = False) -> None:
        self.plan = _checked(plan)
        self.by_epoch = by_epoch
        self.position = int(plan.starts[0])

    def __len__(self) -> int:
        """Samples that the iteration has still to serve, the next one if it is over; with `by_epoch` all
        samples of its epoch, since trainers ask only once."""
        start, end = self.bounds(self.position)
        return end - (start if self.by_epoch or self.position == end else self.position)

    def __iter__(self) -> Iterator[int]:
        first = int(self.plan.starts[0])
        if self.position == int(self.plan.starts[-1]):
            self.position = first
        epoch = self._epoch(self.position)
        # The plan as it is by then, see `replace`.
        while self.position < int(self.plan.starts[-1]) and (
            not self.by_epoch or self._epoch(self.position) == epoch
        ):
            self.position += 1
            yield int(self.plan.indices[self.position - 1 - first])

    def bounds(self, position: int) -> tuple[int, int]:
        """First position of the iteration that serves `position`, and the one behind its last."""
        starts = self.plan.starts
        if not self.by_epoch:
            return int(starts[0]), int(starts[-1])
        epoch = self._epoch(position if position < starts[-1] else int(starts[0]))
        inside = [n for n, segment in enumerate(self.plan.segments) if segment.epoch == epoch]
        return int(starts[inside[0]]), int(starts[inside[-1] + 1])

    def _epoch(self, position: int) -> int:
        """Epoch of the sample at `position`."""
        return self.plan.segments[int(np.searchsorted(self.plan.starts, position, side="right")) - 1].epoch

    def replace(self, plan: Plan, used: int | None = None) -> None:
        """Continue with another plan that agrees on everything used so far.

        Args:
            plan: the new plan.
            used: samples that training has used, where a loader draws ahead; what lies beyond in the loader's
                queue belongs to the old plan, so that loader must be closed and a new one made.

        Raises:
            PlanError: when the new plan contradicts what was already used.
        """
        position = self.position if used is None else used
        if not self.plan.agrees_with(_checked(plan), position):
            raise PlanError(
                f"The new plan differs from the old one within the {position} samples already served."
            )
        self.plan, self.position = plan, position

    def state_dict(self, used: int | None = None) -> dict[str, Any]:
        """Where the stream stands: the position and the plan's digest."""
        return {"position": self.position if used is None else used, "digest": self.plan.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; raises PlanError when that was another plan."""
        if not isinstance(state, dict) or not isinstance(state.get("position"), int) or "digest" not in state:
            raise PlanError(f"The state is none that a PlanSampler has given; found {shown(state)}.")
        if state["digest"] != self.plan.digest:
            raise PlanError(
                f"The state belongs to plan {state['digest'][:12]}, this is {self.plan.digest[:12]}."
            )
        first, end = int(self.plan.starts[0]), int(self.plan.starts[-1])
        if not first <= state["position"] <= end:
            raise PlanError(
                f"The state's position {state['position']} is outside a plan of {len(self.plan)}."
            )
        self.position = int(state["position"])


def _checked(plan: object) -> Plan:
    if not isinstance(plan, Plan):
        raise PlanError(f"A PlanSampler serves a gradwise.Plan; found {type(plan).__name__}.")
    return plan
