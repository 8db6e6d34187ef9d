"""Measures of a finished model: held-out loss, tasks, and the user's own functions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradwise.evaluation.settings import Choice, Function, Generate, LmEval, Metrics

if TYPE_CHECKING:
    from gradwise.evaluation.measure import Prepared, prepare, score
    from gradwise.evaluation.scores import EvaluationError, Score

# Looked up on first use: a recipe imports the settings above, and should pull in nothing more.
_HOMES = {
    **dict.fromkeys(["EvaluationError", "Score"], "gradwise.evaluation.scores"),
    **dict.fromkeys(["Prepared", "prepare", "score"], "gradwise.evaluation.measure"),
}

__all__ = [
    "Choice",
    "EvaluationError",
    "Function",
    "Generate",
    "LmEval",
    "Metrics",
    "Prepared",
    "Score",
    "prepare",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradwise.evaluation' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
