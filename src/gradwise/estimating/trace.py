"""Runs the steps of a recipe on tensors without storage, and counts their bytes.

The model is built from its configuration alone; no weight is read. The batch is the largest that the recipe
allows: every row has `data.max_length` tokens. With a layer policy the draw is the one that needs most: the
lowest block is active, so that all blocks keep activations, and every layer was drawn before, so that all
have optimizer state.
"""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers import AutoModelForCausalLM, PreTrainedModel

from gradwise.errors import RecipeError
from gradwise.estimating import sharded
from gradwise.methods.cost_counts import Shape
from gradwise.planning.shape import beyond_caches, model_shape
from gradwise.recipe import Model, Recipe
from gradwise.run.model import configuration
from gradwise.signals.shards import units
from gradwise.structure import LayerGroups, group_layers
from gradwise.training.adapter import with_adapter
from gradwise.training.arguments import micro_batch
from gradwise.training.layer_probe import LayerProbe
from gradwise.training.offload.arena import UNIT_BYTES, state_forms, units_of
from gradwise.training.record_names import BUFFERS, GRADIENTS, PASSES, PROBE, STATE, UPDATE
from gradwise.training.sharding import local
from gradwise.training.tensor_bytes import TensorBytes

OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
"""By the first part of the Trainer's name for an optimizer, such as `adamw_torch_fused`."""

ModelOf = Callable[[Recipe], Any]
"""Makes a recipe's model without weights."""


