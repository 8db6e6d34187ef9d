"""One piece of host memory for the optimizer state of all parameters, and how units of it are laid out.

A unit is what is copied and updated together: consecutive parameters of one layer. Its tensors lie next to
each other, at the same offsets in host memory and in a buffer on the device, so that one copy moves all of
them.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwise.errors import RecipeError
from gradwise.training.sharding import as_shard, local

ALIGNMENT = 256
"""Bytes that tensors begin at multiples of, as the CUDA allocator's do."""

UNIT_BYTES = 64 << 20
"""State that a unit holds at most, unless a single parameter has more."""

Form = tuple[torch.Size, torch.dtype]
"""Shape and type of a state tensor."""


@dataclass(frozen=True)
class Piece:
    """One state tensor of one parameter, or what this rank holds of it."""

    parameter: nn.Parameter
    name: str
    form: Form
    offset: int
    """Bytes from the start of its unit."""

    def view(self, memory: Any, start: int = 0) -> Tensor:
        """The tensor at its place in a buffer of uint8, or in host memory that the unit begins at `start`
        of; then it has a storage of its own size, so that saving it does not save the arena.

        Sharded if its parameter is: the memory holds this rank's part.
        """
        (shape, dtype), size = self.form, self.size
        if isinstance(memory, Tensor):
            flat = memory[self.offset : self.offset + size].view(dtype)
        else:
            count = size // dtype.itemsize
            flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=start + self.offset)
        return as_shard(flat.view(shape), self.parameter)

    @property
    def size(self) -> int:
        """Bytes without padding."""
        return self.form[0].numel() * self.form[1].itemsize


@dataclass(frozen=True)
class Unit:
    """What is copied and updated together."""

    parameters: tuple[nn.Parameter, ...]
    pieces: tuple[Piece, ...]
    size: int


def state_forms(optimizer: Optimizer) -> dict[nn.Parameter, dict[str, Form]]:
    """Shape and type of every state tensor that an optimizer will have; scalars, such as step counts, are
    left out.

    Found by a step of the optimizer itself on tensors without storage.
    """
    # The optimizer itself says what it keeps, on tensors without storage: a table of names would age with
    # torch.
    shadow = copy.copy(optimizer)
    shadow.state = defaultdict(dict)
    pairs = [
        (parameter, _without_storage(parameter))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    stand_ins = iter([stand_in for _, stand_in in pairs])
    # Fused and foreach kernels do not run on tensors without storage; the state has the same form without
    # them.
    plain = {"fused": False, "foreach": False, "capturable": False}
    shadow.param_groups = [
        {
            **group,
            **{name: value for name, value in plain.items() if name in group},
            "params": [next(stand_ins) for _ in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    bare_step(shadow)
    return {parameter: forms_of(shadow.state.get(stand_in, {})) for parameter, stand_in in pairs}


def forms_of(state: dict[str, Any]) -> dict[str, Form]:
    """Sizes and types of the streamed tensors of one parameter."""
    return {name: (local(value).shape, value.dtype) for name, value in state.items() if is_streamed(value)}


def is_streamed(value: object) -> bool:
    """Whether a value of an optimizer's state is a tensor with elements on this rank; scalars stay where the
    optimizer keeps them."""
    return isinstance(value, Tensor) and value.dim() > 0 and local(value).numel() > 0


def bare_step(optimizer: Optimizer) -> None:
    """The optimizer's update without the hooks around it."""
    step: Callable[..., Any] = type(optimizer).step
    if getattr(step, "hooked", False):
        # torch wraps `step` in its hooks, and the stream is one of them.
        step = step.__wrapped__  # type: ignore[attr-defined]
    step(optimizer)


def step_on(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """The optimizer's update of some of its parameters, without hooks."""
    groups, chosen = optimizer.param_groups, set(parameters)
    # The group's own settings, learning rate included; only its parameters are fewer.
    restricted = [{**group, "params": [p for p in group["params"] if p in chosen]} for group in groups]
    optimizer.param_groups = [group for group in restricted if group["params"]]
    try:
        bare_step(optimizer)
    finally:
        optimizer.param_groups = groups


def _without_storage(parameter: nn.Parameter) -> nn.Parameter:
    stand_in = nn.Parameter(torch.empty_like(local(parameter.detach()), device="meta"))
    stand_in.grad = torch.empty_like(stand_in)
    return stand_in


def units_of(
    layers: Iterable[Sequence[nn.Parameter]],
    forms: dict[nn.Parameter, dict[str, Form]],
    limit: int | None = None,
) -> list[Unit]:
    """Cut layers into units of at most `limit` bytes of state (default `UNIT_BYTES`), or of one parameter."""
    limit = UNIT_BYTES if limit is None else limit
    units: list[Unit] = []
    for layer in layers:
        chosen: list[nn.Parameter] = []
        for parameter in layer:
            if chosen and _unit([*chosen, parameter], forms).size > limit:
                units.append(_unit(chosen, forms))
                chosen = []
            # A layer is never joined with the next: its unit would then wait for the gradients of both.
            chosen.append(parameter)
        if chosen:
            units.append(_unit(chosen, forms))
    return units


def _unit(parameters: Sequence[nn.Parameter], forms: dict[nn.Parameter, dict[str, Form]]) -> Unit:
    pieces, offset = [], 0
    for parameter in parameters:
        for name, form in forms[parameter].items():
            piece = Piece(parameter, name, form, offset)
            pieces.append(piece)
            # Kernels read aligned addresses faster, and a view in another type needs one.
            offset += -(-piece.size // ALIGNMENT) * ALIGNMENT
    return Unit(tuple(parameters), tuple(pieces), offset)


def check_served(optimizer: Optimizer) -> None:
    """Raise RecipeError for an optimizer whose update of one parameter may depend on others."""
    if not isinstance(optimizer, SERVED) or type(optimizer).__module__.split(".")[0] not in (
        "torch",
        "gradwise",
    ):
        names = ", ".join(kind.__name__ for kind in SERVED)
        raise RecipeError(
            f"Optimizer state is offloaded for torch's {names}, which update each parameter on its own; "
            f"found {type(optimizer).__module__}.{type(optimizer).__name__}. Use state: keep."
        )


SERVED = (
    torch.optim.AdamW,
    torch.optim.Adam,
    torch.optim.SGD,
    torch.optim.RMSprop,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
)
"""Optimizers that can update a subset of the parameters."""
