"""What a Trainer's settings must be for gradwise to honour them all; others are refused, with why."""

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments

from gradwise.errors import RecipeError
from gradwise.folders import OwnedFolder
from gradwise.methods.baselines import GivenOrder
from gradwise.ranks import world_size
from gradwise.recipe import Recipe
from gradwise.signals.shards import class_name, units
from gradwise.structure import group_layers
from gradwise.text import shown
from gradwise.training.arguments import decay_steps
from gradwise.training.plan import Plan
from gradwise.training.sharded_checkpoint import check_saves_sharded, saves
from gradwise.training.sharding import TrainerParts, by_accelerate
from gradwise.training.weighting import check_weighted

FUSED_INTO_BACKWARD = ("lomo", "adalomo", "layerwise")
"""Optimizers that update during the backward pass, so that there is no gradient to measure."""


def check_supported(trainer: TrainerParts, recipe: Recipe) -> None:
    """Raise RecipeError for a setting of the trainer that gradwise would have to ignore."""
    args = trainer.args
    _check_ranks(args)
    _check_sharded_before(trainer)
    for setting, refused in _refused_arguments(args, trainer.serves_itself).items():
        if refused:
            raise RecipeError(f"TrainingArguments.{setting} is set, but {refused}.")
    trained = [(name, p.dtype) for name, p in trainer.model.named_parameters() if p.requires_grad]
    if halves := [name for name, dtype in trained if dtype == torch.float16]:
        raise RecipeError(
            f"The weights to train are float16 ({halves[0]}), and their gradients would overflow or vanish. "
            "Load them as bfloat16, or as float32 (on a GPU with fp16: true)."
        )
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if recipe.anneal is not None and schedule != "warmup_stable_decay":
        raise RecipeError(
            "anneal chooses what is trained on while the learning rate decays, and needs schedule: wsd "
            f"(lr_scheduler_type warmup_stable_decay); found {schedule}."
        )
    if recipe.layers.policy is not None:
        _check_layer_policy(trainer, args, recipe.layers.policy.embeddings)
    if recipe.weights == "loss":
        check_weighted(trainer)
    if saves(args):
        check_saves_sharded(trainer)


def _check_sharded_before(trainer: TrainerParts) -> None:
    """Refuse a model that FSDP2 shards already where the Trainer does not know that: it would be wrapped once
    more, and the rank that saves would wait for the others."""
    if units(trainer.model) and not getattr(trainer, "is_distributed_loading_by_transformers", False):
        raise RecipeError(
            f"The model is sharded already, and the Trainer of transformers {transformers.__version__} "
            "cannot train it: it takes models that from_pretrained shards (distributed_config), from "
            "transformers 5.19 on. Give it the whole model, with fsdp: full_shard and fsdp_config: "
            "{version: 2}."
        )


def check_phase(args: TrainingArguments, scheduler_kwargs: dict[str, Any], last: float, steps: int) -> None:
    """Raise RecipeError where the learning rate would not decay in the annealing phase, and only there.

    Args:
        args: the trainer's.
        scheduler_kwargs: what its scheduler is given.
        last: share of the steps that the phase takes.
        steps: of the run.
    """
    length = decay_steps(last, steps)
    if scheduler_kwargs.get("num_decay_steps", length) != length or "num_stable_steps" in scheduler_kwargs:
        raise RecipeError(
            f"anneal.last is {last:g}, which makes {length} of {steps} steps, and lr_scheduler_kwargs say "
            f"{scheduler_kwargs}; leave num_decay_steps and num_stable_steps out."
        )
    if (warming := args.get_warmup_steps(steps)) + length > steps:
        raise RecipeError(
            f"The learning rate takes {warming} of {steps} steps to rise and would begin to decay {length} "
            "steps before the end; shorten the warm-up, or anneal.last."
        )


def trainer_loader_problem(trainer: TrainerParts, indexable: bool) -> str:
    """Why the loader of a trainer cannot be replaced."""
    if indexable:
        return f"{type(trainer).__name__} serves its samples itself"
    stream = type(trainer.train_dataset).__name__
    return f"a plan names samples by position, and the training data are a stream ({stream})"


