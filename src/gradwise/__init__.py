"""Fine-tune Hugging Face language models, with samples, order and layers chosen by the gradients of the
run."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradwise import numerics
    from gradwise.data import Collator, Data, Source
    from gradwise.errors import (
        CheckpointError,
        DataError,
        EvaluationError,
        GradwiseError,
        PlanError,
        RecipeError,
        SignalError,
    )
    from gradwise.methods import D3, Direct, Grace, Grass, Order, Selection, SelectTrial, Trial, baselines
    from gradwise.probing import Probe
    from gradwise.recipe import Adapter, Metrics, Model, Recipe, Train
    from gradwise.signals import Signals, collect
    from gradwise.trainer import Trainer, with_gradwise
    from gradwise.training import AdamW, LayerSwitch, Plan, PlanSampler, Segment

__version__ = "0.1.0"

# Looked up on first use: importing transformers takes seconds, and `gradwise --help` should not.
_HOMES = {
    "numerics": "gradwise.numerics",
    "baselines": "gradwise.methods.baselines",
    **dict.fromkeys(["Collator", "Data", "Source"], "gradwise.data"),
    **dict.fromkeys(
        [
            "CheckpointError",
            "DataError",
            "EvaluationError",
            "GradwiseError",
            "PlanError",
            "RecipeError",
            "SignalError",
        ],
        "gradwise.errors",
    ),
    **dict.fromkeys(
        ["D3", "Direct", "Grace", "Grass", "Order", "SelectTrial", "Selection", "Trial"], "gradwise.methods"
    ),
    "Probe": "gradwise.probing",
    **dict.fromkeys(["Adapter", "Metrics", "Model", "Recipe", "Train"], "gradwise.recipe"),
    **dict.fromkeys(["Signals", "collect"], "gradwise.signals"),
    **dict.fromkeys(["AdamW", "LayerSwitch", "Plan", "PlanSampler", "Segment"], "gradwise.training"),
    **dict.fromkeys(["Trainer", "with_gradwise"], "gradwise.trainer"),
}

__all__ = [
    "D3",
    "AdamW",
    "Adapter",
    "CheckpointError",
    "Collator",
    "Data",
    "DataError",
    "Direct",
    "EvaluationError",
    "Grace",
    "GradwiseError",
    "Grass",
    "LayerSwitch",
    "Metrics",
    "Model",
    "Order",
    "Plan",
    "PlanError",
    "PlanSampler",
    "Probe",
    "Recipe",
    "RecipeError",
    "Segment",
    "SelectTrial",
    "Selection",
    "SignalError",
    "Signals",
    "Source",
    "Train",
    "Trainer",
    "Trial",
    "baselines",
    "collect",
    "numerics",
    "with_gradwise",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradwise' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    return module if module.__name__.endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
