"""Which parameters a gradient is taken over, and how tensors met during a forward pass are traced to them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradwise.errors import RecipeError, SignalError
from gradwise.signals.uses import used_otherwise
from gradwise.structure import block_list, outermost_lists


class Matrix(NamedTuple):
    """One R x C matrix among the parameters in scope: a weight, or one expert's slice of a stack of them."""

    name: str
    slice: int | None
    rows: int
    columns: int


class MatrixView(NamedTuple):
    """A tensor traced back to a matrix; `transposed` where it is C x R."""

    matrix: Matrix
    transposed: bool


@dataclass(frozen=True)
class Scope:
    """The parameters that gradients are taken over, by name; a tied parameter stands once."""

    parameters: dict[str, nn.Parameter]

    @property
    def size(self) -> int:
        """Numbers in an unprojected gradient."""
        return sum(p.numel() for p in self.parameters.values())

    def offsets(self) -> Iterator[tuple[str, int]]:
        """Each parameter's name and where it begins in an unprojected gradient."""
        start = 0
        for name, parameter in self.parameters.items():
            yield name, start
            start += parameter.numel()


def resolve(model: nn.Module, parameters: str | Sequence[str]) -> Scope:
    """The scope that `parameters` names.

    Args:
        model: a causal language model.
        parameters: "blocks": every linear weight inside the transformer blocks, or, where the model has PEFT
            adapters, their weights; "all": every parameter; or patterns such as "*.mlp.*.weight" that names
            of parameters must match, one or several.

    Raises:
        SignalError: when nothing matches, with the nearest thing to do.
    """
    by_name = {
        # Weights of eight bits or fewer have no gradient that autograd could give.
        name: p
        for name, p in model.named_parameters()
        if p.is_floating_point() and p.dtype.itemsize > 1
    }
    adapted = hasattr(model, "peft_config")
    if parameters in ("all", "blocks") and not adapted:
        _check_not_quantised(model)
    if parameters == "all":
        chosen = {name: p for name, p in by_name.items() if p.requires_grad or not adapted}
    elif parameters == "blocks":
        chosen = _in_blocks(model, by_name, adapted)
    else:
        patterns = [parameters] if isinstance(parameters, str) else list(parameters)
        chosen = _matching(model, by_name, patterns)
    if not chosen:
        raise SignalError(
            f"parameters={parameters!r} names no floating-point parameter of {type(model).__name__}; give "
            f"patterns that match names such as {next(iter(by_name), 'none')!r}."
        )
    return Scope(chosen)


def _check_not_quantised(model: nn.Module, names: Sequence[str] | None = None) -> None:
    """Refuse weights that are stored as integers or in eight bits: parameters (bitsandbytes, MXFP4 experts,
    FP8), or buffers (GPTQ, AWQ); only parameters of some names if these are given."""
    tensors = dict(model.named_parameters()) | (dict(model.named_buffers()) if names is None else {})
    for name in tensors if names is None else names:
        tensor = tensors[name]
        packed = tensor.dtype.itemsize == 1 or tensor.dtype == torch.int32
        is_weight = isinstance(tensor, nn.Parameter) and tensor.numel() > 1
        if (is_weight or tensor.ndim >= 2) and packed and tensor.dtype != torch.bool:
            raise SignalError(
                f"{type(model).__name__} has quantised weights (first: {name}, {tensor.dtype}), which have "
                "no gradient: put an adapter on the model, or say which parameters count with patterns."
            )


