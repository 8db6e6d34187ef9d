"""What takes a planner's place where there is nothing to decide."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from gradwise.errors import PlanError
from gradwise.training.plan import Plan
from gradwise.training.record import Record


class FixedPlan:
    """A planner whose plan was made by somebody else."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.later, self.measuring = 0.0, 0.0
        self.tell: Callable[[str], Any] = lambda _: None

    def ahead(self) -> float:
        return 0.0

    def due(self, step: int) -> bool:  # noqa: ARG002
        return False

    def first(self, passes: Callable[[Plan], int], record: Record) -> Plan:  # noqa: ARG002
        plan = self.plan
        if plan.dropped is not None or plan.until is not None:
            raise PlanError("The plan holds a part of another run only, whose later epochs it does not know.")
        if (asked := passes(plan)) > plan.epochs:
            raise PlanError(
                f"The plan has {plan.epochs} epochs, and the run asks for {asked:,}; train less, or give a "
                "plan of as many."
            )
        return plan

    def again(self, plan: Plan, served: int, step: int, record: Record) -> Plan:  # noqa: ARG002
        raise AssertionError("nothing is ever due")

    def check_resumed(self, plan: Plan, step: int) -> None:
        pass

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        pass
