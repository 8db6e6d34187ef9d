"""Saving by libraries: what belongs to the model is tried before the first step, and errors are named."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import modeling_utils

from gradwise.atomic import RERUN_ADVICE, not_written
from gradwise.errors import RecipeError
from gradwise.ranks import lost_connection
from gradwise.text import one_line
from gradwise.training import checkpoint as checkpoints

WRITE_FAILED = ("write", "PytorchStreamWriter", "inline_container", "No space", "iostream")
"""How torch words a failure to write; its other RuntimeErrors have other causes."""


def check_saves(trainer: transformers.Trainer) -> None:
    """Save all that a checkpoint holds of the model but its weights, into a temporary folder.

    transformers checks some of it only when it is saved, which would be after the steps.

    Raises:
        RecipeError: something cannot be saved; names it.
    """
    model: Any = trainer.model
    parts: dict[str, Any] = {"tokenizer": trainer.processing_class}
    parts |= {f"adapter {name!r}": part for name, part in getattr(model, "peft_config", {}).items()}
    if isinstance(model, modeling_utils.PreTrainedModel):
        parts["configuration (model.config)"] = model.config
        parts["generation settings (model.generation_config)"] = model.generation_config
        if not trainer.is_deepspeed_enabled:  # whose sharded weights all look alike
            _check_shared_weights(model)
    try:
        with tempfile.TemporaryDirectory(prefix="gradwise-saving-") as folder:
            for name, part in parts.items():
                _check_saves(name, part, folder)
    except OSError as error:
        raise RecipeError(f"Cannot write temporary files ({error}); make room, or set TMPDIR.") from error


def _check_saves(name: str, part: Any, folder: str) -> None:
    if not hasattr(part, "save_pretrained"):
        return
    try:
        # A copy, since a configuration changes while it is saved.
        (part if name == "tokenizer" else copy.deepcopy(part)).save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        raise RecipeError(f"The model's {name} cannot be saved: {one_line(error)}.") from error


def _check_shared_weights(model: modeling_utils.PreTrainedModel) -> None:
    try:
        modeling_utils.remove_tied_weights_from_state_dict(model.state_dict(), model)
    except RuntimeError as error:
        raise RecipeError(
            f"The model's weights cannot be saved, since some share memory: {one_line(error)}."
        ) from error


def write_or_explain(target: Path, write: Callable[[], None], checkpoint_folder: Path) -> None:
    """Let a library write.

    Args:
        target: where it writes.
        write: calls it.
        checkpoint_folder: the folder of the run's checkpoints.

    Raises:
        StorageError: the system or the disk refuses.
    """
    try:
        write()
    except (OSError, RuntimeError, SafetensorError) as error:
        # Libraries raise a RuntimeError for a full disk as they do for a defect, so its words decide.
        disk = any(word in str(error) for word in WRITE_FAILED) and not lost_connection(error)
        if isinstance(error, RuntimeError) and not disk:
            raise
        last = checkpoints.last_whole(checkpoint_folder, contents=False)[0]
        advice = f"{RERUN_ADVICE}; it resumes from {last or 'the beginning'}"
        raise not_written(target, error, advice) from error
