"""Models that FSDP2 (`fully_shard`) shards over ranks, as they are measured.

Between forward passes a parameter is a DTensor, and a rank holds some of its rows. In the forward and the
backward pass of its module, FSDP gathers the whole parameter, an ordinary tensor, and puts it in the place of
the DTensor.
Scopes name the DTensors. Whatever follows a forward pass learns from `Shards.watched` which whole parameter
stands for which DTensor.

Parameters get no gradients here, so FSDP has none to average over ranks, and no `.grad` changes.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradwise.errors import SignalError

Follower = Callable[[Tensor, Tensor], object]
"""Gets a sharded parameter and the whole one that a forward pass uses in its place."""


class _Slot(NamedTuple):
    owner: nn.Module
    name: str
    sharded: nn.Parameter


def units(model: nn.Module) -> list[Any]:
    """The modules of a model that `fully_shard` was called on, outer before inner; empty for a model that is
    whole in this process."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # without it nothing can be sharded so
    kind = getattr(fsdp, "FSDPModule", None)
    return [] if kind is None else [module for module in model.modules() if isinstance(module, kind)]


def class_of(module: object) -> type:
    """A module's class, not the subclass of it that FSDP puts in its place."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    kinds = type(module).__mro__
    return next((kind for kind in kinds if fsdp is None or not issubclass(kind, fsdp.FSDPModule)), kinds[0])


def class_name(model: nn.Module) -> str:
    """The name of a model's own class."""
    return class_of(model).__name__


def is_distributed(parameter: Tensor) -> bool:
    """Whether a parameter is spread over ranks, by FSDP2 or otherwise."""
    return type(parameter).__name__ == "DTensor"


def check_shards(model: nn.Module) -> None:
    """Raise SignalError for parameters that are spread over ranks in other ways than by FSDP2.

    Args:
        model: with its parameters sharded, as they are between forward passes.
    """
    distributed: list[Any] = [p for p in model.parameters() if is_distributed(p)]
    name = class_name(model)
    if distributed and not units(model):
        raise SignalError(
            f"{name} is spread over ranks by something else than FSDP2 (fully_shard), where its samples "
            "cannot be measured; collect signals with a whole copy, or with a smaller model (signals.model)."
        )
    if any(sum(not place.is_replicate() for place in p.placements) > 1 for p in distributed):
        raise SignalError(
            f"{name} is split in two ways (FSDP2 with tensor or expert parallelism), where its samples "
            "cannot be measured; shard it with fully_shard alone."
        )


def reshard(model: nn.Module) -> None:
    """Let go of whole parameters that a forward pass has left, as evaluation does; not collective."""
    for unit in units(model):
        unit.reshard()


@contextmanager
def without_reduction(model: nn.Module) -> Iterator[None]:
    """Nothing is averaged over ranks in it, and the model's parameters are sharded before and after it.

    Gradients that a training step has accumulated without synchronisation so far stay as they are.
    """
    modules = units(model)
    before = [_reductions(unit) for unit in modules]
    reshard(model)
    for unit in modules:
        # Parameters get no gradients here, but FSDP would still wait for the other ranks at the end of each
        # backward pass.
        unit.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    except BaseException:
        # FSDP would wait for the rest of a forward pass that was left halfway.
        for unit in modules:
            if _left_halfway(unit) and hasattr(unit, "reset_iter_state"):
                unit.reset_iter_state()
        raise
    finally:
        reshard(model)
        for unit, flags in zip(modules, before, strict=True):
            if flags is not None:
                unit.set_requires_gradient_sync(flags[0], recurse=False)
                unit.set_requires_all_reduce(flags[1], recurse=False)


def gathered_in(model: nn.Module) -> torch.dtype | None:
    """The type that FSDP's mixed precision gathers parameters in, and computes in; None for their own."""
    return next((dtype for unit in units(model) if (dtype := _policy(unit)) is not None), None)


class Shards:
    """The sharded parameters of a prepared model, and the whole ones that its forward passes use.

    Args:
        model: prepared; whole or sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        self.units = units(model)
        reshard(model)
        # Outer units come first, so that a module ends up with the innermost one that holds it, by which FSDP
        # gathers it.
        inner: dict[nn.Module, Any] = {module: unit for unit in self.units for module in unit.modules()}
        self._slots: dict[int, list[_Slot]] = {id(unit): [] for unit in self.units}
        for module, unit in inner.items():
            for name, parameter in module.named_parameters(recurse=False):
                if is_distributed(parameter):
                    self._slots[id(unit)].append(_Slot(module, name, parameter))

    @contextmanager
    def watched(
        self, gathered: Follower, freed: Callable[[Iterable[nn.Parameter]], object] | None = None
    ) -> Iterator[None]:
        """Within it, `gathered` is called with each whole parameter as its module's forward pass begins, and
        `freed`, as it ends, with the sharded ones whose whole parameters may be gone."""
        handles = []
        for unit in self.units:
            unit.reshard()  # one that is whole already would not follow its requires_grad
            slots = self._slots[id(unit)]
            handles.append(unit.register_forward_pre_hook(_beginning(slots, gathered)))
            if freed is not None:
                handles.append(unit.register_forward_hook(_end(slots, freed)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _beginning(slots: list[_Slot], gathered: Follower) -> Callable[..., None]:
    def begin(*_: object) -> None:
        for slot in slots:
            whole = slot.owner._parameters[slot.name]
            if whole is not None and whole is not slot.sharded:
                gathered(slot.sharded, whole)

    return begin


def _end(slots: list[_Slot], freed: Callable[[Iterable[nn.Parameter]], object]) -> Callable[..., None]:
    def end(*_: object) -> None:
        freed(slot.sharded for slot in slots)

    return end


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes: FSDP2 can keep the shards of a model that computes on a GPU on the CPU."""
    parameter: Any = next(model.parameters())
    if is_distributed(parameter) and parameter.device_mesh.device_type != parameter.device.type:
        return torch.device(parameter.device_mesh.device_type)
    return parameter.device


def whole_tensor(tensor: Any) -> Tensor:
    """A tensor that may be spread over ranks, gathered on this one; collective if it is."""
    return tensor.full_tensor() if is_distributed(tensor) else tensor


# FSDP's settings have public setters, but nothing public reads them (torch 2.13). So its own state
# is read here, and nowhere else.


@contextmanager
def _reading() -> Iterator[None]:
    """Around whatever reads FSDP's own state."""
    try:
        yield
    except AttributeError as error:
        raise SignalError(
            f"torch {torch.__version__} keeps the state of FSDP2 elsewhere than torch 2.13 does "
            f"({error}); install torch 2.13, or use a model that is whole in each process."
        ) from error


def _reductions(unit: Any) -> tuple[bool, bool] | None:
    """Whether a unit's gradients are reduced within and between replicas; None for one without parameters."""
    with _reading():
        state = unit._get_fsdp_state()
        # One group for each unit, until later versions had several, whose flags are set together.
        several = hasattr(state, "_fsdp_param_groups")
        groups = state._fsdp_param_groups if several else [state._fsdp_param_group]
        return next(((g.reduce_grads, g.all_reduce_grads) for g in groups if g is not None), None)


def _policy(unit: Any) -> torch.dtype | None:
    with _reading():
        return unit._get_fsdp_state()._mp_policy.param_dtype


def _left_halfway(unit: Any) -> bool:
    """Whether it is the root of a forward or backward pass that has not ended."""
    with _reading():
        state = unit._get_fsdp_state()
        return state._is_root is True and any(
            each._training_state.name != "IDLE" for each in (state, *state._state_ctx.all_states)
        )
