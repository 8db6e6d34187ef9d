"""How a plan is laid out in optimizer steps and loaders: the run's batch size, ranks and length."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from gradwise.data import pack, token_lengths
from gradwise.errors import DataError, RecipeError
from gradwise.training.batches import Batches
from gradwise.training.plan import Plan

Packer = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Offsets (rows + 1,) at which packed rows start, given samples in their order."""


class Schedule(NamedTuple):
    """A plan in steps, and the length of the run, which may go beyond the plan."""

    batches: Batches
    steps: int
    """Optimizer steps of the whole run, as the Trainer counts them."""


@dataclass(frozen=True, eq=False)
class Layout:
    """How every plan of a run is cut into steps, ranks and micro-batches."""

    micro_batch: int
    """Rows of one forward/backward on one rank."""
    accumulation: int = 1
    """Micro-batches of a step on one rank."""
    rank: int = 0
    ranks: int = 1
    drop_last: bool = False
    """Leave out rows at an epoch's end that do not fill a micro-batch on every rank."""
    max_steps: int = 0
    """Length of the run in steps; 0 if `epochs` decides it."""
    epochs: float = 1.0
    """Length of the run in epochs."""
    pack: Packer | None = None
    """Packs samples into rows; None for a row per sample."""
    weights_by_tokens: bool = True
    """Whether the loss of a step is weighted by label tokens over all ranks."""
    weighted: bool = False
    """Whether the plan's weights multiply losses."""

    @classmethod
    def of(
        cls, args: TrainingArguments, *, pack: Packer | None, takes_counts: bool, weighted: bool = False
    ) -> "Layout":
        """What a Trainer's arguments ask for.

        Args:
            args: the Trainer's.
            pack: packs samples into rows.
            takes_counts: whether the model divides its loss by the label tokens that it is given.
            weighted: whether the plan's weights multiply losses.
        """
        return cls(
            micro_batch=args.train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=args.process_index,
            ranks=args.world_size,
            drop_last=args.dataloader_drop_last,
            max_steps=max(0, args.max_steps),
            epochs=float(args.num_train_epochs),
            pack=pack,
            weights_by_tokens=args.average_tokens_across_devices and takes_counts,
            weighted=weighted,
        )

    @property
    def batch_size(self) -> int:
        """Rows of a step over all ranks and micro-batches."""
        return self.micro_batch * self.accumulation * self.ranks

    def cut(self, plan: Plan) -> Batches:
        """The plan in steps.

        Raises:
            RecipeError: the arguments contradict the plan, the model or each other.
        """
        batches = Batches(
            plan,
            batch_size=self.batch_size,
            micro_batch=self.micro_batch,
            rank=self.rank,
            ranks=self.ranks,
            drop_last=self.drop_last,
            pack=self.pack,
            weighted=self.weighted,
        )
        # Averaged over ranks, a rank without samples would shrink the others' gradients.
        if batches.has_stand_ins and not self.weights_by_tokens:
            raise RecipeError(
                "The last step of an epoch has fewer samples than all ranks need, and this model or "
                "average_tokens_across_devices: false does not weight the loss by tokens over ranks; "
                "set dataloader_drop_last: true."
            )
        return batches

    def schedule(self, plan: Plan) -> Schedule:
        """The plan in steps, and the length of the run."""
        return self.schedule_of(self.cut(plan))

    def schedule_of(self, batches: Batches) -> Schedule:
        """A plan that is cut already, and the length of the run."""
        # Rounded up as the Trainer does for a number of epochs that is not whole.
        return Schedule(batches, self.max_steps or math.ceil(self.epochs * batches.steps_per_epoch))

    def epochs_needed(self, one_epoch: Plan) -> int:
        """Epochs that the run's length asks for, given the plan of one of them."""
        if not self.max_steps:
            return math.ceil(self.epochs)
        return math.ceil(self.max_steps / self.cut(one_epoch).steps_per_epoch)


def packer(dataset: object, longest: int) -> Packer:
    """Packs samples of a data set into rows of at most `longest` tokens; raises DataError if one has more."""
    lengths = token_lengths(dataset)
    if (lengths > longest).any():
        sample = int(np.argmax(lengths > longest))
        raise DataError(
            f"Sample {sample} has {lengths[sample]} tokens, more than the packed length {longest}."
        )
    return lambda indices: pack(lengths[indices], longest)


def ledger(batches: Batches) -> DataLoader[Any]:
    """What the Trainer counts an epoch's micro-batches and samples by; it is never drawn from."""
    # The Trainer takes the length of this for num_train_samples and logs; batches come from
    # `get_batch_samples`.
    samples: Any = range(sum(len(segment) for segment in batches.plan.of_epoch(batches.plan.first_epoch)))
    return DataLoader(samples, batch_sampler=[[0]] * batches.micro_batches_per_epoch)


def loader_settings(args: TrainingArguments) -> dict[str, Any]:
    """The Trainer's loader arguments, and its seed, as `Feeder` takes them."""
    workers = {
        "prefetch_factor": args.dataloader_prefetch_factor,
        "multiprocessing_context": getattr(args, "dataloader_multiprocessing_context", None),
    }
    return {
        "seed": args.seed,
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        **(workers if args.dataloader_num_workers else {}),
    }
