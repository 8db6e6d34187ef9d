"""Parameters sharded by FSDP2 (`fully_shard`): what one rank holds of them, and sums over the ranks.

A sharded parameter is a DTensor. Its gradient is averaged over the ranks before it arrives, and each rank
gets its own rows. So gradients need no further averaging, and their squared norms are sums over the shards.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from gradwise.errors import RecipeError


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether any parameter is distributed over ranks."""
    return any(isinstance(parameter, DTensor) for parameter in parameters)


def check_sharding(layers: Sequence[Sequence[nn.Parameter]]) -> None:
    """Raise RecipeError for parameters that are sharded otherwise than FSDP2 shards them, along rows."""
    parameters = [parameter for layer in layers for parameter in layer]
    sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    if sharded and len(sharded) < len(parameters):
        raise RecipeError(
            f"{len(parameters) - len(sharded)} of {len(parameters)} parameters are not sharded; call "
            "fully_shard on the whole model after its blocks."
        )
    for parameter in sharded:
        others = [place for place in parameter.placements if place.is_shard() and type(place) is not Shard]
        others += [place for place in parameter.placements if isinstance(place, Shard) and place.dim != 0]
        if others or any(place.is_partial() for place in parameter.placements):
            raise RecipeError(
                f"A parameter is placed as {parameter.placements}, and layers can be switched only where "
                "parameters are sharded along their first dimension, as fully_shard does by default."
            )


def local_part(tensor: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
    """What this rank holds of a tensor, and its (start, total) in the flattened whole; None if it is all."""
    if not isinstance(tensor, DTensor):
        return tensor, None
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    row = tensor[0].numel() if tensor.dim() > 1 and len(tensor) else 1
    return tensor.to_local(), (offset[0] * row, tensor.numel()) if tensor.dim() else None


def sum_over_shards(values: Tensor, like: Tensor) -> None:
    """Add up, in place, what each rank computed of its own shards; `like` is a parameter that is sharded
    so."""
    if isinstance(like, DTensor):
        for dimension, placement in enumerate(like.placements):
            if placement.is_shard():
                dist.all_reduce(values, group=like.device_mesh.get_group(dimension))


def norm_over_shards(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """Norm over several tensors, in float32 whatever their type; a collective call where they are sharded."""
    if not gradients:
        return torch.zeros((), device=device)
    norms = [
        torch.linalg.vector_norm(local_part(gradient)[0], dtype=torch.float32).to(device)
        for gradient in gradients
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if not is_sharded(gradients):
        return norm
    square = norm.square()
    sum_over_shards(square, gradients[0])
    return square.sqrt()
