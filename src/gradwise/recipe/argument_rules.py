"""Rules for TrainingArguments under `train`: a value that a run would not honour is refused when it is read.

transformers checks few ranges and drops what a choice elsewhere makes meaningless: `save_steps` without
`save_strategy: steps`, `adam_beta1` with an optimizer that has no betas, arguments of another schedule. Here
each is refused with the reason. What depends on the machine is checked by `gradwise.training.arguments`.
"""

import enum
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from gradwise.errors import RecipeError
from gradwise.settings import nearest, refusal
from gradwise.text import shown


def _interval(value: float) -> float:
    if 0 < value < 1 or (value >= 1 and value == int(value)):
        return value
    raise ValueError("input should be a whole number of steps, or a share of them between 0 and 1")


def _steps(value: int) -> int:
    if value > 0 or value == -1:
        return value
    raise ValueError("input should be a number of steps; leave it out to train for train.epochs")


_Count = Annotated[int, Field(ge=1)]
_Positive, _NotNegative = Annotated[float, Field(gt=0)], Annotated[float, Field(ge=0)]
_Beta = Annotated[float, Field(ge=0, lt=1)]
_Interval = Annotated[float, AfterValidator(_interval)]
_Level = Literal["debug", "info", "warning", "error", "critical", "passive"]

RANGES: dict[str, Any] = {
    "per_device_train_batch_size": _Count,
    "per_device_eval_batch_size": _Count,
    "max_steps": Annotated[int, AfterValidator(_steps)],
    "warmup_steps": Literal[0] | _Interval,
    "weight_decay": _NotNegative,
    "adam_beta1": _Beta,
    "adam_beta2": _Beta,
    "adam_epsilon": _Positive,
    "max_grad_norm": _NotNegative,
    "label_smoothing_factor": Annotated[float, Field(ge=0, lt=1)],
    "neftune_noise_alpha": _Positive,
    "torch_empty_cache_steps": _Count,
    "logging_steps": _Interval,
    "eval_steps": _Interval,
    "save_steps": _Interval,
    "eval_delay": _NotNegative,
    "save_total_limit": _Count,
    "dataloader_num_workers": Annotated[int, Field(ge=0)],
    "dataloader_prefetch_factor": _Count,
    "dataloader_multiprocessing_context": Literal["fork", "spawn", "forkserver"],
    "ddp_bucket_cap_mb": _Count,
    "ddp_timeout": _Count,
    "ddp_backend": Literal["nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"],
    "log_level": _Level,
    "log_level_replica": _Level,
    "include_num_input_tokens_seen": bool | Literal["all", "non_padding", "no"],
    "lr_scheduler_kwargs": dict[str, Any],
    "torch_compile_mode": Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
}
"""Ranges beside the types that TrainingArguments has itself, which say where null is allowed."""

METRICS = ("held_out_loss", "eval_held_out_loss", "loss", "eval_loss")
"""Metrics for the best checkpoint: the loss per label token, or the Trainer's mean of batches."""

GIVEN_BY_TRAINER = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs"}
"""Parameters of a schedule that do not come from lr_scheduler_kwargs."""

UNWARMED = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules that transformers gives no warm-up."""

OPTIM_ARGS = {
    "schedule_free": "weight_lr_power r",
    "ademamix": "beta1 beta2 beta3 alpha eps t_alpha t_beta3",
    "anyprecision": "use_kahan_summation momentum_dtype variance_dtype compensation_buffer_dtype",
    "sgd": "momentum dampening weight_decay nesterov",
    "adagrad": "lr_decay weight_decay eps",
    "rmsprop": "momentum alpha eps weight_decay centered",
    "galore": "rank update_proj_gap scale proj_type",
    "apollo": "rank proj scale_type update_proj_gap scale proj_type",
    "grokadamw": "alpha_init lamb gamma grokking_signal_decay_rate gradient_clipping",
    "torch_4bit": "block_size bf16_stochastic_round",
    "torch_8bit": "block_size bf16_stochastic_round",
    "stable_adamw": "max_lr kahan_sum decouple_lr",
}
"""Keys of optim_args by a part of the optimizer's name, the first that fits; other optimizers take none."""

WITHOUT_BETAS = ("sgd", "adagrad", "rmsprop", "adafactor", "grokadamw", "galore", "lomo")
"""Parts of the names of optimizers that ignore adam_beta1, adam_beta2 and adam_epsilon."""


CHECKPOINTING: dict[str, Any] = {
    "use_reentrant": bool,
    "preserve_rng_state": bool,
    "early_stop": bool,
    "debug": bool,
    "determinism_check": Literal["default", "none"],
    "every_n_layers": _Count,
    "offload": bool,
}
"""Keys of activation_checkpointing_kwargs, which torch.utils.checkpoint and transformers check in the first
step."""

Arguments = dict[str, Any]

