"""Forecasts for a recipe: peak memory by part and shares of time, before anything is loaded."""

from gradwise.estimating.estimate import Estimate, estimate, expected_memory

__all__ = ["Estimate", "estimate", "expected_memory"]
