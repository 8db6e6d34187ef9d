"""What one pass over samples tells about each of them. Knows nothing of the methods that decide on it."""

from gradwise.signals.collect import collect
from gradwise.signals.quantities import Signals

__all__ = ["Signals", "collect"]
