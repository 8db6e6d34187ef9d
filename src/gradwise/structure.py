"""Finds a model's transformer blocks from its structure, and groups its trainable parameters by layer."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from gradwise.errors import RecipeError


@dataclass(frozen=True)
class LayerGroups:
    """The trainable parameters of a model by layer; a parameter that several modules share stands once."""

    names: tuple[str, ...]
    """Module names of the blocks that have trainable parameters, in the model's order."""

    blocks: tuple[tuple[nn.Parameter, ...], ...]
    """Trainable parameters of each of those blocks."""

    outside: tuple[nn.Parameter, ...]
    """Trainable parameters outside the blocks: embeddings, head, final norm."""


def block_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks and its name: of the module lists inside no other, the one with most
    parameters.

    Works on the structure alone, so it holds for any architecture and through PEFT's wrappers; the experts of
    a mixture lie inside the blocks and are passed over.

    Raises:
        RecipeError: when the model has no list of at least two modules with parameters.
    """
    candidates = outermost_lists(model)
    sizes = {name: sum(p.numel() for p in blocks.parameters()) for name, blocks in candidates.items()}
    if not any(sizes.values()):
        raise RecipeError(
            f"{type(model).__name__} has no transformer blocks (no list of two or more modules with "
            "parameters), so layers cannot be chosen; use `layers: all`."
        )
    name = max(sizes, key=lambda candidate: sizes[candidate])
    return name, candidates[name]


def head_and_width(model: nn.Module) -> tuple[float, int] | None:
    """Share of a forward pass's multiplications that the output head takes, attention's products left out,
    and the length of the hidden states; None for a model without a head or blocks."""
    find: Any = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    weight = getattr(head, "weight", None)
    if weight is None or not outermost_lists(model):
        return None
    blocks = sum(p.numel() for p in block_list(model)[1].parameters())
    return weight.numel() / (weight.numel() + blocks), int(weight.shape[-1])


def outermost_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of at least two modules that lie inside no other such list, by name."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside_another = any(name.startswith(f"{other}.") for other in lists)
        if isinstance(module, nn.ModuleList) and len(module) > 1 and not inside_another:
            lists[name] = module
    return lists


def group_layers(model: nn.Module) -> LayerGroups:
    """Group the parameters that require a gradient now by transformer block.

    Blocks without any (an adapter that leaves them out) are no layers. A parameter that two blocks share
    belongs to the first; one that a block shares with the outside (never seen in practice) to the block.

    Raises:
        RecipeError: when there are no transformer blocks, or none of them is trainable.
    """
    prefix, blocks = block_list(model)
    seen: set[nn.Parameter] = set()
    names, groups = [], []
    for number, block in enumerate(blocks):
        parameters = tuple(p for p in dict.fromkeys(block.parameters()) if p.requires_grad and p not in seen)
        seen.update(parameters)
        if parameters:
            names.append(f"{prefix}.{number}")
            groups.append(parameters)
    if not groups:
        raise RecipeError(
            "No transformer block has a trainable parameter, so layers cannot be chosen; use `layers: all`."
        )
    outside = tuple(p for p in dict.fromkeys(model.parameters()) if p.requires_grad and p not in seen)
    return LayerGroups(tuple(names), tuple(groups), outside)