def check_trainer_loader(
    recipe: Recipe, *, has_plan: bool, packs: bool, problem: str, plannable: bool
) -> None:
    """Raise RecipeError for what cannot be done where the trainer's own loader serves the samples.

    Args:
        recipe: of the run.
        has_plan: whether the user gave a plan.
        packs: whether samples are to be packed.
        problem: why the loader cannot be replaced.
        plannable: whether a plan can say, before the first step, what the loader serves.
    """
    default = Recipe()
    refused = {
        "anneal": recipe.anneal is not None,
        "weights: loss": recipe.weights == "loss",
        "packed_length": packs,
        "select": not plannable and recipe.select != default.select,
        "order": not plannable and recipe.order not in (default.order, GivenOrder()),
        "a plan": not plannable and has_plan,
    }
    for name, applies in refused.items():
        if applies:
            rest = (
                "`select` and `order` methods that score nothing, and `layers`"
                if plannable
                else "`layers` alone"
            )
            raise RecipeError(f"{name} cannot be used here: {problem}. Take {rest}.")


def check_uploads(args: TrainingArguments, folder: Path) -> None:
    """Refuse to upload the run's record, which holds texts of the training data, with the output_dir.

    Args:
        args: the trainer's.
        folder: of the record.
    """
    if folder.resolve().is_relative_to(Path(str(args.output_dir)).resolve()):
        raise RecipeError(
            f"push_to_hub uploads all of {args.output_dir}, and the run's record in it holds texts of the "
            "training data; give the Trainer a run_dir that is not in it."
        )


def check_output(args: object, run_dir: str | Path | OwnedFolder | None) -> None:
    """Refuse an output_dir that is no folder, in which the Trainer could not even be made, and uploads,
    before it makes their repository.

    Args:
        args: the trainer's TrainingArguments, if any.
        run_dir: where the run's record goes; None for the output_dir.
    """
    output = getattr(args, "output_dir", None)
    if isinstance(args, TrainingArguments) and args.push_to_hub:
        folder = run_dir.path if isinstance(run_dir, OwnedFolder) else Path(run_dir or str(output))
        check_uploads(args, folder.expanduser())
        strategy = str(getattr(args.hub_strategy, "value", args.hub_strategy))
        if strategy in ("checkpoint", "all_checkpoints"):
            raise RecipeError(
                f"TrainingArguments.hub_strategy: {strategy} would upload checkpoints before "
                "they are whole; take every_save or end."
            )
    if output and (Path(output).is_symlink() or Path(output).exists()) and not Path(output).is_dir():
        raise RecipeError(f"TrainingArguments.output_dir is {output}, which is no folder; give another one.")


def check_types(recipe: object, plan: object, packed_length: object, unpack_if_needed: bool) -> None:
    """Refuse what is not what a trainer is given under these names."""
    if not isinstance(recipe, Recipe):
        raise RecipeError(
            f"recipe must be a gradwise.Recipe, as gradwise.Recipe.load reads one from a file; found "
            f"{shown(recipe)}."
        )
    if plan is not None and not isinstance(plan, Plan):
        raise RecipeError(
            f"plan must be a gradwise.Plan, as gradwise.Plan.of makes one; found {shown(plan)}."
        )
    if packed_length is not None and (not isinstance(packed_length, int) or packed_length < 2):
        raise RecipeError(f"packed_length must be a whole number from 2; found {shown(packed_length)}.")
    if unpack_if_needed and packed_length is None:
        raise RecipeError("unpack_if_needed has no effect without packed_length; leave it out.")


def check_planned(recipe: Recipe) -> None:
    """Refuse decisions beside a plan that was given."""
    default = Recipe()
    for section in ("select", "order", "anneal"):
        if getattr(recipe, section) != getattr(default, section):
            raise RecipeError(f"A plan says what is trained on to the end; leave {section} out, or the plan.")