def _in_blocks(model: nn.Module, by_name: dict[str, nn.Parameter], adapted: bool) -> dict[str, nn.Parameter]:
    try:
        _, blocks = block_list(model)
    except RecipeError as error:
        raise SignalError(f"{error.args[0].split(',')[0]}; give parameters='all' or patterns.") from None
    # Some models hold their blocks in several lists: attention apart from feed-forward, or two stacks.
    prefixes = tuple(f"{name}." for name, each in outermost_lists(model).items() if len(each) == len(blocks))
    inside = {name: p for name, p in by_name.items() if name.startswith(prefixes)}
    # An adapter's base weights are frozen: the gradient that training follows is that of the adapter alone.
    if adapted:
        return {name: p for name, p in inside.items() if p.requires_grad and p.ndim >= 2}
    convolutions = {
        f"{name}.{leaf}"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd)
        for leaf, _ in module.named_parameters(recurse=False)
    }
    # All layers are alike: experts that the tried sample does not meet are judged by others of their kind.
    others = {kind(name) for name in used_otherwise(model)}
    return {
        name: p
        for name, p in inside.items()
        if p.ndim >= 2 and name not in convolutions and kind(name) not in others
    }


def kind(name: str) -> str:
    """What parameters of different layers, or of different experts, have in common.

    >>> kind("model.layers.3.mlp.down_proj.weight")
    'model.layers.*.mlp.down_proj.weight'
    """
    return re.sub(r"\.\d+\.", ".*.", name)


def _matching(
    model: nn.Module, by_name: dict[str, nn.Parameter], patterns: Sequence[str]
) -> dict[str, nn.Parameter]:
    """Parameters that a pattern matches by any of their names; a tied one has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for pattern in patterns:
        if packed := [
            name for name, p in model.named_parameters() if name not in by_name and fnmatchcase(name, pattern)
        ]:
            _check_not_quantised(model, packed)
        if not any(fnmatchcase(name, pattern) for p in by_name.values() for name in names[id(p)]):
            raise SignalError(
                f"parameters: {pattern!r} matches no parameter; names look like "
                f"{next(iter(by_name), 'none')!r}."
            )
    return {
        first: p
        for first, p in by_name.items()
        if any(fnmatchcase(name, pattern) for name in names[id(p)] for pattern in patterns)
    }


class Tracer:
    """Tells which parameter in scope a tensor is: the parameter, a view of it, or a copy in another type.

    Args:
        scope: the parameters.
    """

    def __init__(self, scope: Scope) -> None:
        self._names = {id(p): name for name, p in scope.parameters.items()}
        self._parameters = scope.parameters
        # Copies that stand for a parameter, held so that their ids stay theirs.
        self._copies: dict[int, tuple[Tensor, str]] = {}

    def stands_for(self, copy: Tensor, original: Tensor) -> None:
        """Note that a gradient with respect to `copy` is one with respect to `original`."""
        name = self.name(original)
        if name is not None and copy is not original:
            self._copies[id(copy)] = (copy, name)

    def name(self, tensor: object) -> str | None:
        """The parameter that a tensor is as a whole."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self._names:
            return self._names[id(tensor)]
        return self._copies[id(tensor)][1] if id(tensor) in self._copies else None

    def matrix(self, tensor: object) -> MatrixView | None:
        """The matrix that a two-dimensional tensor is: a weight, its transpose, or a slice of a stack."""
        if not isinstance(tensor, Tensor) or tensor.ndim != 2:
            return None
        name = self.name(tensor)
        if name is not None:
            return MatrixView(Matrix(name, None, *tensor.shape), False)
        base = tensor._base
        if base is None or (name := self.name(base)) is None:
            return None
        return _view_of(name, base, tensor)


def _view_of(name: str, base: Tensor, view: Tensor) -> MatrixView | None:
    if base.ndim not in (2, 3) or not base.is_contiguous():
        return None
    rows, columns = base.shape[-2:]
    slice_size = rows * columns
    # A slice of a stack of experts begins at a multiple of a matrix; anything else is no whole expert.
    number, within = divmod(int(view.storage_offset() - base.storage_offset()), slice_size)
    if within:
        return None
    matrix = Matrix(name, number if base.ndim == 3 else None, rows, columns)
    if view.shape == (rows, columns) and view.stride() == (columns, 1):
        return MatrixView(matrix, False)
    if view.shape == (columns, rows) and view.stride() == (1, columns):
        return MatrixView(matrix, True)
    return None


def precise(dtype: torch.dtype) -> bool:
    """Whether a model of this type repeats itself to more than the three digits of half precision."""
    return dtype in (torch.float32, torch.float64)
