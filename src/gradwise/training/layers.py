"""Freezes and thaws a model's layers as a policy says, and measures the gradients that the policy uses.

Works around any torch optimizer and any training loop:

    switch = LayerSwitch(model, Grass(active=2), optimizer)
    for batch in loader:
        switch.before_step()
        model(**batch).loss.backward()
        switch.after_backward()
        optimizer.step()
        optimizer.zero_grad()

A model sharded by FSDP2 (`fully_shard`) works the same way; make the switch after sharding, with the
optimizer of the sharded parameters.

Every parameter is in the optimizer from the start. A frozen one has no gradient, so torch's optimizers
neither move it nor decay it nor count a step for it. While the switch is `probing`, all layers are measured
and every gradient is dropped as soon as its size is taken: there is nothing for the optimizer to do, and no
more memory is needed than by a step whose lowest active layer is the first.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwise.errors import CheckpointError, RecipeError, SignalError
from gradwise.methods.layer_policy import LayerPolicy, Scores, fill_unmeasured
from gradwise.settings import same_settings
from gradwise.signals.shards import units
from gradwise.structure import group_layers
from gradwise.text import shown
from gradwise.training.in_backward import UpdateInBackward, check_update_in_backward
from gradwise.training.layer_probe import LayerProbe
from gradwise.training.offload import StateStream, offload_state
from gradwise.training.sharding import check_sharding, is_sharded, norm_over_shards


@dataclass(frozen=True)
class LayerDraw:
    """What was decided at one draw, for the record."""

    number: int
    active: tuple[int, ...]
    scores: tuple[float, ...]
    probabilities: tuple[float, ...] | None
    seconds: float
    """Time this decision took, measuring left out."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class LayerSwitch:
    """Drives a layer policy through a training loop.

    Args:
        model: with transformer blocks; what requires a gradient now is what may be trained.
        policy: which layers are updated, and how often that changes.
        optimizer: holds all trainable parameters of the model.
        seed: decides the draws; the same on every rank.
        in_backward: update each layer within the backward pass, as soon as its gradient is complete, and free
            the gradient. For one backward pass per step, without clipping over all layers and loss scaling.
        max_layer_norm: with `in_backward`, largest norm of a layer's gradient, which is scaled down to it.
        average_ranks: average the active layers' gradients over the ranks of torch.distributed in
            `after_backward`, in place of DistributedDataParallel, which refuses layers that freeze after
            wrapping.
        steps: of the run, which bound the steps that measure all layers first; None if not known.

    Raises:
        RecipeError: when the model has no transformer blocks or fewer than `policy.active`, when a trainable
            parameter is missing from the optimizer, or when these are something else.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: LayerPolicy,
        optimizer: Optimizer,
        *,
        seed: int = 0,
        average_ranks: bool = False,
        steps: int | None = None,
        in_backward: bool = False,
        max_layer_norm: float | None = None,
    ) -> None:
        _check_kinds(model, policy, optimizer)
        groups = group_layers(model)
        sampled = policy.embeddings == "sampled" and groups.outside
        self.names = (*groups.names, "outside") if sampled else groups.names
        self.layers = (*groups.blocks, groups.outside) if sampled else groups.blocks
        self.outside = () if sampled else groups.outside
        policy.check_layers(len(self.layers))
        _check_optimizer(optimizer, (*self.layers, self.outside))
        self.policy, self.optimizer, self.seed = policy, optimizer, seed
        self.ranks = dist.get_world_size() if average_ranks and dist.is_initialized() else 1
        self._units = units(model)
        self.sharded = is_sharded(self._parameters())
        if self.sharded:
            check_sharding([*self.layers, self.outside])
            _check_sharded(averages=average_ranks, in_backward=in_backward)
        self.device = self.layers[0][0].device
        sizes = [float(sum(p.numel() for p in layer)) for layer in self.layers]
        self._sizes = torch.tensor(sizes, dtype=torch.float32, device=self.device)
        self.active: tuple[int, ...] = ()
        # float64 from the start: scores that were float32 until a checkpoint was loaded were smoothed
        # differently in the tenth digit (docs/log.md).
        self._scores = np.full(len(self.layers), np.nan)  # of layers that were never measured
        self.draws = 0
        self._steps = 0
        self._within_step = False
        self.probes_left = policy.probes_in(steps)
        self._clear_window()
        self._probe = LayerProbe(self.layers, self.ranks) if self.probes_left else None
        self._release_inputs = _without_input_gradients(model)
        self.stream: StateStream | None = getattr(optimizer, "offloaded_state", None)
        """What keeps the optimizer's state in host memory, if anything does."""
        if policy.state == "offload":
            self.stream = offload_state(optimizer, [*self.layers, self.outside])
        self._norms: dict[int, Tensor] = {}
        self._updates: UpdateInBackward | None = None
        if in_backward:
            check_update_in_backward(ranks=self.ranks)
            layers = [*self.layers, self.outside]
            self._updates = UpdateInBackward(
                optimizer, layers, max_norm=max_layer_norm, measure=self._measure_layer
            )
        elif max_layer_norm is not None:
            raise RecipeError("LayerSwitch: max_layer_norm belongs to in_backward=True; clip after backward.")

    @property
    def probing(self) -> bool:
        """Whether the next step measures all layers and updates nothing."""
        return self.probes_left > 0

    @property
    def scores(self) -> Scores:
        """(L,) the layers' scores; those of layers that were never measured are the mean of the others'."""
        return fill_unmeasured(self._scores)

    @property
    def trainable(self) -> int:
        """Number of parameters that are updated at present."""
        return sum(p.numel() for p in self._parameters() if p.requires_grad)

    def before_step(self) -> LayerDraw | None:
        """To be called before a step's first forward pass; returns what was drawn, if it was time.

        Calling it again before `after_backward` changes nothing, so that a step may be begun again.
        """
        within, self._within_step = self._within_step, True
        if self.stream is not None:
            self.stream.discard()  # of an update that loss scaling skipped
        if self._updates is not None:
            self._updates.paused = self.probing
            if within:
                self._updates.begin_again()
        if self.probing:
            self._set_trainable(range(len(self.layers)), outside=False)
            assert self._probe is not None
            self._probe.attach()
            return None
        # Two cadences: T_s steps between draws, T_u between updates of the scores.
        draws, adapts = (not self._steps % every for every in (self.policy.period, self.policy.adapts_every))
        if within or not (draws or adapts):
            return None
        if self.device.type == "cuda":
            # Scores are read from the device, which would wait for the last update within the draw's time.
            torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        if adapts:
            self._take_scores()
        if not draws:
            return None
        active = self.policy.draw(self.scores, self.draws, self.seed)
        self._activate(tuple(int(layer) for layer in active))
        chances = self.policy.probabilities(self.scores)
        draw = LayerDraw(
            number=self.draws,
            active=self.active,
            scores=tuple(self.scores.tolist()),
            probabilities=None if chances is None else tuple(chances.tolist()),
            seconds=time.perf_counter() - start,
        )
        self.draws += 1
        return draw

    @torch.no_grad()
    def after_backward(self, loss_scale: float | Tensor = 1.0) -> None:
        """To be called after a step's last backward pass, before clipping: measures the gradient.

        Args:
            loss_scale: what the loss was multiplied by (float16 training); norms are divided by it. A
                gradient that overflowed at such a scale is not counted, and a probe that met one has to be
                made again at a lower scale: `probing` stays as it was.

        Raises:
            SignalError: when there is no gradient, or when a probe meets one that is not finite although the
                loss was not scaled.
            RecipeError: when `before_step` was not called since.
        """
        if not self._within_step:
            raise RecipeError(
                "LayerSwitch.after_backward was called without before_step; call before_step before the "
                "first forward pass of every step, and after_backward once after its last backward pass."
            )
        self._within_step = False
        if self._updates is not None:
            check_update_in_backward(scaled=isinstance(loss_scale, Tensor) or loss_scale != 1.0)
        self._check_learned()
        if self.probing:
            self._note_probe(loss_scale)
            return
        if self.ranks > 1:
            average_gradients([p for p in self._parameters() if p.requires_grad], self.ranks)
        if self.policy.measures:
            norms = torch.full_like(self._window, float("nan"))
            for layer in self.active:
                # Layers that were updated within the backward pass have dropped their gradients and were
                # measured there; the norms of others, which are updated at the step, are those of an
                # earlier one.
                if self._updates is None or layer not in self._updates.updated:
                    self._measure_layer(layer)
                norms[layer] = self._norms[layer]
            self._norms.clear()
            # m_l of GRASS: ||g_l|| / sqrt(N_l), summed here over the window's steps and divided by their
            # number later.
            self._note(norms / self._sizes.sqrt() / loss_scale)
        self._steps += 1

    def _check_learned(self) -> None:
        """Refuse a step in which nothing of this model was learned; another rank may have learned
        something."""
        learned = self._probe.seen if self.probing and self._probe else self._has_gradient()
        if not learned and self.ranks == 1:
            raise SignalError(
                "No layer has a gradient after the backward pass; the loss must be that of the model that "
                "LayerSwitch was made with, and after_backward must come before zero_grad."
            )

    def _has_gradient(self) -> bool:
        if self._updates is not None and self._updates.updated:
            return True
        return any(p.grad is not None for p in self._parameters() if p.requires_grad)

    def _measure_layer(self, layer: int) -> None:
        """Keep the norm of a layer's gradient while it is there."""
        if self.policy.measures and layer < len(self.layers):
            gradients = [p.grad for p in self.layers[layer] if p.grad is not None]
            self._norms[layer] = norm_over_shards(gradients, self.device)

    def _note_probe(self, loss_scale: float | Tensor) -> None:
        assert self._probe is not None
        self._probe.detach()
        # sqrt(||g_l||^2 / N_l), from the squared length of each layer's sketch.
        norms = (self._probe.squares() / self._sizes).sqrt() / loss_scale
        overflowed = [self.names[layer] for layer in (~torch.isfinite(norms)).nonzero().flatten().tolist()]
        if overflowed and float(loss_scale) == 1.0:
            raise SignalError(
                f"The gradient of {', '.join(overflowed[:3])} is not finite; check data and weights."
            )
        if not overflowed:
            self._note(norms)
            self.probes_left -= 1

    def _note(self, norms: Tensor) -> None:
        """Add to the window what is finite; NaN stands for a layer that was not measured."""
        finite = torch.isfinite(norms)
        self._window += torch.where(finite, norms, 0.0)
        self._measured += finite

    def restore(self) -> None:
        """Make everything that was trainable at the start trainable again."""
        if self._probe is not None:
            self._probe.detach()
        for hooked in (self.stream, self._updates):
            if hooked is not None:
                # Hooks that stay would keep the switch alive, and would update a model that was given back.
                hooked.unhook()
        self._set_trainable(range(len(self.layers)), outside=True)
        self._release_inputs()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, in plain values that JSON gives back exactly."""
        return {
            "policy": asdict(self.policy),
            "layers": list(self.names),
            "active": list(self.active),
            "scores": [None if np.isnan(score) else float(score) for score in self._scores],
            "draws": self.draws,
            "with_state": self._with_state(),
            "steps": self._steps,
            "probes_left": self.probes_left,
            "window": self._window.tolist(),
            "measured": self._measured.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken; raises CheckpointError for another policy or model."""
        if not isinstance(state, dict) or state.keys() != self.state_dict().keys():
            raise CheckpointError(f"The state is none that a LayerSwitch has given; found {shown(state)}.")
        if not same_settings(state["policy"], self.policy) or state["layers"] != list(self.names):
            raise CheckpointError(
                f"The checkpoint's layer policy was {state['policy']} on {shown(state['layers'])}; this run "
                f"has {asdict(self.policy)} on {shown(list(self.names))}."
            )
        self._within_step = False
        self._scores = np.array(state["scores"], dtype=np.float64)
        self.draws = state["draws"]
        self._steps = state["steps"]
        self.probes_left = state["probes_left"]
        self._window = torch.tensor(state["window"], dtype=torch.float32, device=self.device)
        self._measured = torch.tensor(state["measured"], dtype=torch.float32, device=self.device)
        if state["active"]:
            self._activate(tuple(state["active"]))
        # torch.distributed.checkpoint fills in state that was not saved, counted as one step.
        self._forget(set(range(len(self.layers))) - set(state["with_state"]))

    def _take_scores(self) -> None:
        """Fold the window into the scores: the only time that the device is waited for."""
        measured = (self._window / self._measured).cpu()  # 0 / 0 = NaN: not seen in this window
        if self.ranks > 1 or self.sharded:
            # Averaged gradients are equal on all ranks up to the order of a sum; draws must be equal exactly.
            shared = measured.to(self.device)
            dist.broadcast(shared, src=0)
            measured = shared.cpu()
        values = measured.double().numpy()
        # There is nothing to average the first window with.
        if self._steps == 0:
            self._scores = values
        else:
            self._scores = self.policy.adapt(self._scores, values)
        self._clear_window()

    def _clear_window(self) -> None:
        self._window = torch.zeros(len(self.layers), dtype=torch.float32, device=self.device)
        self._measured = torch.zeros(len(self.layers), dtype=torch.float32, device=self.device)

    def _activate(self, active: tuple[int, ...]) -> None:
        left = set(self.active) - set(active)
        self.active = active
        self._set_trainable(active, outside=self.policy.embeddings == "always")
        if self.policy.state == "drop":
            self._forget(left)

    def _with_state(self) -> list[int]:
        """Layers for which the optimizer keeps state, wherever that is."""
        state = self.optimizer.state
        return [n for n, layer in enumerate(self.layers) if any(state.get(p) for p in layer)]

    def _forget(self, layers: set[int]) -> None:
        """Drop the optimizer's state of layers."""
        for layer in layers:
            for parameter in self.layers[layer]:
                self.optimizer.state.pop(parameter, None)

    def _set_trainable(self, layers: Any, *, outside: bool) -> None:
        for unit in self._units:
            unit.reshard()  # one that evaluation left whole would not follow its requires_grad
        chosen = set(layers)
        for number, layer in enumerate(self.layers):
            _require_gradient(layer, number in chosen)
        _require_gradient(self.outside, outside)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for layer in (*self.layers, self.outside) for p in layer]


