"""Restores a model, its tokenizer and all random states after a metric, whatever it does to them."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

_TOKENIZER = ("padding_side", "truncation_side", "pad_token", "chat_template")


@contextmanager
def restored_state(model: nn.Module, tokenizer: object) -> Iterator[None]:
    """Restore, at the end: modes, requires_grad, generation settings, padding, and all random states."""
    modes = {module: module.training for module in model.modules()}
    learns = {parameter: parameter.requires_grad for parameter in model.parameters()}
    # An adapter's inner model has generation settings of its own.
    generation = {
        module: copy.deepcopy(module.generation_config)
        for module in model.modules()
        if "generation_config" in vars(module)
    }
    sides = {name: getattr(tokenizer, name) for name in _TOKENIZER if hasattr(tokenizer, name)}
    chance = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_devices(model)):
            yield
    finally:
        random.setstate(chance[0])
        np.random.set_state(chance[1])
        for module, training in modes.items():
            module.training = training
        for parameter, learning in learns.items():
            parameter.requires_grad_(learning)
        for module, settings in generation.items():
            module.generation_config = settings
        for name, value in sides.items():
            if getattr(tokenizer, name) != value:
                setattr(tokenizer, name, value)


def _devices(model: nn.Module) -> list[int]:
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    return [device.index or 0 for device in devices]


def is_sharded(model: nn.Module) -> bool:
    """Whether parts of the model live on other ranks: under FSDP, or DeepSpeed's ZeRO-3."""
    names = {cls.__name__ for module in model.modules() for cls in type(module).__mro__}
    if names & {"FullyShardedDataParallel", "FSDPModule"}:
        return True
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())
