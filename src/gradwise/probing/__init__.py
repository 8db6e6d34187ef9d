"""What decisions ask of a model that is being trained: what a step would change, and how gradients bend."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradwise.probing.results import GradientProducts, LookaheadLosses, Orders

if TYPE_CHECKING:
    from gradwise.probing.probe import Probe, check_checkpoints, check_precision

__all__ = ["GradientProducts", "LookaheadLosses", "Orders", "Probe", "check_checkpoints", "check_precision"]


def __getattr__(name: str) -> Any:
    # Looked up on first use: methods need the answers only, and torch takes seconds to import.
    if name not in ("Probe", "check_checkpoints", "check_precision"):
        raise AttributeError(f"module 'gradwise.probing' has no attribute {name!r}")
    return getattr(import_module("gradwise.probing.probe"), name)
