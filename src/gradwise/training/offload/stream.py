"""Streams an optimizer's state from host memory for each update and back, a unit of parameters at a time.

Between updates `optimizer.state` holds tensors in host memory. A step of the optimizer becomes, for each unit
in the order in which the backward pass completed its gradients: the unit's state comes to the device, the
optimizer updates the unit's parameters, the new state goes back. While a unit is updated, the next one comes
in and the one before goes out:

    in       | 1 | 2 | 3 |
    update       | 1 | 2 | 3 |
    out              | 1 | 2 | 3 |

The first units come in during the backward pass already, as far as the activations that it has freed leave
room below the peak of the run so far.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwise.errors import RecipeError
from gradwise.training.offload.arena import (
    Form,
    Unit,
    check_served,
    forms_of,
    is_streamed,
    state_forms,
    step_on,
    units_of,
)
from gradwise.training.offload.device import Device, Event, device_of
from gradwise.training.sharding import local

SLOTS = 3
"""Units on the device at once where there is room: one comes in, one is updated, one goes out."""


class Slot:
    """A buffer on the device that holds the state of one unit after the other."""

    def __init__(self, buffer: Tensor, free: Event) -> None:
        self.buffer = buffer
        self.free = free
        """When the buffer can be written."""
        self.taken = False


@dataclass(eq=False)
class Place:
    """Where the state of a unit is: at `start` in host memory, and in a slot while it is on the device."""

    unit: Unit
    start: int
    host: dict[tuple[nn.Parameter, str], Tensor]
    memory: Tensor
    """(size,) uint8, the unit's part of the arena."""
    stored: Event | None = None
    """The last copy to host memory."""
    slot: Slot | None = None
    arrived: Event | None = None


