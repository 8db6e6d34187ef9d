"""From a recipe's `train` section to the Hugging Face Trainer's arguments."""

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from gradwise.errors import RecipeError
from gradwise.ranks import on_cpu
from gradwise.recipe import Train

DECAY_SHARE = "decay_share"
"""Key in lr_scheduler_kwargs for the share of the steps over which `schedule: wsd` decays."""

USUAL_DECAY = 0.2
"""That share unless told otherwise."""

LARGEST_MICRO_BATCH = 8
"""Samples per device and pass unless told otherwise; the Trainer's own default."""


def decay_steps(share: float, steps: int) -> int:
    """Of so many steps, those in which the learning rate decays.

    >>> decay_steps(0.2, 12), decay_steps(0.01, 12)
    (2, 1)
    """
    return max(1, round(share * steps))


def micro_batch(batch_size: int, ranks: int, asked: int | None) -> int:
    """Samples per rank and pass: what was asked, or the largest divisor of a rank's share that is at most 8.

    >>> micro_batch(32, 1, None), micro_batch(12, 2, None), micro_batch(8, 1, 2)
    (8, 6, 2)
    """
    share, rest = divmod(batch_size, ranks)
    if rest:
        raise RecipeError(
            f"train.batch_size is {batch_size}, which {ranks} ranks cannot share; use a multiple."
        )
    if asked is None:
        return max(size for size in range(1, min(LARGEST_MICRO_BATCH, share) + 1) if share % size == 0)
    if share % asked:
        raise RecipeError(
            f"train.batch_size is {batch_size}, which is not a multiple of per_device_train_batch_size "
            f"{asked} times {ranks} rank{'s' if ranks > 1 else ''}."
        )
    return asked


def training_arguments(
    train: Train,
    *,
    output_dir: Path,
    seed: int,
    ranks: int,
    validation: bool,
    bars: bool,
    last: float | None = None,
) -> TrainingArguments:
    """The Trainer's arguments for a run.

    Args:
        train: the recipe's `train` section (`gradwise.recipe.Train`).
        output_dir: where checkpoints go.
        seed: the recipe's seed.
        ranks: number of processes.
        validation: whether there are held-out data; they are then evaluated at the start and after each epoch
            unless the recipe says otherwise.
        bars: show progress bars.
        last: share of the steps that `anneal` takes, over which the learning rate then decays.

    Raises:
        RecipeError: for combinations that the Trainer refuses.
    """
    given = dict(train.arguments)
    size = micro_batch(train.batch_size, ranks, given.pop("per_device_train_batch_size", None))
    given.setdefault("save_total_limit", 2)
    given.setdefault("logging_steps", 10)
    # Host memory is pinned for a GPU only; without one torch warns and does nothing.
    given.setdefault("dataloader_pin_memory", _has_gpu())
    if validation:
        given.setdefault("eval_strategy", "epoch")
        given.setdefault("eval_on_start", True)
    elif given.get("eval_strategy", "no") != "no" or given.get("eval_on_start"):
        raise RecipeError("train asks for evaluation, but data.validation is not given.")
    if train.schedule == "wsd":
        # A share of the steps; `Trainer.create_scheduler` makes steps of it once their number is known.
        share = train.decay or last or USUAL_DECAY
        shape = {} if train.decay_shape is None else {"decay_type": train.decay_shape}
        own = given.get("lr_scheduler_kwargs") or {}
        given["lr_scheduler_kwargs"] = {DECAY_SHARE: share, **shape, **own}
    _check_fsdp(given)
    if on_cpu():
        given.setdefault("use_cpu", True)
    try:
        arguments = TrainingArguments(
            output_dir=str(output_dir),
            seed=seed,
            num_train_epochs=train.epochs,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=train.batch_size // (size * ranks),
            learning_rate=train.learning_rate,
            lr_scheduler_type="warmup_stable_decay" if train.schedule == "wsd" else train.schedule,
            disable_tqdm=not bars,
            **given,
        )
        _ = arguments.device  # enters the process group, where there are several ranks
    except (ValueError, ImportError, TypeError) as error:
        raise RecipeError(f"train: {' '.join(str(error).split())}") from None
    return arguments


def _check_fsdp(given: dict[str, Any]) -> None:
    if given.get("fsdp") and not _has_gpu():
        raise RecipeError(
            "train.fsdp needs GPUs; on a CPU the Trainer would run plain data parallelism instead."
        )


def _has_gpu() -> bool:
    import torch

    return torch.accelerator.is_available() if hasattr(torch, "accelerator") else torch.cuda.is_available()