def check_sections(recipe: Recipe) -> None:
    """Refuse sections that stand for a trainer's own arguments."""
    default = Recipe()
    for section in ("model", "data", "train", "adapter", "metrics"):
        if getattr(recipe, section) != getattr(default, section):
            raise RecipeError(
                f"The recipe's section {section!r} is for `gradwise train`; with a Trainer, pass it through "
                "the trainer's own arguments and leave it out of the recipe."
            )


def _refused_arguments(args: TrainingArguments, serves_itself: bool) -> dict[str, str | None]:
    config = args.accelerator_config
    return {
        "auto_find_batch_size": _when(args.auto_find_batch_size, "it would change which samples form a step"),
        "train_sampling_strategy": _when(
            getattr(args, "train_sampling_strategy", "random") != "random" and not serves_itself,
            "the recipe's `order` decides that",
        ),
        "ignore_data_skip": _when(args.ignore_data_skip, "resuming follows the plan"),
        "dataloader_persistent_workers": _when(
            args.dataloader_persistent_workers, "a loader lives as long as a segment of the plan"
        ),
        "dataloader_in_order": _when(
            not getattr(args, "dataloader_in_order", True), "a plan is served in its order"
        ),
        "save_on_each_node": _when(
            args.save_on_each_node, "all ranks must see the same checkpoints, on a disk that they share"
        ),
        "hub_token": _when(
            args.hub_token,
            "the Trainer would write it into every checkpoint; set HF_TOKEN in the environment instead, also "
            "when the run is resumed",
        ),
        "save_only_model": _when(args.save_only_model, "a run must be able to resume exactly"),
        "accelerator_config": _when(
            getattr(config, "split_batches", False) or getattr(config, "dispatch_batches", None),
            "the plan decides which rank sees which sample",
        ),
        "parallelism_config": _when(
            getattr(args, "parallelism_config", None) is not None,
            "tensor, context and sequence parallelism are not supported",
        ),
        "fsdp": _when(
            bool(args.fsdp) and args.device.type == "cpu",
            "on a CPU the Trainer would run plain data parallelism instead",
        ),
    }


def _check_ranks(args: TrainingArguments) -> None:
    """Refuse arguments under which every process would take itself for the only one."""
    if args.world_size != world_size():
        raise RecipeError(
            f"{world_size()} processes were started together, but these TrainingArguments see "
            f"{args.world_size}; to train on CPUs, give TrainingArguments(use_cpu=True)."
        )


def _when(condition: object, reason: str) -> str | None:
    return reason if condition else None


def _check_layer_policy(trainer: TrainerParts, args: TrainingArguments, embeddings: str) -> None:
    refusals = {
        "DeepSpeed fixes the trainable parameters when it starts": trainer.is_deepspeed_enabled,
        "FSDP1 puts several layers' weights into one parameter; use FSDP2 (fsdp_config.version: 2)": (
            trainer.is_fsdp_enabled and not by_accelerate(trainer)
        ),
        "DataParallel splits the model within a process; start one per GPU with torchrun": args.n_gpu > 1,
        f"the optimizer {args.optim} updates during the backward pass": any(
            name in str(getattr(args.optim, "value", args.optim)) for name in FUSED_INTO_BACKWARD
        ),
    }
    for reason, applies in refusals.items():
        if applies:
            raise RecipeError(f"Layers cannot be frozen and thawed here: {reason}. Use `layers: all`.")
    if embeddings == "never":
        _check_outside(trainer.model)


def _check_outside(model: torch.nn.Module) -> None:
    """Refuse to freeze for good what an adapter trains outside of the blocks, and warn of a frozen head that
    may have been drawn at random."""
    outside = {id(p) for p in group_layers(model).outside}
    names = [name for name, p in model.named_parameters() if id(p) in outside]
    if getattr(model, "peft_config", None) and names:
        raise RecipeError(
            f"layers.embeddings: never would freeze what the adapter trains outside of the blocks "
            f"({names[0]}); set layers.embeddings: always, or leave that out of the adapter."
        )
    if "Classification" in class_name(model):
        warnings.warn(
            f"layers.embeddings: never freezes the head of {class_name(model)}; if it was not trained "
            "before, set layers.embeddings: always.",
            stacklevel=2,
        )
