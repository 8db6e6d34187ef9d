"""Puts an adapter of PEFT on a model."""

import warnings
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from gradwise.console import say
from gradwise.errors import RecipeError
from gradwise.recipe.foreign_keys import adapter_config
from gradwise.text import one_line


def with_adapter(
    model: PreTrainedModel, method: str, options: dict[str, Any], tell: Callable[[str], object] = say
) -> Any:
    """The model with a fresh adapter on it, its own weights frozen.

    Args:
        model: gets the adapter in place.
        method: name of the PEFT method.
        options: further keys of its configuration.
        tell: gets PEFT's warnings.

    Raises:
        RecipeError: when PEFT refuses the configuration for this model, or would ignore a part of it.
    """
    import peft

    options = {"target_modules": "all-linear", **options} if method == "lora" else options
    _check_saved(model, options)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            made = peft.get_peft_model(model, adapter_config(method)(task_type="CAUSAL_LM", **options))
        # PEFT checks little: a damaged pattern or a missing key raises whatever meets it first.
        except Exception as error:
            raise RecipeError(
                f"adapter: {method} cannot be used as it is set up ({one_line(error, 400)})."
            ) from None
    later = (FutureWarning, DeprecationWarning)
    sentences = [" ".join(str(w.message).split()) for w in heard if not issubclass(w.category, later)]
    for sentence in dict.fromkeys(sentences):
        if "ignored" in sentence:
            raise RecipeError(f"adapter: {sentence.rstrip('.')}; leave it out.")
        tell(f"Warning: adapter: {sentence}")
    return made


def _check_saved(model: PreTrainedModel, options: dict[str, Any]) -> None:
    """Refuse names in modules_to_save that no module has; PEFT passes them over."""
    names = options.get("modules_to_save")
    modules = [module for module, _ in model.named_modules()]
    for name in names if isinstance(names, list) else []:
        if not any(module.endswith(name) for module in modules):
            raise RecipeError(f"adapter.modules_to_save: the model has no module {name}; leave it out.")
