"""One rank of a model that FSDP2 shards: FSDP's own code on tensors without storage, among pretended ranks.

So the rows that the rank holds, the blocks that are gathered at a time, and the buffers in which gradients
are reduced are those of a run, and change with torch, transformers and accelerate as a run's do. Messages to
the other ranks are the only part that does not happen.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import init_device_mesh
from transformers import TrainingArguments

from gradwise.errors import RecipeError
from gradwise.ranks import world_size
from gradwise.recipe import Recipe

DIMENSIONS = ("pp", "dp_replicate", "fsdp", "tp"), ("pp", "dp_replicate", "efsdp", "ep")
"""Dimensions of the meshes that transformers shards a model over in loading it: dense modules, experts."""


def ranks_of(recipe: Recipe, asked: int | None, *, as_loaded: bool) -> int | None:
    """Number of ranks that share the model; None if it is not sharded. Raises RecipeError if the number is
    not known, or is given for a model that is whole on every rank."""
    if not recipe.train.arguments.get("fsdp") and not as_loaded:
        if asked not in (None, 1):
            raise RecipeError(
                f"gradwise estimate knows the memory of {asked} ranks only where FSDP2 shards the model: set "
                "train.fsdp, or --sharded-as-loaded; otherwise leave --ranks out."
            )
        return None
    if asked is None and world_size() < 2:
        raise RecipeError("FSDP shards the model over several ranks; say how many, such as --ranks 8.")
    return world_size() if asked is None else asked


def check_known(recipe: Recipe, *, as_loaded: bool) -> None:
    """Raise RecipeError for settings of a sharded model whose memory is not known."""
    train_arguments = recipe.train.arguments
    if as_loaded and train_arguments.get("fsdp"):
        raise RecipeError("A model that is sharded as it is loaded takes no train.fsdp; leave one out.")
    if recipe.adapter is not None:
        raise RecipeError(
            "gradwise estimate does not know the memory of an adapter on a model that FSDP2 shards; estimate "
            "one of the two alone."
        )


@contextmanager
def pretended(ranks: int) -> Iterator[None]:
    """A process group in which this process is the first of several ranks, and the others do not exist.
    Raises RecipeError if this process belongs to real ranks, or torch has no such group."""
    if dist.is_initialized():
        raise RecipeError("A sharded model is estimated in a process of its own; start it without torchrun.")
    try:
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError as error:
        raise RecipeError(f"torch {torch.__version__} has no ranks to pretend ({error}).") from error
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def shard(model: Any, recipe: Recipe, *, as_loaded: bool) -> Any:
    """The model sharded over the pretended ranks, as transformers shards it in loading or accelerate before
    the first step. Raises RecipeError if the installed versions cannot do that."""
    try:
        return _as_loaded(model) if as_loaded else _by_accelerate(model, recipe)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise RecipeError(
            f"The installed transformers and accelerate do not shard {type(model).__name__} so: {error}"
        ) from error


def _as_loaded(model: Any) -> Any:
    try:
        from transformers.distributed.configuration_utils import DistributedConfig
        from transformers.distributed.utils import TransformersDeviceMesh
    except ImportError as error:
        raise RecipeError(
            "--sharded-as-loaded needs transformers 5.19 or later, whose Trainer takes a model that is "
            f"sharded already; found {transformers.__version__}. Set train.fsdp: true instead."
        ) from error

    shape = (1, 1, dist.get_world_size(), 1)
    with unset_fake_temporarily():  # ranks have numbers, which the meshes read
        manager = TransformersDeviceMesh(
            *(init_device_mesh("cpu", shape, mesh_dim_names=names) for names in DIMENSIONS)
        )
        meshes = {names: manager.get_mesh(names) for names in ("fsdp", ("pp", "fsdp", "tp"))}
    config = DistributedConfig(fsdp_size=dist.get_world_size())
    _untie(model)  # as it is in loading, where weights are tied at the end
    model = type(model).maybe_distribute_model(model, config, SimpleNamespace(get_mesh=meshes.__getitem__))
    model.tie_weights()
    return model


def _untie(model: nn.Module) -> None:
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight in seen:
                module._parameters[name] = nn.Parameter(torch.empty_like(weight), weight.requires_grad)
            elif weight is not None:
                seen.add(weight)


def _by_accelerate(model: Any, recipe: Recipe) -> Any:
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    train_arguments = recipe.train.arguments
    plugin = _plugin(train_arguments)
    precision = next((name for name in ("bf16", "fp16") if train_arguments.get(name)), "no")
    if precision != "no":
        plugin.set_mixed_precision(precision)
    with unset_fake_temporarily():
        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("fsdp",))
    # What accelerate's function asks of an Accelerator, which could not be made here without joining ranks.
    stand_in = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh={("fsdp",): mesh},
        parallelism_config=SimpleNamespace(fsdp_dim_names=["fsdp"]),
        mixed_precision=precision,
        is_main_process=False,
        device=torch.device("cpu"),
    )
    return fsdp2_prepare_model(stand_in, model)


def _plugin(train_arguments: dict[str, Any]) -> Any:
    """accelerate's settings for FSDP, as the Trainer makes them of its arguments."""
    from accelerate import FullyShardedDataParallelPlugin

    config = train_arguments.get("fsdp_config") or {}
    # Without its `__post_init__`, which would look for accelerators and ranks.
    arguments: Any = object.__new__(TrainingArguments)
    arguments.fsdp, arguments.activation_checkpointing = train_arguments["fsdp"], False
    arguments.fsdp_config = dict(
        json.loads(Path(config).read_text(encoding="utf-8")) if isinstance(config, str) else config
    )
    environment = os.environ.copy()
    try:
        fsdp_settings = arguments._process_fsdp_args() or {}
    finally:
        # It sets variables of the environment for other libraries; this process may train something else.
        os.environ.clear()
        os.environ.update(environment)
    unknown = {
        "version: 1": fsdp_settings.get("fsdp_version") != 2,
        "cpu_offload": fsdp_settings.get("cpu_offload"),
        "activation_checkpointing (train.gradient_checkpointing is possible)": fsdp_settings.get(
            "activation_checkpointing"
        ),
    }
    if names := [name for name, met in unknown.items() if met]:
        raise RecipeError(f"gradwise estimate does not know the memory of fsdp_config with {names[0]}.")
    fsdp_settings = {
        name: value for name, value in fsdp_settings.items() if name != "cpu_ram_efficient_loading"
    }
    plugin = FullyShardedDataParallelPlugin(**fsdp_settings)
    plugin.cpu_ram_efficient_loading = False  # changes how weights arrive, and not what there is afterwards
    return plugin