# Keys, what they have no effect without, and whether that is there.
NEEDS: list[tuple[tuple[str, ...], str, Callable[[Arguments], Any]]] = [
    (("eval_steps",), "eval_strategy: steps", lambda arguments: arguments.get("eval_strategy") == "steps"),
    (
        ("save_steps",),
        "save_strategy: steps",
        lambda arguments: arguments.get("save_strategy", "steps") == "steps",
    ),
    (
        ("logging_steps",),
        "logging_strategy: steps",
        lambda arguments: arguments.get("logging_strategy", "steps") == "steps",
    ),
    (
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "report_to: trackio",
        lambda arguments: {"trackio", "all"} & set(_listed(arguments.get("report_to", "none"))),
    ),
    (("eval_delay",), "evaluation", lambda arguments: arguments.get("eval_strategy") != "no"),
    (
        ("adam_beta1", "adam_beta2", "adam_epsilon"),
        "an Adam optimizer",
        lambda arguments: not any(name in _optim(arguments) for name in WITHOUT_BETAS),
    ),
    (
        ("optim_target_modules",),
        "a GaLore or APOLLO optimizer",
        lambda arguments: any(name in _optim(arguments) for name in ("galore", "apollo")),
    ),
    (
        ("greater_is_better",),
        "load_best_model_at_end or metric_for_best_model",
        lambda arguments: arguments.get("load_best_model_at_end") or arguments.get("metric_for_best_model"),
    ),
]
NEEDS += [
    # `other=other` binds it now: a lambda would read the loop's last value.
    (keys, other, lambda arguments, other=other: arguments.get(other))
    for other, keys in {
        "activation_checkpointing": ("activation_checkpointing_kwargs",),
        "gradient_checkpointing": ("gradient_checkpointing_kwargs",),
        "use_liger_kernel": ("liger_kernel_config",),
        "fsdp": ("fsdp_config",),
        "dataloader_num_workers": ("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        "push_to_hub": (
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
            "hub_private_repo",
        ),
    }.items()
]


def check_value(key: str, hint: object, value: object) -> None:
    """Raise RecipeError for a value out of range, or that is none of the choices."""
    # `debug` may name several choices in one text.
    words = value.split() if key == "debug" and isinstance(value, str) else [value]
    for choices in _enumerations(hint):
        names = [str(choice.value) for choice in choices]
        for word in words:
            if isinstance(word, str) and word not in names:
                raise RecipeError(f"train.{key}: unknown {shown(word)}{nearest(word, names)}")
    if key in RANGES and value is not None:
        _check_range(key, RANGES[key], value)


def _check_range(key: str, allowed: Any, value: object) -> None:
    try:
        TypeAdapter(allowed).validate_python(value, strict=allowed is bool)
    except ValidationError as error:
        message = error.errors()[-1]["msg"].removeprefix("Value error, ")
        raise RecipeError(refusal(f"train.{key}", message, value)) from None


def check_together(schedule: str, arguments: Arguments) -> None:
    """Raise RecipeError for arguments that contradict each other, or that others make meaningless."""
    for keys, what, fulfilled in NEEDS:
        for key in keys:
            if key in arguments and not fulfilled(arguments):
                raise RecipeError(f"train.{key} has no effect without {what}; leave it out.")
    for key, why in _contradictions(schedule, arguments):
        raise RecipeError(f"train.{key} {why}" + "." * (not why.endswith("?")))
    _check_optim_args(arguments)


