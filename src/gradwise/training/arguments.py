"""From a recipe's `train` section to the Hugging Face Trainer's arguments."""

import json
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.utils.import_utils import is_liger_kernel_available

from gradwise.errors import RecipeError
from gradwise.ranks import on_cpu
from gradwise.recipe import Train
from gradwise.recipe.foreign_keys import DEFAULTS
from gradwise.recipe.tree import CONFIGURATIONS
from gradwise.text import one_line, shown

DECAY_SHARE = "decay_share"
"""Key in lr_scheduler_kwargs for the share of the steps over which `schedule: wsd` decays."""

USUAL_DECAY = 0.2
"""Default fraction."""

LARGEST_MICRO_BATCH = 8
"""Default samples per device and micro-batch; the Trainer's own."""


EVALUATION = {
    "eval_on_start",
    "load_best_model_at_end",
    "metric_for_best_model",
    "per_device_eval_batch_size",
}
"""Arguments that mean something only where there are held-out data."""

INSTALLED_AS = {"azure_ml": "azureml-mlflow"}
"""Packages of trackers that have another name than the tracker."""

UNLISTED = ("flyte", "kubeflow")
"""Trackers that transformers does not list as available whenever their package is installed."""


def decay_steps(share: float, steps: int) -> int:
    """Number of steps, out of `steps`, in which the learning rate decays.

    >>> decay_steps(0.2, 12), decay_steps(0.01, 12)
    (2, 1)
    """
    return max(1, round(share * steps))


def micro_batch(batch_size: int, ranks: int, requested: int | None) -> int:
    """Samples per rank and pass: what was asked, or the largest divisor of a rank's share that is at most 8.

    >>> micro_batch(32, 1, None), micro_batch(12, 2, None), micro_batch(8, 1, 2)
    (8, 6, 2)
    """
    share, rest = divmod(batch_size, ranks)
    if rest:
        raise RecipeError(
            f"train.batch_size is {batch_size}, which {ranks} ranks cannot share; use a multiple."
        )
    if requested is None:
        return max(size for size in range(1, min(LARGEST_MICRO_BATCH, share) + 1) if share % size == 0)
    if share % requested:
        raise RecipeError(
            f"train.batch_size is {batch_size}, which is not a multiple of per_device_train_batch_size "
            f"{requested} times {ranks} rank{'s' if ranks > 1 else ''}."
        )
    return requested


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
    arguments = dict(train.arguments)
    # The batch size is global: ranks and accumulation share it, and the same recipe trains alike on any
    # number of them.
    size = micro_batch(train.batch_size, ranks, arguments.pop("per_device_train_batch_size", None))
    arguments = DEFAULTS | arguments
    # Host memory is pinned for a GPU only; without one torch warns and does nothing.
    arguments.setdefault("dataloader_pin_memory", torch.accelerator.is_available())
    if validation:
        arguments.setdefault("eval_strategy", "epoch")
        arguments.setdefault("eval_on_start", True)
    elif (
        arguments.get("eval_strategy", "no") != "no"
        or EVALUATION & {key for key in arguments if arguments[key]}
        or train.early_stopping_patience is not None
    ):
        raise RecipeError("train asks for evaluation, but data.validation is not given.")
    if train.early_stopping_patience is not None:
        arguments = _looking_for_the_best(arguments)
    if train.schedule == "wsd":
        # A share of the steps; `Trainer.create_scheduler` makes steps of it once their number is known.
        share = train.decay or last or USUAL_DECAY
        shape = {} if train.decay_shape is None else {"decay_type": train.decay_shape}
        scheduler_kwargs = arguments.get("lr_scheduler_kwargs") or {}
        arguments["lr_scheduler_kwargs"] = {DECAY_SHARE: share, **shape, **scheduler_kwargs}
    _check_machine(arguments)
    # Without it, `bf16` is refused where there is no accelerator, though a CPU computes in it, and accelerate
    # reports a single process to every rank: two ranks each took themselves for the first (docs/log.md,
    # 2026-11-28).
    if on_cpu() or not torch.accelerator.is_available():
        arguments.setdefault("use_cpu", True)
    try:
        made = TrainingArguments(
            output_dir=str(output_dir),
            seed=seed,
            num_train_epochs=train.epochs,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=train.batch_size // (size * ranks),
            learning_rate=train.learning_rate,
            lr_scheduler_type="warmup_stable_decay" if train.schedule == "wsd" else train.schedule,
            disable_tqdm=not bars,
            **arguments,
        )
        _ = made.device  # enters the process group, where there are several ranks
        _check_optimizer(made)
    except Exception as error:  # of the packages that it configures: whatever they raise, a setting is wrong
        raise RecipeError(f"train: {one_line(error, 400)}.") from None
    return made