@dataclass(frozen=True)
class Phase:
    """The peak of a part of a step."""

    name: str
    parts: dict[str, int]
    """Bytes by part at the peak."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Trace:
    """The phases of a run, and what the model is."""

    phases: tuple[Phase, ...]
    parameters: int
    trainable: int
    """Parameters with a gradient in the draw that was traced."""
    layers: int
    micro_batch: int
    passes: int
    """Micro-batches per step."""
    host: int
    """Bytes of optimizer state in host memory."""
    ranks: int
    """Ranks that share the model; the bytes are those of the first one."""
    shape: Shape
    """What the time depends on, as far as the model says it."""

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)


def trace(recipe: Recipe, ranks: int | None = None, *, sharded_as_loaded: bool = False) -> Trace:
    """The memory of a recipe's steps.

    Args:
        recipe: with a model and data.
        ranks: that share the model, where FSDP2 shards it.
        sharded_as_loaded: whether transformers shards it in loading it (`DistributedConfig`).

    Raises:
        RecipeError: the model's configuration cannot be read, or a setting is one whose memory is not known.
    """
    assert recipe.model is not None and recipe.data is not None
    sharing = sharded.ranks_of(recipe, ranks, as_loaded=sharded_as_loaded)
    _check_known(recipe)
    if sharing is None:
        return _trace(recipe, _model, 1)
    sharded.check_known(recipe, as_loaded=sharded_as_loaded)

    def model_of(recipe: Recipe) -> Any:
        return sharded.shard(_model(recipe), recipe, as_loaded=sharded_as_loaded)

    with sharded.pretended(sharing):
        return _trace(recipe, model_of, sharing)


def _trace(recipe: Recipe, model_of: ModelOf, ranks: int) -> Trace:
    train, length = recipe.train, recipe.data.max_length  # type: ignore[union-attr]
    rows = micro_batch(train.batch_size, ranks, train.arguments.get("per_device_train_batch_size"))
    micro_batches = train.batch_size // ranks // rows
    # The second micro-batch meets the first one's gradients, and none meets more than that.
    passes = min(2, micro_batches)
    fake = FakeTensorMode()  # one, since tensors of two do not mix
    with fake:
        model = model_of(recipe)
        groups = _draw(model, recipe)
        phases = [_trace_forward_backward(model, _batch(rows, length), passes, recipe)]
    state, host, slots = _state(recipe, model, groups)
    phases[0].parts[STATE] = state
    with fake:
        phases.append(_update(model, recipe, state + slots))
    steps = train.arguments.get("max_steps", -1)
    policy = recipe.layers.policy
    if policy is not None and policy.probes_in(steps if steps > 0 else None):
        with fake:
            phases.append(_probe(recipe, model_of(recipe), rows, length))
    return Trace(
        phases=tuple(phases),
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=0 if groups is None else len(groups.blocks),
        micro_batch=rows,
        passes=micro_batches,
        host=host,
        ranks=ranks,
        shape=replace(
            model_shape(model), step_tokens=train.batch_size * length if beyond_caches(model) else math.inf
        ),
    )


def _check_known(recipe: Recipe) -> None:
    arguments = recipe.train.arguments
    for key in ("deepspeed", "use_liger_kernel", "torch_compile"):
        if arguments.get(key):
            raise RecipeError(f"gradwise estimate does not know the memory of train.{key}; leave it out.")
    if _optimizer_name(recipe).split("_")[0] not in OPTIMIZERS or "8bit" in _optimizer_name(recipe):
        raise RecipeError(
            f"gradwise estimate knows the memory of {', '.join(OPTIMIZERS)}; found optim: "
            f"{_optimizer_name(recipe)}."
        )


def _optimizer_name(recipe: Recipe) -> str:
    return str(recipe.train.arguments.get("optim", "adamw_torch_fused"))


def _model(recipe: Recipe) -> Any:
    """The recipe's model without weights, in the type that it is trained in."""
    settings = recipe.model
    assert settings is not None
    config = configuration(settings)
    dtype = _dtype(settings, config)
    extra = {"attn_implementation": settings.attention} if settings.attention else {}
    with unset_fake_temporarily(), torch.device("meta"):  # PEFT cannot put adapters on fake tensors
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, **extra)
        if recipe.adapter is not None:
            model = with_adapter(model, recipe.adapter.method, recipe.adapter.options, lambda _: None)
    _pretend_on_cpu(model)
    arguments = recipe.train.arguments
    if arguments.get("gradient_checkpointing") or arguments.get("activation_checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def _pretend_on_cpu(model: nn.Module) -> None:
    """Replace tensors of the meta device by fake ones of the CPU, for which attention chooses the kernel that
    it would in training; shared ones stay shared."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    fake = torch.empty(weight.shape, dtype=weight.dtype)
                    made[id(weight)] = nn.Parameter(fake, requires_grad=weight.requires_grad)
                module._parameters[name] = made[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _dtype(settings: Model, config: object) -> torch.dtype:
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    config_dtype = getattr(config, "dtype", None)
    return (
        config_dtype
        if isinstance(config_dtype, torch.dtype)
        else getattr(torch, str(config_dtype or "float32"))
    )


def _draw(model: nn.Module, recipe: Recipe) -> LayerGroups | None:
    """Freeze what the draw that needs most leaves frozen; returns the layers, or None without a policy."""
    policy = recipe.layers.policy
    if policy is None:
        return None
    groups = group_layers(model)
    sampled = policy.embeddings == "sampled" and groups.outside
    layers = [*groups.blocks, *([groups.outside] if sampled else [])]
    policy.check_layers(len(layers))
    sizes = [sum(p.numel() for p in layer) for layer in layers]
    # The lowest layer keeps all activations above it, and the embeddings, which come last here, keep as many
    # as the first block; the largest others have the most gradients and state.
    lowest = len(layers) - 1 if sampled and sizes[-1] > sizes[0] else 0
    others = sorted((n for n in range(len(layers)) if n != lowest), key=lambda n: -sizes[n])
    active = [lowest, *others[: policy.active - 1]]
    for number, layer in enumerate(layers):
        for parameter in layer:
            parameter.requires_grad_(number in active)
    if not sampled:
        for parameter in groups.outside:
            parameter.requires_grad_(policy.embeddings == "always")
    return groups


def _batch(rows: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.zeros(rows, length, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def _trace_forward_backward(model: nn.Module, batch: dict[str, Any], passes: int, recipe: Recipe) -> Phase:
    """Forward and backward; the second micro-batch finds the gradients of the first."""
    counted, modules = TensorBytes(), units(model)
    with counted.following(model):
        for done in range(passes):
            for unit in modules:
                # As the Trainer does: gradients are whole on each rank until the last micro-batch.
                unit.set_requires_gradient_sync(done == passes - 1, recurse=False)
            with _autocast(recipe):
                loss = model(**batch).loss
            loss.backward()
    return Phase(PASSES, dict(+counted.at_peak))


def _probe(recipe: Recipe, model: nn.Module, rows: int, length: int) -> Phase:
    """Before the first step: all blocks are measured, and each gradient is dropped at once."""
    groups = group_layers(model)
    for parameter in groups.outside:
        parameter.requires_grad_(recipe.layers.policy.embeddings == "sampled")  # type: ignore[union-attr]
    probe = LayerProbe(groups.blocks, 1)
    probe.attach()
    try:
        return Phase(PROBE, _trace_forward_backward(model, _batch(rows, length), 1, recipe).parts)
    finally:
        probe.detach()


def _autocast(recipe: Recipe) -> Any:
    arguments = recipe.train.arguments
    if arguments.get("bf16") or arguments.get("fp16"):
        return torch.autocast("cpu", torch.bfloat16)  # float16 takes the same bytes
    return nullcontext()


def _state(recipe: Recipe, model: nn.Module, groups: LayerGroups | None) -> tuple[int, int, int]:
    """Bytes of optimizer state on the device between updates, in host memory, and of units under way."""
    policy = recipe.layers.policy
    if groups is None or policy is None:
        trained = [p for p in model.parameters() if p.requires_grad]
        return _state_bytes(recipe, trained), 0, 0
    outside = groups.outside if policy.embeddings != "never" else ()
    layers = [*groups.blocks, outside]
    every = [p for layer in layers for p in layer]
    if policy.state == "drop":
        return _state_bytes(recipe, [p for p in model.parameters() if p.requires_grad]), 0, 0
    if policy.state == "keep":
        # After enough draws every layer has had its turn, and `keep` keeps all of their state.
        return _state_bytes(recipe, every), 0, 0
    active = [p for layer in layers for p in layer if p.requires_grad]
    optimizer = _optimizer(recipe, active)
    stand_ins = dict(zip(active, optimizer.param_groups[0]["params"], strict=True))
    by_layer = [[stand_ins[p] for p in layer if p in stand_ins] for layer in layers]
    units = units_of(by_layer, state_forms(optimizer))
    largest = max((unit.size for unit in units), default=UNIT_BYTES)
    # At the update two units are on the device without regard to room: the one that is updated and the next.
    return 0, _state_bytes(recipe, every), min(2, len(units)) * largest


def _optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    kind: Any = OPTIMIZERS[_optimizer_name(recipe).split("_")[0]]
    optimizer_arguments = str(recipe.train.arguments.get("optim_args", ""))
    momentum: dict[str, Any] = (
        {"momentum": 0.9} if kind is torch.optim.SGD and "momentum" in optimizer_arguments else {}
    )
    held = [local(p.detach()) for p in parameters]
    stand_ins = [nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta")) for p in held]
    return kind(stand_ins, lr=1e-3, **momentum)


def _state_bytes(recipe: Recipe, parameters: list[nn.Parameter]) -> int:
    if not parameters:
        return 0
    forms = state_forms(_optimizer(recipe, parameters)).values()
    tensors = sum(shape.numel() * dtype.itemsize for form in forms for shape, dtype in form.values())
    return tensors + 4 * len(parameters)  # step counts


def _update(model: nn.Module, recipe: Recipe, state: int) -> Phase:
    """The optimizer's step: weights, gradients, state, and what it computes in between."""
    counted = TensorBytes()
    with counted.following(model):
        pass
    trained = [p for p in model.parameters() if p.requires_grad]
    sizes = [local(p.detach()).nbytes for p in trained]
    gradients = sum(sizes)
    # Fused updates need no room; others compute the denominator of one parameter, or of all at once.
    name = _optimizer_name(recipe)
    room = 0 if "fused" in name else gradients if torch.cuda.is_available() else max(sizes)
    parts = Counter(counted.alive) + Counter({GRADIENTS: gradients, STATE: state, BUFFERS: room})
    return Phase(UPDATE, dict(parts))
