"""Which parameters are linear weights: those that a forward pass multiplies activations by as matrices."""

from bisect import bisect, insort
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from gradwise.signals.model_state import prepared
from gradwise.signals.shards import Shards, device_of, is_distributed

TOKENS = 8
"""Length of the sample that is tried."""


def used_otherwise(model: nn.Module) -> set[str]:
    """Names of parameters that a forward pass uses, but never as an operand of a matrix product.

    Biases, gains, decay rates and tables can have two dimensions or more, and so can stacks of them. What no
    function shows (a custom kernel) is not among the names.
    """
    whole: Any = model
    device = device_of(model)
    ids = torch.arange(TOKENS, device=device)[None] % int(whole.get_input_embeddings().weight.shape[0])
    with prepared(model) as bare, torch.no_grad(), _Uses(bare.named_parameters()) as uses:
        try:
            with Shards(bare).watched(uses.gathered, uses.freed):
                bare(input_ids=ids, use_cache=False)
        except Exception:  # a model that needs other inputs as well: nothing is known of its parameters
            return set()
    # A weight that is multiplied somewhere counts as linear even if it is also used otherwise, as a tied
    # embedding is.
    return uses.others - uses.products


class _Uses(TorchFunctionMode):
    """Notes the functions that parameters are given to, themselves, as views or as copies."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self.products: set[str] = set()
        self.others: set[str] = set()
        self._places: list[tuple[int, int, frozenset[str]]] = []
        """Addresses from and to which a parameter, or a copy of several, lies in memory, ascending."""
        self._copies: list[Tensor] = []  # held, so that nothing else comes to lie there
        self._sharded: dict[int, str] = {}
        for name, parameter in parameters:
            if is_distributed(parameter):
                self._sharded[id(parameter)] = name
            else:
                self._note(parameter, frozenset([name]))

    def gathered(self, sharded: Tensor, whole: Tensor) -> None:
        """From here on a whole parameter is used in the place of a sharded one."""
        self._note(whole, frozenset([self._sharded[id(sharded)]]))

    def freed(self, sharded: Iterable[Tensor]) -> None:
        """Whole parameters are gone, and something else may come to lie there."""
        gone = {self._sharded[id(parameter)] for parameter in sharded}
        self._places = [place for place in self._places if not place[2] <= gone]

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        copied: frozenset[str] = frozenset()
        for place, value in (*enumerate(args), *(kwargs or {}).items()):
            for tensor in _tensors(value):
                names = self._names(tensor)
                if not names:
                    continue
                if func in _ADDED:
                    (self.others if place in _ADDED[func] else self.products).update(names)
                elif func in _COPIED:
                    copied |= names
                elif any(self._names(each) != names for each in _tensors(out)):
                    self.others.update(names)
        if copied and isinstance(out, Tensor) and not self._names(out):
            self._note(out, copied)
            self._copies.append(out)
        return out

    def _note(self, tensor: Tensor, names: frozenset[str]) -> None:
        start = tensor.data_ptr()
        place = (start, start + tensor.numel() * tensor.element_size(), names)
        insort(self._places, place, key=lambda each: each[0])

    def _names(self, tensor: Tensor) -> frozenset[str]:
        at = bisect(self._places, tensor.data_ptr(), key=lambda each: each[0]) - 1
        inside = at >= 0 and tensor.numel() > 0 and tensor.data_ptr() < self._places[at][1]
        return self._places[at][2] if inside else frozenset()


def _tensors(value: object) -> Iterator[Tensor]:
    """Tensors in an argument or a result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


_T: Any = torch.Tensor
_ADDED: dict[Any, tuple[int | str, ...]] = {
    functional.linear: (2, "bias"),
    **dict.fromkeys((torch.addmm, _T.addmm, torch.baddbmm, _T.baddbmm), (0, "input")),
    **dict.fromkeys((torch.matmul, _T.matmul, _T.__matmul__, _T.__rmatmul__), ()),
    **dict.fromkeys((torch.mm, _T.mm, torch.bmm, _T.bmm, torch.einsum, torch.tensordot), ()),
}
"""Matrix products, and which of their arguments is no factor."""

_COPIED = {
    *(_T.float, _T.double, _T.half, _T.bfloat16, _T.to, _T.type, _T.type_as, _T.contiguous, _T.clone),
    *(_T.reshape, torch.reshape, _T.flatten, torch.flatten, _T.__getitem__, _T.index_select),
    *(torch.index_select, torch.cat, torch.stack),
}
"""What may copy a parameter as it is."""
