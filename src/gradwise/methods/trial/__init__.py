"""A short race between methods, from the present weights."""

from gradwise.methods.trial.method import Trial

__all__ = ["Trial"]
