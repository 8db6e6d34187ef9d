"""`gradwise compare` without the command line: several arms of one recipe, at equal cost, over seeds."""

from gradwise.comparison.compare import ComparisonOutcome, compare

__all__ = ["ComparisonOutcome", "compare"]
