"""The Trainer as a session sees it, and what decisions may use of it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import TrainerControl

from gradwise.planning import RunContext, Samples, Scorer
from gradwise.planning.context import Collate
from gradwise.precision import autocast_of
from gradwise.recipe import Recipe
from gradwise.signals.model_state import unwrapped
from gradwise.signals.shards import units
from gradwise.training import packing
from gradwise.training.arguments import new_optimizer
from gradwise.training.layout import Layout
from gradwise.training.memory import StepMemory
from gradwise.training.record import RunRecord
from gradwise.training.sharding import TrainerParts, by_accelerate


class HostTrainer(TrainerParts, Protocol):
    """What a session uses of the Trainer that it belongs to."""

    control: TrainerControl
    optimizer: Any
    lr_scheduler: Any
    eval_dataset: Any
    anneal_dataset: Any
    target_dataset: Any
    data_collator: Any
    processing_class: Any
    last_grad_norm: Any
    callback_handler: Any
    proxy: Any
    step_memory: StepMemory

    def training_samples(self) -> tuple[Any, Collate]:
        """The training data without the columns that the model does not take, and the collate function."""
        ...

    def planned_samples(self) -> tuple[Any, Any, Collate]:
        """What a plan points into: the training data and behind them those of the annealing phase only; the
        same without the columns that the model does not take; and the collate function."""
        ...

    def validation_samples(self) -> tuple[Any, Collate]:
        """The same of the validation data."""
        ...

    def target_samples(self) -> tuple[Any, Collate]:
        """The same of the target."""
        ...

    def loss_of(self, inputs: dict[str, Any]) -> Tensor:
        """The training loss of a batch, computed as training does."""
        ...

    def underlying_loader(self) -> Any:
        """The loader that the trainer would use without gradwise."""
        ...

    def underlying_sampler(self) -> Any:
        """The sampler of that loader."""
        ...

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parameters that weight decay acts on."""
        ...

    def probe(self, parts: list[dict[str, Any]]) -> None:
        """Forward and backward over the micro-batches of one step, outside of the training loop."""
        ...


class RunSamples(NamedTuple):
    """The samples of a run."""

    train: Samples
    validation: Samples | None
    """None unless there is a single set of them."""
    planned: Samples
    """What a plan points into: the training samples, and behind them those of the annealing phase only."""


def samples_of(trainer: HostTrainer) -> RunSamples:
    """A trainer's samples."""
    planned = train = Samples(trainer.train_dataset, *trainer.training_samples())
    if trainer.anneal_dataset is not None:
        planned = Samples(*trainer.planned_samples())
    # Several sets by name measure different things; a decision would have to guess which of them counts.
    if trainer.eval_dataset is None or isinstance(trainer.eval_dataset, dict):
        return RunSamples(train, None, planned)
    return RunSamples(train, Samples(trainer.eval_dataset, *trainer.validation_samples()), planned)


def unpacked(trainer: HostTrainer, samples: Samples, *, packs: bool, unpack: bool) -> str | None:
    """Why a run that was to pack its samples trains unpacked, if it does; a collective call.

    Args:
        trainer: whose model would see the packed rows.
        samples: to train on.
        packs: whether samples are to be packed; otherwise they may be packed rows themselves.
        unpack: train unpacked where the model does not keep packed samples apart, instead of refusing.
    """
    problem = partial(
        packing.problem,
        trainer.model,
        samples.inputs,
        trainer.data_collator,
        rows=trainer.args.train_batch_size,
        autocast=autocast_of(trainer.args),
    )
    if packs:
        return packing.reason_not_to_pack(trainer.data_collator, problem, unpack=unpack)
    packing.check_packed_rows(samples.dataset, trainer.data_collator, problem)
    return None


def target_of(trainer: HostTrainer) -> Samples | None:
    """A trainer's target samples, if it has any."""
    dataset = trainer.target_dataset
    return None if dataset is None else Samples(dataset, *trainer.target_samples())


def context_of(
    trainer: HostTrainer,
    recipe: Recipe,
    samples: RunSamples,
    *,
    layout: Layout,
    record: RunRecord,
    folder: Path,
    shared: Path | None,
    say: Callable[[str], object],
    save_recipe: Callable[[Recipe], object],
    time_training: Callable[[NDArray[np.int64]], float],
) -> RunContext:
    """What a decision may use of a trainer as it stands; arguments as the fields of `RunContext`."""
    train = samples.train
    args, optimizer, held_out = trainer.args, trainer.optimizer, trainer.eval_dataset
    by_fsdp2 = bool(units(trainer.model)) or by_accelerate(trainer)
    sharded = by_fsdp2 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    optimizer_name = str(getattr(args.optim, "value", args.optim)).lower()

    def scorer() -> Scorer:
        if trainer.proxy is None:
            return Scorer(trainer.model, train.inputs, train.collate)
        return Scorer(*trainer.proxy)

    return RunContext(
        recipe=recipe,
        train=train,
        planned=samples.planned,
        scorer=scorer,
        record=record,
        folder=folder,
        model=trainer.model,
        proxied=trainer.proxy is not None,
        optimizer=unwrapped(optimizer),
        validation=samples.validation,
        target=target_of(trainer),
        validation_sets=0 if held_out is None else len(held_out) if isinstance(held_out, dict) else 1,
        layout=layout,
        tokenizer=trainer.processing_class,
        # accelerate's FSDP2 gathers weights in the type of mixed precision instead.
        autocast=None if by_accelerate(trainer) else autocast_of(args),
        device="cuda" if args.device.type == "cuda" else "cpu",
        max_grad_norm=args.max_grad_norm,
        learning_rate=args.learning_rate,
        adam="adam" in optimizer_name if optimizer is None else "betas" in optimizer.param_groups[0],
        sharded=sharded,
        measurable=by_fsdp2 or not sharded,
        shared=shared,
        progress=not args.disable_tqdm,
        say=say,
        save_recipe=save_recipe,
        time_training=time_training,
        make_optimizer=lambda: new_optimizer(
            args, trainer.model, trainer.get_decay_parameter_names(trainer.model)
        ),
    )