def average_gradients(parameters: list[nn.Parameter], ranks: int) -> None:
    """Average gradients over all ranks, one flat buffer per type and device.

    Every rank must pass the same parameters; one that a rank's samples did not touch counts as zero there,
    and one that no rank's did stays without a gradient, as in a single process.
    """
    by_kind: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    missing = [parameter for parameter in parameters if parameter.grad is None]
    for parameter in missing:
        # Without it ranks would send buffers of different lengths, and the call would never return.
        parameter.grad = torch.zeros_like(parameter)
    untouched = set(missing)
    for parameter in parameters:
        assert parameter.grad is not None
        by_kind.setdefault((parameter.grad.dtype, parameter.grad.device), []).append(parameter)
    for (dtype, device), chosen in by_kind.items():
        gradients: list[Any] = [parameter.grad for parameter in chosen]
        touched = torch.tensor([p not in untouched for p in chosen], dtype=dtype, device=device)
        # One message for all layers: a call for each tensor would cost its latency several hundred times.
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), touched])
        dist.all_reduce(flat)
        flat /= ranks
        # Back into the gradients that the optimizer and the clipping already refer to.
        *parts, touched = flat.split([*(gradient.numel() for gradient in gradients), len(chosen)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        if untouched.intersection(chosen):  # only then, since it waits for the device
            for parameter, anywhere in zip(chosen, touched.tolist(), strict=True):
                if not anywhere:
                    parameter.grad = None  # a zero would decay it, and count as a step


def _without_input_gradients(model: Any) -> Callable[[], None]:
    """Let the backward pass end at the lowest active block; returns what puts the model back as it was.

    With activation checkpointing transformers makes the embeddings' output require a gradient, so that
    reentrant checkpoints work. The backward pass then recomputes and goes through every frozen block below
    the lowest active one, and all their inputs are kept: for nothing, since the checkpoints in use by default
    are not reentrant.
    """
    functions = [getattr(module, "_gradient_checkpointing_func", None) for module in model.modules()]
    # Unset means reentrant in some versions of torch.
    reentrant = any(getattr(each, "keywords", {}).get("use_reentrant", True) for each in functions if each)
    if reentrant or not getattr(model, "_require_grads_hooks", None):
        return lambda: None
    model.disable_input_require_grads()
    return model.enable_input_require_grads


def _require_gradient(parameters: tuple[nn.Parameter, ...], required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(required)
        if not required:
            parameter.grad = None


def _check_kinds(model: nn.Module, policy: object, optimizer: torch.optim.Optimizer) -> None:
    wanted = {
        "model": (model, nn.Module),
        "policy": (policy, LayerPolicy),
        "optimizer": (optimizer, Optimizer),
    }
    for name, (value, kind) in wanted.items():
        if not isinstance(value, kind):
            raise RecipeError(f"LayerSwitch needs a {kind.__name__} as its {name}; found {shown(value)}.")


def _check_sharded(*, averages: bool, in_backward: bool) -> None:
    refused = {
        "average_ranks=True, since FSDP2 averages gradients itself": averages,
        "in_backward=True, since a layer's update would wait for the other ranks": in_backward,
    }
    for reason, applies in refused.items():
        if applies:
            raise RecipeError(
                f"LayerSwitch on a model sharded by FSDP2 does not take {reason}; leave it out."
            )


def _check_optimizer(optimizer: Optimizer, layers: tuple[tuple[nn.Parameter, ...], ...]) -> None:
    # A parameter outside of the optimizer would never move, also when its layer is drawn.
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = sum(1 for layer in layers for p in layer if id(p) not in held)
    if missing:
        raise RecipeError(
            f"{missing} trainable parameters are not in the optimizer; give it all of model.parameters() "
            "before layers are frozen."
        )
    groups = optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else []
    if any(group.get("fused") and group.get("momentum") for group in groups):
        # torch's kernel takes a momentum for all parameters of a step or for none.
        raise RecipeError(
            "SGD with fused and momentum cannot update layers that join later; leave fused out."
        )
