"""The user's own metrics: imported and checked before training, called after it."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedTokenizerBase

from gradwise.errors import RecipeError
from gradwise.evaluation.scores import EvaluationError, Score, finite
from gradwise.evaluation.settings import Function
from gradwise.text import described

TAKES = "(model, tokenizer, validation)"


def import_function(setting: Function) -> Callable[..., Any]:
    """The function that a setting names. Raises RecipeError if it cannot be called with three arguments."""
    place, _, name = setting.path.rpartition(":")
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise RecipeError(
            f"metrics.functions: {place} cannot be imported ({described(error)}{_where(error, place)})."
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        what = "not callable" if hasattr(module, name) else "not there"
        raise RecipeError(f"metrics.functions: {name} is {what} in {place}; write def {name}{TAKES}.")
    try:
        # Bound and not called: otherwise a wrong signature would show only after training.
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        raise RecipeError(
            f"metrics.functions: {setting.path} must take {TAKES}; it takes {inspect.signature(function)}."
        ) from None
    except ValueError:  # built in, without a signature: only calling it shows
        pass
    return function


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    # A name of its own: a user's metrics.py must not stand in the way of a package that is called so.
    name = f"{path.stem}_{sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # In place before it runs, as dataclasses and pickle want it; its folder on the path, as for a script.
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def call(
    setting: Function,
    function: Callable[..., Any],
    model: object,
    tokenizer: PreTrainedTokenizerBase,
    validation: Any,
) -> dict[str, Score]:
    """The scores that the user's function gives the model, by name. Raises EvaluationError if it raises, or
    returns something other than a finite number or a mapping of names to finite numbers."""
    try:
        result = function(model, tokenizer, validation)
    except Exception as error:
        place = setting.path.rpartition(":")[0]
        raise EvaluationError(
            f"The metric {setting.called} failed ({described(error)}{_where(error, place)})."
        ) from error
    samples = len(validation) if validation is not None else 0
    if not isinstance(result, dict):
        return {setting.called: Score(finite(setting.called, result), setting.better, samples)}
    if not result:
        raise EvaluationError(f"The metric {setting.called} gave a mapping without a number in it.")
    values_by_name = {f"{setting.called}/{key}": value for key, value in result.items()}
    return {
        name: Score(finite(name, value), setting.better, samples) for name, value in values_by_name.items()
    }


def _where(error: BaseException, place: str) -> str:
    """The last line of the user's own file that the error passed through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _same(frame, place)]
    return f"; {Path(place).name}, line {lines[-1]}" if lines else ""


def _same(frame: traceback.FrameSummary, place: str) -> bool:
    return place.endswith(".py") and Path(frame.filename).resolve() == Path(place).resolve()
