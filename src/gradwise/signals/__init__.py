"""Per-sample signals from one scoring run. This package does not use the methods that decide by them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradwise.signals.quantities import Signals

if TYPE_CHECKING:
    from gradwise.signals.collecting import collect

__all__ = ["Signals", "collect"]


def __getattr__(name: str) -> Any:
    # Looked up on first use: methods need the arrays only, and torch takes seconds to import.
    if name != "collect":
        raise AttributeError(f"module 'gradwise.signals' has no attribute {name!r}")
    return import_module("gradwise.signals.collecting").collect