class StateStream:
    """Keeps an optimizer's state in host memory; made by `offload_state`.

    Args:
        optimizer: one of torch's that updates each parameter on its own.
        layers: the optimizer's parameters by layer, in the model's order.
        device: of the parameters; if unset, found from them at the first update.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layers: Sequence[Sequence[nn.Parameter]],
        device: Device | None = None,
    ) -> None:
        check_served(optimizer)
        self.optimizer, self.layers = optimizer, layers
        # Adam asks whether all of its groups are capturable, and takes "yes" of the empty list that it has
        # while the update is made.
        optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]
        self._device = device
        self._forms: dict[nn.Parameter, dict[str, Form]] = {}
        self._places: list[Place] = []
        self._place_of: dict[nn.Parameter, Place] = {}
        self._slots: list[Slot] = []
        self._slot_size = 0
        self.on_device = 0
        """Bytes of state that have been on the device at once, at most."""
        self._order: dict[Place, None] = {}
        self._waiting: deque[Place] = deque()
        self._passes: Counter[nn.Parameter] = Counter()
        self._passes_per_step = 0
        self._groups: list[dict[str, Any]] | None = None
        self.before_update: Callable[[], object] | None = None
        """Called first in each `optimizer.step()`: what must be done before the rest is updated."""
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        optimizer.register_state_dict_pre_hook(lambda _: self.wait_for_state())
        optimizer.register_load_state_dict_pre_hook(self._before_load)
        optimizer.register_load_state_dict_post_hook(self._after_load)
        self._handles: dict[nn.Parameter, Any] = {}
        self.hook()
        self._loaded: dict[nn.Parameter, dict[str, Tensor]] = {}

    @property
    def device(self) -> Device:
        """The device of the parameters."""
        if self._device is None:
            devices = {p.device for layer in self.layers for p in layer}
            if len(devices) > 1:
                raise RecipeError(
                    f"Optimizer state can be offloaded from one device; the parameters are on "
                    f"{', '.join(sorted(map(str, devices)))}. Use state: keep."
                )
            self._device = device_of(devices.pop())
        return self._device

    def discard(self) -> None:
        """Let go of state that was brought to the device for an update that did not come."""
        self._give_back_groups()
        for place in self._places:
            place.slot = None
        for slot in self._slots:
            self.device.release(slot.buffer)
        self._slots.clear()
        self._slot_size = 0
        self._order.clear()
        self._waiting.clear()
        self._passes.clear()

    def wait_for_state(self) -> None:
        """Wait until `optimizer.state` holds what the last update left; then it may be read and changed."""
        self._give_back_groups()
        if not self._places and any(map(is_streamed, self._state_tensors())):
            # Made before it was offloaded: whoever keeps what is there must keep the host memory that the
            # next update reads, and not the tensors that it replaces.
            self._prepare()
        if self._places:
            # Without waiting a checkpoint could read host memory in the middle of a copy.
            copies = [place.stored for place in self._places]
            copies += [place.arrived for place in self._places if place.slot is not None]
            self.device.finish(event for event in copies if event is not None)
            self.discard()

    def _state_tensors(self) -> Iterator[Any]:
        return (value for state in self.optimizer.state.values() for value in state.values())

    def hook(self) -> None:
        """Follow the backward pass, to bring state in before the update needs it."""
        self._follow(p for layer in self.layers for p in layer)

    def _follow(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            # torch hooks none that is frozen; one that thaws later is followed from its first update on.
            if parameter.requires_grad and parameter not in self._handles:
                hook = parameter.register_post_accumulate_grad_hook(self._gradient_came)
                self._handles[parameter] = hook

    def unhook(self) -> None:
        """Take the hooks off the parameters: state then comes in when the update needs it, not before."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    # ---- during the backward pass ------------------------------------------------------------------------

    def _gradient_came(self, parameter: Tensor) -> None:
        """Note the order of the update, and bring in what there is room for.

        A step may have several backward passes; the state comes in during the last one, or the next forward
        pass would find less room than it had. How many there are is known from the step before.
        """
        assert isinstance(parameter, nn.Parameter)
        self._passes[parameter] += 1
        place = self._place_of.get(parameter)
        # In an earlier pass of an accumulated step, state would take the room that the next forward pass
        # needs.
        if place is None or self._passes[parameter] < self._passes_per_step:
            return
        if place not in self._order:
            self._order[place] = None
            self._waiting.append(place)
        while self._waiting and self._bring_in(self._waiting[0], forced=False):
            self._waiting.popleft()

    def _bring_in(self, place: Place, *, forced: bool) -> bool:
        """Start the copy of a unit's state to the device; False where it would need more memory than the run
        has taken so far."""
        if place.slot is not None:
            return True
        slot = self._free_slot(forced)
        if slot is None:
            return False
        slot.taken = True
        place.slot, place.arrived = slot, slot.free
        if self._has_state(place):
            buffer = slot.buffer[: place.unit.size]
            # Two races: the slot may still be read by the copy that empties it, and the host memory may still
            # be written by the copy of the update before.
            after = [event for event in (slot.free, place.stored) if event is not None]
            place.arrived = self.device.copy_in(buffer, place.memory, after)
        return True

    def _free_slot(self, forced: bool) -> Slot | None:
        """A slot for another unit: a new one where there is room, otherwise the one that was left first."""
        if not self._slot_size:
            due = [place for place in self._places if any(map(_may_move, place.unit.parameters))]
            # Slots of one size, so that any unit fits any of them.
            self._slot_size = max(place.unit.size for place in due)
        left = next((slot for slot in self._slots if not slot.taken), None)
        fits = left is not None and len(self._slots) >= SLOTS
        # Below the peak of the run so far memory costs nothing. Only the unit that is updated next may raise
        # it.
        if not fits and (self.device.room() >= self._slot_size or (forced and left is None)):
            left = Slot(self.device.empty(self._slot_size), self.device.now())
            self._slots.append(left)
            self.on_device = max(self.on_device, len(self._slots) * self._slot_size)
        return left

    # ---- the update --------------------------------------------------------------------------------------

    def _before_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make the whole update, and leave nothing to do for the optimizer's own step."""
        self._give_back_groups()
        if [argument for argument in (*args[1:], *kwargs.values()) if argument is not None]:
            raise RecipeError(
                "An optimizer with offloaded state takes no closure; call step() after backward()."
            )
        if self.before_update is not None:
            self.before_update()
        with torch.no_grad():
            self._update_all()
        # The update is made already. An empty list lets schedulers, scalers and hooks around `step` run as
        # they would.
        self._groups, self.optimizer.param_groups = self.optimizer.param_groups, []

    def _after_step(self, *_: object) -> None:
        self._give_back_groups()

    def _give_back_groups(self) -> None:
        """After a step, also one that another hook of the optimizer ended by an error: without its groups the
        optimizer would do nothing from then on."""
        if self._groups is not None:
            self.optimizer.param_groups, self._groups = self._groups, None

    def _update_all(self) -> None:
        self._prepare()
        # By the time of their gradients; those whose gradients came otherwise last.
        ordered = dict.fromkeys([*self._order, *self._places])
        places = [place for place in ordered if any(p.grad is not None for p in place.unit.parameters)]
        for number, place in enumerate(places):
            self._bring_in(place, forced=True)
            if self._handles:
                self._follow(place.unit.parameters)
            for following in places[number + 1 : number + SLOTS]:
                if not self._bring_in(following, forced=following is places[number + 1]):
                    break
            self._update(place)
        self.device.issued()
        if places:
            # Known from the step before, since nothing says in advance which backward pass is the last.
            self._passes_per_step = max(self._passes.values(), default=0)
        self.discard()

    def update(self, parameters: Iterable[nn.Parameter]) -> None:
        """Update some parameters before the step, within the backward pass."""
        self._prepare()
        for place in dict.fromkeys(self._place_of[p] for p in parameters):
            self._bring_in(place, forced=True)
            self._update(place)
            self._order.pop(place, None)
        # What was updated early must not come in a second time at the step.
        self._waiting = deque(place for place in self._waiting if place in self._order)
        self.device.issued()

    def _update(self, place: Place) -> None:
        """Update the parameters of a unit whose state is coming in, and start its way back."""
        slot = place.slot
        assert slot is not None
        after = [] if place.arrived is None else [place.arrived]
        done = self.device.compute(lambda: self._step(place.unit, place.host, slot.buffer), after)
        # Behind the update and beside whatever is computed next: the copy out costs no time of its own where
        # it takes less than an update.
        place.stored = self.device.copy_out(place.memory, slot.buffer[: place.unit.size], [done])
        slot.free, slot.taken, place.slot = place.stored, False, None
        # The slot that was left first is to be used first.
        self._slots.remove(slot)
        self._slots.append(slot)

    def _step(self, unit: Unit, host: dict[tuple[nn.Parameter, str], Tensor], buffer: Tensor) -> None:
        """The optimizer's own step on the parameters of a unit, with their state in `buffer`."""
        state = self.optimizer.state
        views = [(piece, piece.view(buffer)) for piece in unit.pieces]
        for piece, view in views:
            if piece.name in state.get(piece.parameter, {}):
                state[piece.parameter][piece.name] = view
        try:
            step_on(self.optimizer, unit.parameters)
        finally:
            # Also after an error: the buffer will hold the state of another unit.
            for piece, view in views:
                value = state.get(piece.parameter, {}).get(piece.name)
                if value is not None:
                    if value is not view:  # made by this step, or replaced in it
                        local(view).copy_(local(value))
                    state[piece.parameter][piece.name] = host[piece.parameter, piece.name]

    def _has_state(self, place: Place) -> bool:
        state = self.optimizer.state
        return any(piece.name in state.get(piece.parameter, {}) for piece in place.unit.pieces)

    # ---- the arena ---------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make the arena before the first update, and again where loaded state has other types."""
        if self._places:
            if sum(len(group["params"]) for group in self.optimizer.param_groups) > len(self._place_of):
                raise RecipeError(
                    "Parameters were added to the optimizer after its state was offloaded, and they would "
                    "never be updated; add all parameters before its first step."
                )
            return
        forms = state_forms(self.optimizer)
        streamed = {p for layer in self.layers for p in layer}
        if streamed != set(forms):
            raise RecipeError(
                "The optimizer's parameters are not those that its state is offloaded for; "
                "add all parameters to the optimizer before its first step."
            )
        present = {p: forms_of(state) for p, state in self.optimizer.state.items()}
        self._forms = {p: {**form, **present.get(p, {})} for p, form in forms.items()}
        units = units_of(self.layers, self._forms)
        memory, start = self.device.host(sum(unit.size for unit in units)), 0
        # One copy moves a whole unit: hundreds of small copies would each pay the latency of a transfer.
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        for unit in units:
            views = {(piece.parameter, piece.name): piece.view(memory, start) for piece in unit.pieces}
            place = Place(unit, start, views, whole[start : start + unit.size])
            self._places.append(place)
            self._place_of.update(dict.fromkeys(unit.parameters, place))
            start += unit.size
        self._move_in({p: dict(state) for p, state in self.optimizer.state.items()})

    def _move_in(self, states: Mapping[Any, dict[str, Any]]) -> None:
        """Move state tensors, wherever they are, to their places in host memory."""
        for parameter, state in states.items():
            for name, value in state.items():
                if is_streamed(value):
                    view = self._place_of[parameter].host[parameter, name]
                    local(view).copy_(local(value))
                    self.optimizer.state[parameter][name] = view

    def _before_load(self, optimizer: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
        """Keep the tensors back: torch would bring all of them to the device, as the parameters' type."""
        self.wait_for_state()
        saved = [number for group in loaded["param_groups"] for number in group["params"]]
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self._loaded, rest = {}, {}
        for number, state in loaded["state"].items():
            rest[number] = {name: value for name, value in state.items() if not is_streamed(value)}
            if number in saved and saved.index(number) < len(held):
                parameter = held[saved.index(number)]
                self._loaded[parameter] = {name: v for name, v in state.items() if is_streamed(v)}
        return {**loaded, "state": rest}

    def _after_load(self, optimizer: Optimizer) -> None:
        loaded, self._loaded = self._loaded, {}
        forms = {p: {**self._forms.get(p, {}), **forms_of(state)} for p, state in loaded.items()}
        # State keeps the type that it was saved in; another type or shape needs another arena.
        if any(self._forms.get(p) != form for p, form in forms.items()):
            self._places, self._place_of = [], {}
        for parameter, state in loaded.items():
            optimizer.state[parameter].update(state)
        if self._places:
            self._move_in(loaded)
        elif loaded:
            self._prepare()


def offload_state(
    optimizer: Optimizer,
    layers: Sequence[Sequence[nn.Parameter]] | None = None,
    *,
    device: Device | None = None,
) -> StateStream:
    """Keep an optimizer's state in pinned host memory from now on; returns the stream that does, if any.

    Args:
        optimizer: one of torch's that updates each parameter on its own; AdamW and SGD are among them.
        layers: its parameters by layer, in the model's order; those of the optimizer that are in none follow.
            If unset, they are taken in the optimizer's order.
        device: of the parameters; if unset, found from them.

    Raises:
        RecipeError: the optimizer is another one, or is fused over parameters.
    """
    stream = getattr(optimizer, "offloaded_state", None)
    if stream is None:
        rest = {p: p for group in optimizer.param_groups for p in group["params"]}
        # Popped, since a parameter that two layers share must be updated once: with the first of them.
        updated = [[rest.pop(p, None) for p in layer] for layer in layers or ()]
        chosen = [[p for p in layer if p is not None] for layer in updated]
        stream = StateStream(optimizer, [*chosen, list(rest)], device)
        optimizer.offloaded_state = stream  # type: ignore[attr-defined]
    stream.hook()
    return stream


def _may_move(parameter: nn.Parameter) -> bool:
    """Whether the next update may move a parameter; one frozen after the backward pass has a gradient."""
    return parameter.requires_grad or parameter.grad is not None
