"""From signals and decisions to the plan of a run: what training follows without knowing how it was made."""

from gradwise.planning.decide import decide
from gradwise.planning.make import make_plan

__all__ = ["decide", "make_plan"]
