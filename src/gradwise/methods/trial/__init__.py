"""A short trial of several methods, from the present weights."""

from gradwise.methods.trial.method import Trial
from gradwise.methods.trial.selecting import SelectTrial

__all__ = ["SelectTrial", "Trial"]
