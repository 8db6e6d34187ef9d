"""Training: the plan, what serves it, layer policies around an optimizer, checkpoints. Knows no planning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradwise.training.layers import LayerSwitch
    from gradwise.training.offload import AdamW
    from gradwise.training.plan import Plan, Segment
    from gradwise.training.sampler import PlanSampler

# Looked up on first use: the plan and the sampler need neither transformers nor a recipe.
_HOMES = {
    "AdamW": "offload",
    "LayerSwitch": "layers",
    "Plan": "plan",
    "PlanSampler": "sampler",
    "Segment": "plan",
}

__all__ = ["AdamW", "LayerSwitch", "Plan", "PlanSampler", "Segment"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradwise.training' has no attribute {name!r}")
    return getattr(import_module(f"gradwise.training.{_HOMES[name]}"), name)
