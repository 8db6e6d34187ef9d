"""Names of a model's weights in checkpoints: those that they have in memory.

transformers renames, splits and merges weights as it loads some models, such as the experts of a mixture, and
turns that back as it saves them. Its Trainer resumes by the names in memory and skips all others with a
warning, so that a resumed mixture would have the experts that it began with. Checkpoints therefore keep the
names in memory, which `from_pretrained` takes as well. A model that is saved at the end has the names that it
was published with.
"""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from gradwise.errors import CheckpointError
from gradwise.stored import damaged, read_json

OPTION = "save_original_format"
"""The option of `save_pretrained` that says which names are written."""


@contextmanager
def names_in_memory(model: object) -> Iterator[None]:
    """Within it, a model of transformers is saved with the names that its weights have in memory."""
    is_pretrained = isinstance(model, PreTrainedModel)
    if not is_pretrained or OPTION not in inspect.signature(model.save_pretrained).parameters:
        yield
        return
    saving: Any = partial(model.save_pretrained, **{OPTION: False})
    model.save_pretrained = saving
    try:
        yield
    finally:
        del model.save_pretrained


def is_plain(trainer: Any) -> bool:
    """Whether a trainer's model is one of transformers', with weights of its own that are whole here."""
    model = trainer.model
    adapted = hasattr(model, "peft_config") or getattr(model, "hf_quantizer", None) is not None
    spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    return isinstance(model, PreTrainedModel) and not adapted and not spread


def weight_files(folder: Path) -> Iterable[Path]:
    """The files that hold a checkpoint's weights."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        return [folder / SAFE_WEIGHTS_NAME]
    return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]


def check_names(model: torch.nn.Module, folder: Path) -> None:
    """Raise CheckpointError for a checkpoint that lacks weights of a model.

    Args:
        model: whole in this process.
        folder: a checkpoint; one without safetensors is not checked.
    """
    names: set[str] = set()
    for path in weight_files(folder):
        if not path.exists():
            return
        with damaged(path), safetensors.safe_open(str(path), framework="pt") as file:
            names |= set(file.keys())
    # Weights that are tied stand once.
    loaded = {id(value) for name, value in model.state_dict(keep_vars=True).items() if name in names}
    check_loaded(model, loaded, folder)


def check_loaded(model: torch.nn.Module, loaded: set[int], folder: Path) -> None:
    """Raise CheckpointError where parameters, by their ids, are not among those that a checkpoint has."""
    unsaved = getattr(model, "_keys_to_ignore_on_save", None) or ()
    parameters = {name: value for name, value in model.named_parameters() if name not in unsaved}
    if missing := [name for name, parameter in parameters.items() if id(parameter) not in loaded]:
        raise CheckpointError(
            f"The weights in {folder} lack {len(missing)} of {len(parameters)} parameters ({missing[0]}); "
            "give the same model."
        )
