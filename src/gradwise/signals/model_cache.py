"""What later scoring runs of the same model need not find out again; forgotten with the model.

A run that selects again every few steps scores a few samples each time. Trying the engine out and drawing the
projection would then cost more than the samples themselves.
"""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from gradwise.signals.engine_check import EngineCheckResult
from gradwise.signals.sums import Projector


@dataclass
class CachedCheck:
    """How a model can be measured, as an engine check found."""

    result: EngineCheckResult
    longest: int
    """Tokens of the longest sample that was tried; for a longer one, other kernels may run."""
    sentences: tuple[str, ...] = ()
    """The sentences on it that the user got."""
    collate: Any = None
    """Held, so that nothing else gets the identity that it is known by."""


@dataclass
class ModelCache:
    """What is kept of one model."""

    checks: dict[object, CachedCheck] = field(default_factory=dict)
    projectors: dict[tuple[int, int], Projector] = field(default_factory=dict)

    def projector(self, size: int, seed: int) -> Projector:
        """The projection for a length and a seed; only the last one is kept, since its signs and places take
        some 0.2 MB a matrix."""
        if (size, seed) not in self.projectors:
            self.projectors = {(size, seed): Projector(size, seed)}
        return self.projectors[size, seed]


_MODELS: WeakKeyDictionary[nn.Module, ModelCache] = WeakKeyDictionary()


def cache_of(model: nn.Module) -> ModelCache:
    """What is kept of a model."""
    return _MODELS.setdefault(model, ModelCache())


def clear_cache(model: nn.Module | None = None) -> None:
    """Let the next scoring run of a model, or of any model, find everything out again."""
    if model is None:
        _MODELS.clear()
    else:
        _MODELS.pop(model, None)


def structure(model: nn.Module) -> int:
    """A number that differs where a model's modules, the hooks on them, or its types do."""
    modules = [
        (
            name,
            type(module),
            "forward" in vars(module),
            tuple(module._forward_hooks),
            tuple(module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    ]
    parameters = [(name, id(p), p.dtype, p.device) for name, p in model.named_parameters()]
    return hash((tuple(modules), tuple(parameters)))
