"""Puts an adapter of PEFT on a model."""

from typing import Any

from transformers import PreTrainedModel

from gradwise.errors import RecipeError
from gradwise.recipe.foreign_keys import adapter_config


def with_adapter(model: PreTrainedModel, method: str, options: dict[str, Any]) -> Any:
    """The model with a fresh adapter on it, its own weights frozen.

    Raises:
        RecipeError: when PEFT refuses the configuration for this model.
    """
    import peft

    options = {"target_modules": "all-linear", **options} if method == "lora" else options
    try:
        return peft.get_peft_model(model, adapter_config(method)(task_type="CAUSAL_LM", **options))
    except (ValueError, TypeError) as error:
        raise RecipeError(f"adapter: {' '.join(str(error).split())}") from None
