"""How a trainer's settings lay a plan out in batches and loaders."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from gradwise.data import pack, token_lengths
from gradwise.errors import DataError, RecipeError
from gradwise.training.batches import Batches
from gradwise.training.plan import Plan


def cut(trainer: Any, plan: Plan, packed_length: int | None) -> Batches:
    """The plan in the steps, ranks and passes that the trainer's arguments ask for.

    Raises:
        RecipeError: when they contradict the plan, the model or each other.
    """
    args, micro_batch = trainer.args, trainer._train_batch_size
    batches = Batches(
        plan,
        batch_size=micro_batch * args.gradient_accumulation_steps * args.world_size,
        micro_batch=micro_batch,
        rank=args.process_index,
        ranks=args.world_size,
        drop_last=args.dataloader_drop_last,
        pack=None if packed_length is None else _packer(trainer, packed_length),
    )
    if batches.has_stand_ins and not (
        args.average_tokens_across_devices and trainer.model_accepts_loss_kwargs
    ):
        raise RecipeError(
            "The last step of an epoch has fewer samples than all ranks need, and this model or "
            "average_tokens_across_devices: false does not weight the loss by tokens over ranks; "
            "set dataloader_drop_last: true."
        )
    return batches


def epochs_needed(trainer: Any, one_pass: Plan, packed_length: int | None) -> int:
    """Passes that `max_steps`, or else `num_train_epochs`, asks for."""
    args = trainer.args
    if args.max_steps <= 0:
        return math.ceil(args.num_train_epochs)
    return math.ceil(args.max_steps / cut(trainer, one_pass, packed_length).steps_per_epoch)


def total_steps(trainer: Any, batches: Batches) -> int:
    """Steps of a run, as the Trainer will count them."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * batches.steps_per_epoch)


def ledger(batches: Batches) -> DataLoader[Any]:
    """What the Trainer counts an epoch's passes and samples by; it is never drawn from."""
    samples: Any = range(sum(len(segment) for segment in batches.plan.of_epoch(batches.plan.first_epoch)))
    return DataLoader(samples, batch_sampler=[[0]] * batches.micro_batches_per_epoch)


def loader_settings(args: Any) -> dict[str, Any]:
    """The trainer's loader arguments as torch's DataLoader takes them."""
    workers = {
        "prefetch_factor": args.dataloader_prefetch_factor,
        "multiprocessing_context": getattr(args, "dataloader_multiprocessing_context", None),
    }
    return {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        **(workers if args.dataloader_num_workers else {}),
    }


def _packer(trainer: Any, longest: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    lengths = token_lengths(trainer.train_dataset)
    if (lengths > longest).any():
        sample = int(np.argmax(lengths > longest))
        raise DataError(
            f"Sample {sample} has {lengths[sample]} tokens, more than the packed length {longest}."
        )
    return lambda indices: pack(lengths[indices], longest)
