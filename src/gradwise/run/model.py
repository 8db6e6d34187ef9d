"""Loads the model and the tokenizer a recipe names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from gradwise.errors import RecipeError
from gradwise.recipe import Adapter, Model


def load_tokenizer(settings: Model) -> Any:
    """The model's tokenizer; raises RecipeError when there is none."""
    return _loaded(settings, "tokenizer", AutoTokenizer.from_pretrained, **_where(settings))


def load_model(settings: Model, adapter: Adapter | None = None) -> Any:
    """The model in the type asked for, with its adapter where there is one.

    Weights are read from safetensors only (or from the GGUF file named): pickled ones could run code.

    Raises:
        RecipeError: when there is no such model, or it cannot be loaded as a causal language model.
    """
    extra: dict[str, Any] = {"dtype": settings.dtype}
    if settings.attention:
        extra["attn_implementation"] = settings.attention
    if settings.gguf_file is None:
        extra["use_safetensors"] = True
    model = _loaded(settings, "model", AutoModelForCausalLM.from_pretrained, **_where(settings), **extra)
    if settings.gguf_file is not None:
        model = _unquantised(model)
    if adapter is not None:
        from gradwise.training.adapter import with_adapter

        model = with_adapter(model, adapter.method, adapter.options)
    return model


def load_saved_model(settings: Model, adapter: Adapter | None, folder: Path) -> Any:
    """The model that a run of these settings saved; an adapter is put on the model it was trained over."""
    if adapter is None:
        return load_model(replace(settings, name=str(folder), revision=None, gguf_file=None))
    from peft import PeftModel

    return PeftModel.from_pretrained(load_model(settings), str(folder))


def resolved_revision(settings: Model) -> str | None:
    """The commit that a hub name stood for, or None for a local folder."""
    if Path(settings.name).exists():
        return None
    config = _loaded(settings, "configuration", AutoConfig.from_pretrained, **_where(settings))
    return getattr(config, "_commit_hash", None)


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Refuse sequences longer than the model has positions for; raises RecipeError."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and max_length > positions:
        raise RecipeError(
            f"data.max_length is {max_length}, but the model has only {positions} positions; "
            "give at most that."
        )


def _where(settings: Model) -> dict[str, Any]:
    where: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.revision:
        where["revision"] = settings.revision
    if settings.gguf_file:
        where["gguf_file"] = settings.gguf_file
    return where


def _loaded(settings: Model, what: str, load: Any, **options: Any) -> Any:
    try:
        return load(settings.name, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        place = "in that folder" if Path(settings.name).exists() else "here or on the hub"
        raise RecipeError(
            f"model.name: no {what} of {settings.name!r} could be loaded {place} "
            f"({type(error).__name__}: {reason})."
        ) from None


def _unquantised(model: PreTrainedModel) -> PreTrainedModel:
    """A fresh model with the same weights, without the traces of the file format they came in."""
    config = type(model.config).from_dict(
        {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.device("meta"):
        fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():
        parent, _, leaf = name.rpartition(".")
        fresh.get_submodule(parent).register_buffer(leaf, buffer, persistent=False)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh
