"""From signals and decisions to the plan of a run: which training follows without knowing how it was made.

`Planner` holds a list of deciders, one for each of `select`, `anneal` and `order`. They see a `RunContext`,
never a trainer, and methods through their interfaces, never by name.
"""

from gradwise.planning.context import RunContext, Samples, Scorer
from gradwise.planning.epochs import make_plan
from gradwise.planning.planner import FixedPlanner, Planner

__all__ = ["FixedPlanner", "Planner", "RunContext", "Samples", "Scorer", "make_plan"]
