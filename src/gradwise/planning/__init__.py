"""From signals and decisions to the plan of a run: what training follows without knowing how it was made."""

from gradwise.planning.decide import Planner
from gradwise.planning.fixed import FixedPlan
from gradwise.planning.make import make_plan

__all__ = ["FixedPlan", "Planner", "make_plan"]
