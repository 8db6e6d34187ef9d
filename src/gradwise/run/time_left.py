"""The time that a run still takes: its steps, the decisions to come, evaluations and checkpoints.

A rate of steps alone is far off early in a run: what is decided before the first step would be counted as
part of every step, and refreshes, the annealing selection and evaluations would not be counted at all. What
was measured in this run is used as soon as there is something; before that, the forecast. Nothing is decided
by it.
"""

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple

from gradwise.methods.cost_counts import ORDINARY
from gradwise.training.record import CHECKPOINT, EVALUATION

if TYPE_CHECKING:
    from gradwise.session import Session

EVENTS = {"select": "refresh", "order": "order", "anneal": "anneal"}
"""The event of each decision that is made while a run trains, by section."""


class TimeLeft:
    """Args:
    session: of a run that is about to make its next step.
    """

    def __init__(self, session: "Session") -> None:
        self._session = session
        schedule = session.layout.schedule_of(session.schedule)
        self._decisions = session.planner.costly_steps(schedule)
        self._steps = session.trainer.state.max_steps
        self._evaluations = _due_steps(session, "eval", session.args.eval_delay)
        self._checkpoints = _due_steps(session, "save", 0)
        self._began = (session.step, self._training)

    @property
    def _training(self) -> float:
        """Seconds of steps so far, without decisions."""
        record = self._session.record
        return record.seconds - record.deciding

    def seconds(self) -> float | None:
        """Seconds from now to the end of the last step; None before there is a step to measure."""
        session = self._session
        done, before = session.step, self._began
        if done == before[0]:
            return None
        each = (self._training - before[1]) / (done - before[0])
        if done == before[0] + 1:
            # The first step warms up; from the second on, it is left out.
            self._began = (done, self._training)
        # After a tenth of a run this estimate was 0.84 to 1.21 of the truth in 16 runs, and the mean rate of
        # steps 0.95 to 2.48 (docs/results/estimate-time.md).
        left = self._steps - done
        # Layers are drawn by their switch and are no step of the planner. What draws have taken is spread
        # over the steps.
        _, drawing = session.record.spent.get("layers", (0, 0.0))
        seconds = max(0.0, each) * left + drawing * left / done
        for section, steps in self._decisions.items():
            to_come = len(steps) - bisect_left(steps, done)
            seconds += to_come * self._decision(section, each)
        seconds += _after(self._evaluations, done) * self._evaluation(each)
        return seconds + _after(self._checkpoints, done) * self._mean(CHECKPOINT)

    def _decision(self, section: str, each: float) -> float:
        """Seconds of one decision: as measured, or else as forecast."""
        record = self._session.record
        if EVENTS[section] in record.spent:
            return self._mean(EVENTS[section])
        return record.ahead.get(section, 0.0) * each * self._steps

    def _evaluation(self, each: float) -> float:
        """Seconds of one evaluation: as measured, or else as many forward passes as there are samples."""
        if EVALUATION in self._session.record.spent:
            return self._mean(EVALUATION)
        held_out: Any = self._session.trainer.eval_dataset
        sets = held_out.values() if isinstance(held_out, dict) else [held_out]
        samples = sum(len(one) for one in sets if hasattr(one, "__len__"))
        return each * samples / self._session.layout.batch_size / ORDINARY

    def _mean(self, kind: str) -> float:
        times, total = self._session.record.spent.get(kind, (0, 0.0))
        return total / times if times else 0.0


def _after(due: "_Due", done: int) -> int:
    """How many of some steps are still to be made."""
    return len(due.steps) - bisect_left(due.steps, done + 1) + (due.last > done)


class _Due(NamedTuple):
    """Steps after which the Trainer does something. A range, since a run can be endless."""

    steps: range = range(0)
    last: int = 0
    """The run's last step where that is not among the others; 0 otherwise."""


def _due_steps(session: "Session", what: str, delay: float) -> _Due:
    """Steps after which the Trainer evaluates or saves."""
    args: Any = session.args
    strategy = str(getattr(getattr(args, f"{what}_strategy"), "value", ""))
    steps = session.trainer.state.max_steps
    interval = getattr(session.trainer.state, f"{what}_steps", 0)
    every = {"steps": interval, "epoch": session.schedule.steps_per_epoch}
    period = int(every.get(strategy) or 0)
    if period <= 0:
        return _Due()
    waits = delay * (period if strategy == "epoch" else 1)
    first = max(1, math.ceil(waits / period)) * period
    # The Trainer does both at a run's end as well.
    return _Due(range(first, steps + 1, period), steps if steps % period and steps >= waits else 0)
