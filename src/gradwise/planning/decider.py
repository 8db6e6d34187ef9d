"""One decision of a run, made at its start or again while it trains."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from gradwise.methods.interfaces import Arrays
from gradwise.planning.context import RunContext
from gradwise.training.layout import Schedule
from gradwise.training.plan import Plan

MOST_COUNTED = 100_000
"""Steps that are gone through to count decisions. A run can be endless, and stop before its last step."""


class DecisionCost(NamedTuple):
    """What decisions are expected to cost while a run trains."""

    seconds: float = 0.0
    """Total seconds of decisions at certain steps."""
    seconds_per_step: float = 0.0
    """Seconds of recurring decisions, spread over the steps."""
    fraction: float = 0.0
    """Cost as a fraction of the training's forward/backward passes."""

    def plus(self, other: "DecisionCost") -> "DecisionCost":
        """Both together."""
        return DecisionCost(*(first + second for first, second in zip(self, other, strict=True)))


class Decider(ABC):
    """Decides a part of what a run trains on.

    The planner calls, before anything is trained: `check`, `prepare`, then `decide` at step 0 for the first
    plan, then `planned`. While the run trains it calls `decide` before every step at which the decision is
    `due`, with the weights as they are then. What a decider remembers goes into checkpoints through
    `state_dict`.

    Base methods do nothing, so that a decider defines only what it needs.
    """

    name: ClassVar[str]
    """Section of the recipe, and prefix of its arrays in a checkpoint."""

    @property
    def needs(self) -> frozenset[str]:
        """Signals of every sample that must be known before the first step."""
        return frozenset()

    def check(self, context: RunContext) -> None:
        """Refuse, before anything is spent, what could not be decided later; raises RecipeError."""

    def prepare(self, context: RunContext) -> RunContext:
        """Settle what the decision may cost, write down what was measured for that, and say it.

        Returns:
            The context with what was measured in its recipe.
        """
        return context

    def planned(self, context: RunContext, plan: Plan) -> dict[str, Any]:
        """Settle what depends on the first plan; returns plain values for the record."""
        return {}

    def forecast(self, context: RunContext) -> DecisionCost:
        """What deciding is expected to cost from now on."""
        return DecisionCost()

    @property
    def recurs(self) -> bool:
        """Whether the decision can be due after the first step."""
        return False

    def due(self, step: int, schedule: Schedule) -> bool:
        """Whether to decide before a step."""
        return False

    def costly_steps(self, schedule: Schedule) -> list[int]:
        """The steps before which the decision is made, ascending, but for those at which it costs next to
        nothing; of a longer run, those among its first `MOST_COUNTED` steps."""
        steps = range(min(schedule.steps, MOST_COUNTED))
        return [step for step in steps if self.due(step, schedule)] if self.recurs else []

    def while_training(self, share: float) -> float:
        """The part of the expected cost, in all `share`, that comes after the first step."""
        return share

    @abstractmethod
    def decide(self, context: RunContext, plan: Plan, step: int) -> Plan:
        """The plan from `step` on; the segments that were served stay as they are.

        Args:
            context: of the run.
            plan: followed so far.
            step: optimizer steps done.
        """

    def state_dict(self) -> Arrays:
        """What has to be remembered besides the plan; empty if nothing is left to decide."""
        return {}

    def load_state_dict(self, arrays: Arrays, context: RunContext) -> None:
        """Remember what `state_dict` gave."""

    def check_resumed(self, context: RunContext, plan: Plan, step: int) -> None:
        """Raise CheckpointError if the plan of a resumed run does not fit what is still to be decided."""


def served(schedule: Schedule, step: int) -> int:
    """Segments of the plan that were served before a step."""
    batches = schedule.batches
    return batches.segment(step) if step < batches.steps else len(batches.plan.segments)


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of the parts of a decision, for the record."""
    return {name: round(value, 4) for name, value in seconds.items()}
