"""Keys of a recipe that belong to other libraries: TrainingArguments under `train`, PEFT's under `adapter`.

Imported when such keys are met: transformers and PEFT take seconds to load.
"""

from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from gradwise.errors import RecipeError
from gradwise.recipe.argument_rules import check_value
from gradwise.settings import nearest, refusal
from gradwise.text import shown

DECIDED_HERE = {
    "output_dir": "the run directory is given with --out",
    "seed": "set `seed` at the top of the recipe",
    "data_seed": "set `seed` at the top of the recipe",
    "num_train_epochs": "set train.epochs",
    "lr_scheduler_type": "set train.schedule",
    "gradient_accumulation_steps": (
        "it follows from train.batch_size, per_device_train_batch_size and the number of ranks"
    ),
    "auto_find_batch_size": "it would change which samples form a step; set per_device_train_batch_size",
    "train_sampling_strategy": "set `order`",
    "length_column_name": "set `order`",
    "ignore_data_skip": "resuming follows the plan",
    "save_only_model": "a run must be able to resume exactly; keep fewer checkpoints with save_total_limit",
    "restore_callback_states_from_checkpoint": "resuming restores what gradwise keeps itself",
    "resume_from_checkpoint": "a second run into the same directory resumes",
    "enable_jit_checkpoint": "Ctrl-C and SIGTERM already save a checkpoint",
    "remove_unused_columns": "the data section decides which columns reach the model",
    "label_names": "causal language models take `labels`",
    "do_train": "use `gradwise train`",
    "do_eval": "give data.validation",
    "do_predict": "gradwise does not predict",
    "accelerator_config": "which rank sees which sample is decided by the plan",
    "parallelism_config": "tensor, context and sequence parallelism are not supported",
    "local_rank": "torchrun sets it",
    **dict.fromkeys(
        [
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "include_for_metrics",
            "batch_eval_metrics",
        ],
        "evaluation measures the loss alone; give what the final model is measured by under `metrics`",
    ),
    **dict.fromkeys(["bf16_full_eval", "fp16_full_eval"], "evaluation computes in the precision of training"),
    "dataloader_persistent_workers": "a loader lives as long as a segment of the plan",
    "dataloader_in_order": "a plan is served in its order",
    "save_on_each_node": "all nodes share one run directory",
    "disable_tqdm": "bars show on a terminal and nowhere else",
}
"""TrainingArguments that a recipe may not set, each with what to do instead."""


ELSEWHERE = {
    **dict.fromkeys(
        ("early_stopping_threshold", "early_stopping"),
        "transformers has no such argument; to stop early, set train.early_stopping_patience",
    ),
    **{
        f"activation_{name}": f"transformers has it from version 5.23 on; set train.gradient_{name}"
        for name in ("checkpointing", "checkpointing_kwargs")
    },
}
"""Keys that people expect here and the installed transformers lacks, each with what to set instead."""


@cache
def _hints() -> dict[str, Any]:
    hints = get_type_hints(TrainingArguments)
    # True is what transformers asks for; the type is that of its command line.
    hints["fsdp"] = hints["fsdp"] | bool
    return {field.name: hints[field.name] for field in fields(TrainingArguments) if field.init}


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise RecipeError for keys that are unknown, decided by gradwise, or of the wrong type."""
    for key, value in arguments.items():
        if key in DECIDED_HERE:
            raise RecipeError(f"train.{key} cannot be set here: {DECIDED_HERE[key]}.")
        if key not in _hints():
            all_keys = ["epochs", "batch_size", "learning_rate", "schedule", "decay", *_hints()]
            near = nearest(key, [name for name in all_keys if name not in DECIDED_HERE])
            if key in ELSEWHERE:
                raise RecipeError(f"unknown key train.{key}: {ELSEWHERE[key]}.")
            raise RecipeError(
                f"unknown key train.{key}" + (near if "did you mean" in near else "; see `gradwise schema`.")
            )
        try:
            # Strict, since TrainingArguments checks no types (transformers 5.23): the string "no" for a flag
            # would count as true.
            TypeAdapter(_hints()[key]).validate_python(value, strict=True)
        except ValidationError as error:
            raise RecipeError(refusal(f"train.{key}", error.errors()[0]["msg"], value)) from None
        check_value(key, _hints()[key], value)


DEFAULTS: dict[str, Any] = {
    "save_total_limit": 2,  # so that a damaged last checkpoint leaves one to resume from
    "logging_steps": 10,
}
"""TrainingArguments whose default differs from that of transformers."""

DERIVED = ("per_device_train_batch_size", "dataloader_pin_memory", "eval_strategy", "eval_on_start")
"""Those whose value follows from the batch size, the device, or whether there are held-out data."""


def argument_schemas() -> dict[str, Any]:
    """JSON schemas of the TrainingArguments that may stand under `train`, by name."""
    schemas = {}
    for field in fields(TrainingArguments):
        if (
            field.name not in _hints()
            or field.name in DECIDED_HERE
            or field.name in ("learning_rate", "hub_token")
        ):
            continue
        schema: dict[str, Any] = {}
        try:
            schema = TypeAdapter(_hints()[field.name]).json_schema()
        except (
            Exception
        ):  # a type of accelerate's that JSON cannot describe: the key is known, its value is not
            schema = {}
        default = DEFAULTS.get(field.name, field.default)
        if field.name not in DERIVED and isinstance(default, str | int | float | bool | None):
            schema["default"] = default
        schemas[field.name] = schema
    return schemas


UNSUITABLE = {
    **dict.fromkeys(("poly", "multitask_prompt_tuning"), "needs a task number for each sample"),
    "cpt": "learns from a prompt of its own with labels, which gradwise does not make",
    "xlora": "mixes adapters that are already trained",
}
"""Methods of PEFT that need more than a model and samples, and what."""

NEEDED = {
    "trainable_tokens": "token_indices",
    **dict.fromkeys(("prompt_tuning", "p_tuning", "prefix_tuning", "cartridge"), "num_virtual_tokens"),
}
"""Keys that a method has no default for."""


def check_adapter(method: str, options: dict[str, Any]) -> None:
    """Raise RecipeError for methods and keys that PEFT does not have, and values of the wrong type."""
    config = adapter_config(method)
    if method in UNSUITABLE:
        raise RecipeError(f"adapter.method: {method} {UNSUITABLE[method]}; give another method.")
    if (needed := NEEDED.get(method)) and needed not in options:
        raise RecipeError(f"adapter.{needed} is missing, which {method} needs; give it a value.")
    types_by_key: dict[str, Any] = {
        field.name: field.type for field in fields(config) if field.init and field.name not in _OURS
    }
    for key, value in options.items():
        if key not in types_by_key:
            raise RecipeError(f"unknown key adapter.{key}{nearest(key, list(types_by_key))}")
        try:
            TypeAdapter(types_by_key[key]).validate_python(value)
        except ValidationError as error:
            raise RecipeError(refusal(f"adapter.{key}", error.errors()[0]["msg"], value)) from None
        except Exception:  # an annotation that pydantic cannot resolve; PEFT checks the value itself
            continue


_OURS = {"task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"}
"""Keys of a PEFT configuration that follow from the recipe."""


def adapter_config(method: str) -> Any:
    """PEFT's configuration class of a method. Raises RecipeError if there is none."""
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError:
        raise RecipeError("adapter needs the package peft; run: pip install 'gradwise[lora]'.") from None
    config_classes = {kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if method not in config_classes:
        raise RecipeError(
            f"adapter.method: unknown method {shown(method)}{nearest(method, list(config_classes))}"
        )
    return config_classes[method]
