"""Per-sample signals from one scoring run. This package does not use the methods that decide by them."""

from gradwise.signals.collect import collect
from gradwise.signals.quantities import Signals

__all__ = ["Signals", "collect"]
