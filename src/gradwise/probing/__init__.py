"""What decisions ask of a model that is being trained: what a step would change, and how gradients bend."""

from gradwise.probing.answers import Ahead, Bends, Orders
from gradwise.probing.probe import Probe, check_precision

__all__ = ["Ahead", "Bends", "Orders", "Probe", "check_precision"]