def _enumerations(hint: object) -> Iterator[Any]:
    """The enumerations anywhere in an annotation."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        yield hint
    for part in get_args(hint):
        yield from _enumerations(part)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _optim(arguments: Arguments) -> str:
    return str(arguments.get("optim", "adamw_torch"))


def _contradictions(schedule: str, arguments: Arguments) -> Iterator[tuple[str, str]]:
    """Keys, each with the problem of its value."""
    if arguments.get("warmup_steps") and schedule in UNWARMED:
        yield "warmup_steps", f"has no effect, since schedule: {schedule} does not warm up; leave it out"
    metric = arguments.get("metric_for_best_model")
    if metric not in (None, *METRICS):
        near = nearest(str(metric), list(METRICS)).rstrip(".")
        yield "metric_for_best_model", f"is {shown(metric)}, which is not measured{near}"
    if metric in METRICS[:2] and arguments.get("label_smoothing_factor"):
        yield "metric_for_best_model", f"is {metric}, which label_smoothing_factor leaves unknown; give loss"
    if arguments.get("save_strategy") == "best" and metric is None:
        yield "save_strategy", "is best, and nothing says by what; give metric_for_best_model: held_out_loss"
    if arguments.get("load_best_model_at_end") and arguments.get("save_strategy") == "no":
        yield "load_best_model_at_end", "needs checkpoints; set save_strategy to epoch, steps or best"
    if arguments.get("bf16") and arguments.get("fp16"):
        yield "bf16", "and train.fp16 exclude each other; give one"
    yield from _hub_names(arguments)
    yield from _trackers(arguments)
    yield from _compilers(arguments)
    yield from _checkpointing(arguments)


def _hub_names(arguments: Arguments) -> Iterator[tuple[str, str]]:
    if not arguments.get("push_to_hub"):
        return
    if not (name := arguments.get("hub_model_id")):
        yield "push_to_hub", "needs hub_model_id, the name of the repository"
        return
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        yield "hub_model_id", f"is {shown(name)}, which is no name of a repository; give owner/name"


def _checkpointing(arguments: Arguments) -> Iterator[tuple[str, str]]:
    for argument in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        options = arguments.get(argument) or {}
        for key, value in options.items():
            if key not in CHECKPOINTING:
                yield argument, f"has no key {shown(key)}{nearest(key, list(CHECKPOINTING)).rstrip('.')}"
            else:
                _check_range(f"{argument}.{key}", CHECKPOINTING[key], value)
        if options.get("use_reentrant") and {"debug", "determinism_check", "early_stop"} & options.keys():
            yield argument, "has keys that use_reentrant: true does not take; leave use_reentrant out"


def _trackers(arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "report_to" not in arguments or arguments["report_to"] in ("none", "all", [], ["none"], ["all"]):
        return
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in _listed(arguments["report_to"]):
        if name not in INTEGRATION_TO_CALLBACK:
            near = nearest(str(name), [*INTEGRATION_TO_CALLBACK, "none", "all"]).rstrip(".")
            yield "report_to", f"names no tracker that is known: {shown(name)}{near}"


def _compilers(arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    compiler = arguments.get("torch_compile_backend")
    if compiler is None:
        return
    from accelerate.utils import DynamoBackend

    backends = [backend.value.lower() for backend in DynamoBackend if backend.value != "NO"]
    if compiler.lower() not in backends:
        yield (
            "torch_compile_backend",
            f"is unknown: {shown(compiler)}{nearest(compiler, backends).rstrip('.')}",
        )


def _check_optim_args(arguments: dict[str, Any]) -> None:
    text, optim = arguments.get("optim_args"), _optim(arguments)
    if not text:
        return
    allowed_keys = next((keys.split() for part, keys in OPTIM_ARGS.items() if part in optim), [])
    for part in str(text).replace(" ", "").split(","):
        key, equals, value = part.partition("=")
        if not (equals and key and value):
            raise RecipeError(f"train.optim_args is a list such as a=1,b=2; found {shown(text)}.")
        if key not in allowed_keys:
            near = nearest(key, allowed_keys) if allowed_keys else "; it takes none."
            raise RecipeError(f"train.optim_args: {optim} takes no {shown(key)}{near}")


def check_schedule(schedule: str, learning_rate: float, scheduler_kwargs: dict[str, Any]) -> None:
    """Refuse keys that a schedule does not take, and values that it cannot follow for a few steps."""
    import torch
    from transformers import SchedulerType, optimization

    name = "warmup_stable_decay" if schedule == "wsd" else schedule
    # transformers' functions for these two only pass `**kwargs` on, so that their signatures name no keys.
    made_by: dict[str, Any] = {
        "reduce_lr_on_plateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
        "greedy": getattr(optimization, "GreedyLR", None),
    }
    function = made_by.get(name) or optimization.TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    allowed_keys = sorted(set(inspect.signature(function).parameters) - GIVEN_BY_TRAINER)
    for key in scheduler_kwargs:
        if key not in allowed_keys:
            near = nearest(key, allowed_keys) if allowed_keys else "; it takes none."
            raise RecipeError(f"train.lr_scheduler_kwargs: {schedule} takes no {shown(key)}{near}")
    if schedule == "warmup_stable_decay" and "num_decay_steps" not in scheduler_kwargs:
        raise RecipeError(
            "train.schedule: warmup_stable_decay needs train.lr_scheduler_kwargs.num_decay_steps; give it, "
            "or schedule: wsd with train.decay, a share of the steps."
        )
    # For `wsd`, `Trainer.create_scheduler` puts the number of decay steps in; any will do here.
    tried = {"num_decay_steps": 3, **scheduler_kwargs} if schedule == "wsd" else scheduler_kwargs
    try:
        # Nine steps on a single weight. The Trainer makes its scheduler only once model and data are loaded,
        # and a value that a schedule cannot follow may show only in a step.
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
        scheduler: Any = optimization.get_scheduler(name, optimizer, 2, 9, dict(tried))
        if name not in made_by:
            for _ in range(9):
                optimizer.step()
                scheduler.step()
        rates = [float(rate) for rate in scheduler.get_last_lr()]
    except Exception as error:
        raise RecipeError(
            f"train.lr_scheduler_kwargs: {schedule} cannot follow {shown(scheduler_kwargs)} ({error})."
        ) from None
    if not all(0 <= rate < float("inf") for rate in rates):
        raise RecipeError(
            f"train.lr_scheduler_kwargs: {shown(scheduler_kwargs)} gives a learning rate of {rates[0]}."
        )
