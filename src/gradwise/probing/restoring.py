"""Restores a model and its optimizer, bit for bit, after steps that were only tried."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradwise.signals.model_state import uncompiled, unwrapped, wait_for_state


@contextmanager
def restoring(
    model: nn.Module, optimizer: torch.optim.Optimizer, seed: int | None = None
) -> Iterator[Callable[[], None]]:
    """Yields a function that restores weights, buffers and the optimizer, to be called as often as needed;
    at the end, also after an exception, that is done once more, and gradients, modes and random states are
    restored too.

    Needs room for a copy of the trainable weights, of the buffers and of the optimizer's state.

    Args:
        model, optimizer: that are restored.
        seed: of what torch draws meanwhile, such as dropout. If unset, its generators continue.
    """
    bare, inner = uncompiled(model), unwrapped(optimizer)
    states = _OptimizerCopy(inner)
    weights = [p for p in bare.parameters() if p.requires_grad]
    tensors: list[Tensor] = [*weights, *bare.buffers()]
    copies = [tensor.detach().clone() for tensor in tensors]
    gradients = [(p, p.grad) for p in bare.parameters()]
    training = [(module, module.training) for module in bare.modules()]
    chance = random.getstate(), np.random.get_state()
    devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})

    def restore() -> None:
        with torch.no_grad():
            for tensor, copied in zip(tensors, copies, strict=True):
                tensor.copy_(copied)
        states.restore()

    with torch.random.fork_rng(devices):
        if seed is not None:
            _seed(seed, devices)
        try:
            yield restore
        finally:
            restore()
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for module, mode in training:
                module.training = mode
            random.setstate(chance[0])
            np.random.set_state(chance[1])


def _seed(seed: int, devices: list[int]) -> None:
    """Seed the generators that are restored, and no others."""
    torch.default_generator.manual_seed(seed)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)


class _OptimizerCopy:
    """An optimizer's state and settings: tensors are copied back in place, what was not there is removed."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        wait_for_state(optimizer)
        self.state = {
            parameter: {name: (value, _copied(value)) for name, value in values.items()}
            for parameter, values in optimizer.state.items()
        }
        self.settings = [
            {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]

    def restore(self) -> None:
        wait_for_state(self.optimizer)
        state = self.optimizer.state
        for parameter in [p for p in state if p not in self.state]:
            del state[parameter]
        with torch.no_grad():
            for parameter, copies in self.state.items():
                # In place, since others may hold these tensors: offloaded state has its views in one piece of
                # host memory.
                state[parameter] = {name: _restore(*pair) for name, pair in copies.items()}
        for group, settings in zip(self.optimizer.param_groups, self.settings, strict=True):
            for name in [name for name in group if name != "params" and name not in settings]:
                del group[name]
            group.update(copy.deepcopy(settings))


def _copied(value: object) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _restore(value: Any, copied: Any) -> Any:
    """The object that was there before, with what it held."""
    if isinstance(value, Tensor):
        return value.copy_(copied)
    return copy.deepcopy(copied)
