"""Checkpoints of a model that FSDP2 shards, in the files that a run in one process writes.

transformers cannot save the optimizer's state of a model that it shards itself, and accelerate writes files
that a run without FSDP cannot read. Here the first rank writes whole tensors, and each rank reads its own
rows of them. So a checkpoint can be resumed on any number of ranks, sharded or not.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments
from transformers.trainer_pt_utils import safe_globals

from gradwise.errors import CheckpointError, RecipeError
from gradwise.ranks import is_first
from gradwise.signals.model_state import unwrapped
from gradwise.signals.shards import is_distributed, reshard, units
from gradwise.stored import damaged
from gradwise.training.offload.arena import SERVED
from gradwise.training.sharding import (
    TrainerParts,
    as_shard,
    by_accelerate,
    check_rows,
    local,
    local_rows,
    whole_on_host,
)
from gradwise.training.weight_names import check_loaded, check_names, is_plain, names_in_memory, weight_files

if TYPE_CHECKING:
    # Any of the Trainer's subclasses may stand in its place.
    from typing import Any as _AnyTrainer

else:
    _AnyTrainer = object

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
"""The Trainer's names for these files."""


class ShardedCheckpoints(_AnyTrainer):
    """What a Trainer class saves and loads where FSDP2 shards its model; otherwise as the underlying one."""

    def create_optimizer(self, *args: object, **kwargs: object) -> Any:
        """As the underlying Trainer's; refuses one whose state could not be saved."""
        reshard(self.model)  # evaluation leaves whole parameters
        optimizer = super().create_optimizer(*args, **kwargs)
        if units(self.model) and saves(self.args):
            check_state_can_be_saved(unwrapped(optimizer))
            check_rows(self.model.parameters(), "checkpoints are written")
        return optimizer

    def _save_checkpoint(self, *args: object, **kwargs: object) -> None:
        with names_in_memory(self.model):
            super()._save_checkpoint(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not units(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        check_saves_sharded(self)
        state = whole_state(unwrapped(self.optimizer))
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not units(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_state(unwrapped(self.optimizer), Path(checkpoint) / OPTIMIZER)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not units(self.model) or _is_adapted(self.model):
            if is_plain(self):
                check_names(self.model, Path(resume_from_checkpoint))
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_weights(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if not units(self.model) or _is_adapted(self.model):
            super()._load_best_model()
            return
        load_weights(self.model, Path(self.state.best_model_checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            take_random_state(Path(checkpoint), self.args.process_index, self.args.world_size)


@contextmanager
def allowed_to_save(trainer_arguments: list[Any]) -> Iterator[None]:
    """Within it, a Trainer can be made of a model that transformers has sharded and arguments that save.

    transformers refuses that, since it would save the optimizer's state of one rank; these checkpoints are
    written by `ShardedCheckpoints` instead.

    Args:
        trainer_arguments: what the Trainer is made of.
    """
    args = next((each for each in trainer_arguments if isinstance(each, TrainingArguments)), None)
    sharded = any(
        getattr(each, "is_distributed_loading_by_transformers", False) is True for each in trainer_arguments
    )
    if args is None or not sharded or args.save_only_model:  # which gradwise refuses itself
        yield
        return
    args.save_only_model = True
    try:
        yield
    finally:
        args.save_only_model = False


def saves(args: TrainingArguments) -> bool:
    """Whether a run is to write checkpoints."""
    return getattr(args.save_strategy, "value", args.save_strategy) != "no"


def check_saves_sharded(trainer: TrainerParts) -> None:
    """Raise RecipeError for a trainer whose sharded model would be saved in a way that is not read here."""
    if not by_accelerate(trainer):
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    if "FULL" not in str(plugin.state_dict_type):
        raise RecipeError(
            "Checkpoints of a model that FSDP2 shards are written whole, and fsdp_config.state_dict_type is "
            f"{getattr(plugin.state_dict_type, 'name', plugin.state_dict_type)}; leave it out, or set "
            "save_strategy: no."
        )
    if _is_adapted(trainer.model):
        raise RecipeError(
            "Checkpoints of an adapter that accelerate shards by FSDP2 are not supported; set save_strategy: "
            "no, or shard the model as it is loaded (DistributedConfig)."
        )


def check_state_can_be_saved(optimizer: Optimizer) -> None:
    """Raise RecipeError for an optimizer whose state may not have the form of its parameters."""
    if not isinstance(optimizer, SERVED):
        names = ", ".join(kind.__name__ for kind in SERVED)
        raise RecipeError(
            f"The state of a sharded model's optimizer is saved for torch's {names}; found "
            f"{type(optimizer).__module__}.{type(optimizer).__name__}. Take one of these, or set "
            "save_strategy: no."
        )


def whole_state(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state dict with whole tensors, on the host of the first rank; a collective call.

    On other ranks it has no tensors.
    """
    check_state_can_be_saved(optimizer)
    state_dict = optimizer.state_dict()
    # Gathering is collective, so in an order that all ranks share.
    state = {
        number: {name: whole_on_host(value, keep=is_first()) for name, value in sorted(values.items())}
        for number, values in sorted(state_dict["state"].items())
    }
    return {**state_dict, "state": state}


def load_state(optimizer: Optimizer, path: Path) -> None:
    """Load an optimizer's whole state from a file, each rank its own rows.

    Raises:
        CheckpointError: it is that of other parameters.
    """
    with damaged(path):
        # Mapped, not read: a rank brings only its own rows into memory.
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    if len(numbers) != len(parameters):
        raise CheckpointError(
            f"{path} holds the state of {len(numbers)} parameters, and the model now trains "
            f"{len(parameters)}; give the same model."
        )
    held = dict(zip(numbers, parameters, strict=True))
    state = {
        number: {name: _rank_part(value, held[number], path) for name, value in values.items()}
        for number, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})


def _rank_part(value: Any, parameter: Tensor, path: Path) -> Any:
    """What a rank keeps of a state tensor of a parameter."""
    if not isinstance(value, Tensor):
        return value
    if not value.dim():
        return value.clone()
    if value.shape != parameter.shape:
        raise CheckpointError(
            f"{path} holds state of the shape {tuple(value.shape)} for a parameter of the shape "
            f"{tuple(parameter.shape)}; give the same model."
        )
    if not is_distributed(parameter):
        return value.clone()
    first, last = local_rows(parameter)
    return as_shard(value[first:last].clone(), parameter)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a sharded model's weights from whole ones, each rank its own rows.

    Args:
        model: sharded by FSDP2.
        folder: a checkpoint.

    Raises:
        CheckpointError: the weights are those of another model.
    """
    reshard(model)
    check_rows(model.parameters(), "checkpoints are read")
    targets: dict[str, Tensor] = model.state_dict(keep_vars=True)
    loaded = set()
    for path in weight_files(folder):
        with damaged(path), safetensors.safe_open(str(path), framework="pt") as file:
            for name in set(file.keys()) & targets.keys():
                _load(file, name, targets[name], path)
                loaded.add(id(targets[name]))
    check_loaded(model, loaded, folder)


@torch.no_grad()
def _load(file: Any, name: str, target: Tensor, path: Path) -> None:
    stored = file.get_slice(name)
    if tuple(stored.get_shape()) != tuple(target.shape):
        raise CheckpointError(
            f"{path} holds {name} of the shape {tuple(stored.get_shape())}, and the model's has "
            f"{tuple(target.shape)}; give the same model."
        )
    local_part = local(target)
    if not target.dim():
        local_part.copy_(file.get_tensor(name))
    elif local_part.numel():
        first, last = local_rows(target)
        local_part.copy_(stored[first:last])


def take_random_state(checkpoint: Path, rank: int, ranks: int) -> None:
    """Give a rank that wrote no random state of its own that of the first one that did.

    Ranks begin a run with the same random state, so this is no other than a new rank would have.

    Args:
        checkpoint: of a run with any number of ranks.
        rank: this one's number.
        ranks: of the run now.
    """
    file_name = "rng_state.pth" if ranks <= 1 else f"rng_state_{rank}.pth"
    written = sorted(checkpoint.glob("rng_state*.pth"))
    if (checkpoint / file_name).exists() or not written:
        return
    with damaged(written[0]), safe_globals():
        state = torch.load(written[0], weights_only=True)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        cuda_state = state["cuda"]
        torch.cuda.set_rng_state(cuda_state if isinstance(cuda_state, Tensor) else cuda_state[0])


def _is_adapted(model: object) -> bool:
    return hasattr(model, "peft_config")
