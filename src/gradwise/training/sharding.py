"""Parameters sharded by FSDP2 (`fully_shard`): what one rank holds of them, and sums over the ranks.

A sharded parameter is a DTensor. Its gradient is averaged over the ranks before it arrives, and each rank
gets its own rows. So gradients need no further averaging, and their squared norms are sums over the shards.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from transformers import TrainerState, TrainingArguments

from gradwise.errors import RecipeError


class TrainerParts(Protocol):
    """What is asked of a Trainer before its first step."""

    args: TrainingArguments
    state: TrainerState
    accelerator: Any
    model: Any
    model_wrapped: Any
    train_dataset: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    serves_itself: bool
    compute_loss: Any
    compute_loss_func: Any
    label_smoother: Any
    model_accepts_loss_kwargs: bool


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether any parameter is distributed over ranks."""
    return any(isinstance(parameter, DTensor) for parameter in parameters)


def check_sharding(layers: Sequence[Sequence[nn.Parameter]]) -> None:
    """Raise RecipeError for parameters that are not sharded as FSDP2 does by default: all of them, along
    their first dimension, over one dimension of the mesh."""
    parameters = [parameter for layer in layers for parameter in layer]
    sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    if len(sharded) < len(parameters):
        raise RecipeError(
            f"{len(parameters) - len(sharded)} of {len(parameters)} parameters are not sharded; call "
            "fully_shard on the whole model after its blocks."
        )
    check_rows(sharded, "layers can be switched")


def check_rows(parameters: Iterable[Tensor], what: str) -> None:
    """Raise RecipeError for parameters that are not split by rows over one dimension of the mesh.

    Args:
        parameters: sharded or not.
        what: needs them to be, as the sentence says it.
    """
    for parameter in parameters:
        if not isinstance(parameter, DTensor):
            continue
        split = [placement for placement in parameter.placements if not placement.is_replicate()]
        if len(split) > 1 or any(type(place) is not Shard or place.dim != 0 for place in split):
            raise RecipeError(
                f"A parameter is placed as {parameter.placements}, and {what} only where parameters are "
                "sharded along their first dimension, as fully_shard does by default."
            )


def by_accelerate(trainer: TrainerParts) -> bool:
    """Whether accelerate shards a trainer's model by FSDP2, as it does before the first step."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return trainer.is_fsdp_enabled and getattr(plugin, "fsdp_version", 1) == 2


def shard_in_time(trainer: TrainerParts, *, measures: bool, offloads: bool) -> None:
    """Let accelerate shard a trainer's model now, if it is to and something needs that before the first step.

    Args:
        trainer: whose training is about to begin.
        measures: whether samples are measured before the first step. Until accelerate shards it, the model is
            on no accelerator, and the optimizer would get other parameters.
        offloads: whether optimizer state is offloaded.
    """
    if not by_accelerate(trainer):
        return
    if measures:
        shard_first(trainer, "Samples are to be measured before the first step")
    elif offloads:
        shard_first(trainer, "state: offload follows the sharded parameters")


def shard_first(trainer: TrainerParts, why: str) -> None:
    """Let accelerate shard a trainer's model by FSDP2 now, and not only once the optimizer is made.

    Args:
        trainer: whose model is not sharded yet.
        why: what needs the model sharded before, as the sentence of an error begins.

    Raises:
        RecipeError: for settings that accelerate must follow before it shards.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = trainer.accelerator.state.fsdp_plugin
    settings = {
        "fsdp_config.activation_checkpointing": plugin.activation_checkpointing,
        "torch_compile": trainer.args.torch_compile,
    }
    if conflicting := [name for name, is_set in settings.items() if is_set]:
        raise RecipeError(
            f"{why}, for which FSDP2 must shard the model before {conflicting[0]} takes effect; leave it out "
            "(gradient_checkpointing is possible)."
        )
    trainer.model = trainer.model_wrapped = fsdp2_prepare_model(trainer.accelerator, trainer.model)


def local_part(tensor: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
    """What this rank holds of a tensor, and its (start, total) in the flattened whole; None if it is all.

    Without a collective call, since it is used within the backward pass.
    """
    if _split_dimension(tensor) is None:
        return local(tensor), None
    return local(tensor), (local_rows(tensor)[0] * math.prod(tensor.shape[1:]), tensor.numel())


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, which shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_rows(tensor: Tensor) -> tuple[int, int]:
    """The first of the rows that this rank holds of a tensor, and the one behind the last."""
    dimension = _split_dimension(tensor)
    if dimension is None:
        return 0, len(tensor)
    assert isinstance(tensor, DTensor)
    # As torch.chunk splits rows: all parts but the last ones have the same size.
    rows = -(-len(tensor) // tensor.device_mesh.size(dimension))
    first = min(tensor.device_mesh.get_local_rank(dimension) * rows, len(tensor))
    return first, min(first + rows, len(tensor))


def as_shard(part: Tensor, like: Tensor) -> Tensor:
    """A tensor with the shape and placement of `like`, whose part on this rank is `part`, on any device;
    `part` itself if `like` is not sharded."""
    if not isinstance(like, DTensor):
        return part
    form = TensorMeta(like.shape, like.stride(), part.dtype)
    # DTensor.from_local would move a part in host memory to the mesh's device. FSDP makes its own shards so.
    return DTensor(part, DTensorSpec(like.device_mesh, like.placements, form), requires_grad=False)


def whole_on_host(value: Any, *, keep: bool) -> Any:
    """A tensor in host memory, gathered if it is sharded; a collective call then.

    Args:
        value: a tensor, or anything else, which is returned as it is.
        keep: whether this rank wants it; otherwise it gets None for a tensor.
    """
    if not isinstance(value, Tensor):
        return value
    if isinstance(value, DTensor):
        mesh = value.device_mesh
        part = value.to_local().to(mesh.device_type)  # gathered where ranks can send it
        value = as_shard(part, value).full_tensor()  # type: ignore[union-attr]
    return value.cpu() if keep else None


def sum_over_shards(values: Tensor, like: Tensor) -> None:
    """Add up, in place, what each rank computed of its own shards; `like` is a tensor that is sharded so."""
    dimension = _split_dimension(like)
    if dimension is not None:
        assert isinstance(like, DTensor)
        dist.all_reduce(values, group=like.device_mesh.get_group(dimension))


def norm_over_shards(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """Norm over several tensors, in float32 whatever their type; a collective call where they are sharded."""
    if not gradients:
        return torch.zeros((), device=device)
    norms = [
        torch.linalg.vector_norm(local_part(gradient)[0], dtype=torch.float32).to(device)
        for gradient in gradients
    ]
    # In float32 whatever the gradients' type: squares in float16 overflow from 256 on.
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if not is_sharded(gradients):
        return norm
    square = norm.square()
    sum_over_shards(square, gradients[0])
    return square.sqrt()


def _split_dimension(tensor: Tensor) -> int | None:
    """Dimension of the mesh over which a tensor's rows are split; None for none."""
    if not isinstance(tensor, DTensor):
        return None
    return next((n for n, place in enumerate(tensor.placements) if place.is_shard()), None)
