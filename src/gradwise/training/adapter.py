"""Adapters through PEFT: which exist, what they take, and putting one on a model."""

from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from gradwise.errors import RecipeError
from gradwise.recipe_tree import nearest


def check_adapter(method: str, options: dict[str, Any]) -> None:
    """Refuse methods and keys that PEFT does not know, and values of the wrong type; raises RecipeError."""
    config = _config_class(method)
    known: dict[str, Any] = {
        field.name: field.type for field in fields(config) if field.init and field.name not in _OURS
    }
    for key, value in options.items():
        if key not in known:
            raise RecipeError(f"unknown key adapter.{key}{nearest(key, list(known))}")
        try:
            TypeAdapter(known[key]).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise RecipeError(f"adapter.{key}: {message[0].lower()}{message[1:]}; found {value!r}.") from None
        except Exception:  # an annotation that pydantic cannot resolve; PEFT checks the value itself
            continue


def with_adapter(model: PreTrainedModel, method: str, options: dict[str, Any]) -> Any:
    """The model with a fresh adapter on it, its own weights frozen.

    Raises:
        RecipeError: when PEFT refuses the configuration for this model.
    """
    import peft

    options = {"target_modules": "all-linear", **options} if method == "lora" else options
    try:
        return peft.get_peft_model(model, _config_class(method)(task_type="CAUSAL_LM", **options))
    except (ValueError, TypeError) as error:
        raise RecipeError(f"adapter: {' '.join(str(error).split())}") from None


_OURS = {"task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"}
"""Keys of a PEFT configuration that follow from the recipe."""


def _config_class(method: str) -> Any:
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError:
        raise RecipeError("adapter needs the package peft; run: pip install 'gradwise[lora]'.") from None
    known = {kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if method not in known:
        raise RecipeError(f"adapter.method: unknown method {method!r}{nearest(method, list(known))}")
    return known[method]
