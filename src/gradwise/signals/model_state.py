"""Prepares a model for scoring and restores its state afterwards, also after an exception."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from gradwise.errors import SignalError
from gradwise.signals.shards import check_shards, reshard, without_reduction


@contextmanager
def prepared(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode, eager, its parameters without gradients, random state untouched.

    A compiled model runs uncompiled, which gives the same numbers up to rounding; stacks of experts run one
    expert after another, where every product can be seen. What FSDP2 shards is sharded before and after.
    """
    bare = uncompiled(model)
    reshard(bare)
    check_measurable(bare)
    learning = [parameter for parameter in bare.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        # The caller may be in inference mode, in which no tensor can require a gradient.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_one_expert_at_a_time(bare))
        stack.enter_context(without_reduction(bare))
        stack.enter_context(evaluating(bare))
        for parameter in learning:
            parameter.requires_grad_(False)
        try:
            yield bare
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; modes and random state are restored."""
    training = [module for module in model.modules() if module.training]
    cuda = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(cuda):
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def uncompiled(model: nn.Module) -> Any:
    """The model itself where `torch.compile` wrapped it."""
    return getattr(model, "_orig_mod", model)


def unwrapped(optimizer: Any) -> Any:
    """The optimizer itself where accelerate wrapped it."""
    return getattr(optimizer, "optimizer", optimizer)


def check_measurable(model: nn.Module) -> None:
    """Raise SignalError for a model whose samples cannot be measured by themselves."""
    name = type(model).__name__
    if name in ("FullyShardedDataParallel", "DeepSpeedEngine"):
        raise SignalError(
            f"{name} shards the model in a way in which its samples cannot be measured. Shard it by FSDP2 "
            "(fully_shard), or collect signals with a whole copy or a smaller model (signals.model)."
        )
    check_shards(model)
    adapters: Any = getattr(model, "peft_config", {})
    for adapter in adapters.values():
        if getattr(adapter, "is_prompt_learning", False) and "PREFIX" not in str(adapter.peft_type):
            raise SignalError(
                f"{name} puts tokens of its own before each sample ({adapter.peft_type}), which signals do "
                "not know of; use an adapter such as LoRA, or prefix tuning."
            )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise SignalError("Some of the model's weights are not loaded (meta device); load it whole.")


@contextmanager
def _one_expert_at_a_time(model: nn.Module) -> Iterator[None]:
    """transformers fuses the products of all experts where it can; the plain loop shows them one by one."""
    changed = []
    for module in model.modules():
        config = getattr(module, "config", None)
        now = getattr(config, "_experts_implementation", None)
        if config is not None and now not in (None, "eager") and all(config is not c for c, _ in changed):
            changed.append((config, now))
            config._experts_implementation = "eager"
    try:
        yield
    finally:
        for config, before in changed:
            config._experts_implementation = before


def wait_for_state(optimizer: torch.optim.Optimizer) -> None:
    """Wait for the copies under way where an optimizer's state is offloaded to host memory, before its state
    is read or changed."""
    if (stream := getattr(optimizer, "offloaded_state", None)) is not None:
        stream.wait_for_state()