def _looking_for_the_best(arguments: dict[str, Any]) -> dict[str, Any]:
    """With what early stopping needs: a measure, and a checkpoint at every evaluation."""
    evaluated = arguments["eval_strategy"]
    saves: dict[str, Any] = {"save_strategy": evaluated}
    if evaluated == "steps":
        # The Trainer evaluates every logging_steps where eval_steps is unset, but saves every 500.
        saves["save_steps"] = arguments.get("eval_steps") or arguments["logging_steps"]
    asked = arguments.get("save_steps")
    if asked not in (None, saves.get("save_steps")) and arguments.get("save_strategy") != "best":
        when = f"every {saves['save_steps']} steps" if evaluated == "steps" else f"at each {evaluated}'s end"
        raise RecipeError(
            f"train.save_steps is {asked}, and early_stopping_patience needs a checkpoint at every "
            f"evaluation, {when}; leave save_steps out."
        )
    return {"metric_for_best_model": "held_out_loss", "load_best_model_at_end": True} | saves | arguments


def _check_machine(arguments: dict[str, Any]) -> None:
    """Refuse what this machine lacks: accelerators, packages."""
    for key in CONFIGURATIONS:
        if isinstance(path := arguments.get(key), str):
            _check_json(key, Path(path))
    cpu = arguments.get("use_cpu") or not torch.accelerator.is_available()
    if arguments.get("fsdp") and cpu:
        raise RecipeError(
            "train.fsdp needs GPUs; on a CPU the Trainer would run plain data parallelism instead."
        )
    if arguments.get("fp16") and cpu:
        raise RecipeError("train.fp16 needs a GPU; use bf16 on a CPU, or leave it out.")
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        if cpu and (arguments.get(name) or {}).get("offload"):
            raise RecipeError(f"train.{name}.offload needs a GPU, from which activations are moved.")
    if arguments.get("deepspeed") and find_spec("deepspeed") is None:
        raise RecipeError("train.deepspeed needs a package; run: pip install deepspeed.")
    if arguments.get("use_liger_kernel") and not is_liger_kernel_available():
        raise RecipeError("train.use_liger_kernel needs a package; run: pip install liger-kernel.")
    trackers = arguments.get("report_to", "none")
    installed = get_available_reporting_integrations()
    for name in trackers if isinstance(trackers, list) else [trackers]:
        if name in INTEGRATION_TO_CALLBACK and name not in (*installed, *UNLISTED):
            package = INSTALLED_AS.get(name, name)
            raise RecipeError(f"train.report_to: {name} is not installed; run: pip install {package}.")


def _check_json(key: str, path: Path) -> None:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"train.{key}: cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"train.{key}: {path} is not JSON ({error}).") from None
    if not isinstance(contents, dict):
        raise RecipeError(f"train.{key}: {path} must hold a JSON object; found {shown(contents)}.")


OF_A_MODEL = ("galore", "apollo", "lomo")
"""Optimizers that want the model itself."""


def new_optimizer(
    made: TrainingArguments, model: torch.nn.Module, decaying: Collection[str]
) -> torch.optim.Optimizer:
    """An optimizer of the kind and settings that a run trains with, over what its model trains.

    Args:
        made: arguments of the run.
        model: that it trains.
        decaying: names of the parameters that weight decay acts on.

    Raises:
        RecipeError: the optimizer is one that changes the model.
    """
    optim = made.optim.value  # type: ignore[union-attr]
    if any(name in optim for name in OF_A_MODEL):
        raise RecipeError(
            f"train.optim: {optim} changes the model itself, so that steps with it cannot be tried before a "
            "run; take another optimizer, or do without a trial."
        )
    kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(made)
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name in decaying].append(parameter)
    return kind(
        [
            {"params": parameters, "weight_decay": made.weight_decay if decays else 0.0}
            for decays, parameters in groups.items()
            if parameters
        ],
        **settings,
    )


def _check_optimizer(made: TrainingArguments) -> None:
    """Raise what making the optimizer would: a missing package, an argument out of range."""
    optim = made.optim.value  # type: ignore[union-attr]
    if any(name in optim for name in OF_A_MODEL):
        name = next(name for name in ("galore_torch", "apollo_torch", "lomo_optim") if name[:4] in optim)
        if find_spec(name) is None:
            raise ImportError(f"optim: {optim} needs the package {name}; install it.")
        return
    kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(made)
    # Made once over a single number, so that a wrong argument shows before a model is loaded.
    kind([torch.nn.Parameter(torch.zeros(1))], **settings)
