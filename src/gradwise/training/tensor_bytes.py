"""Counts the bytes of all tensors alive, by part, and remembers the peak; of real or of fake tensors.

Of a model that FSDP2 shards, only what this rank holds is counted: its rows of weights and gradients, and the
whole weights of a block as temporary buffers, as long as they are gathered.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradwise.signals.shards import is_distributed, units
from gradwise.training.record_names import ACTIVATIONS, BUFFERS, ENDS, GRADIENTS, WEIGHTS
from gradwise.training.sharding import local


class TensorBytes(TorchDispatchMode):
    """Counts the storage of every tensor that an operation returns, until it is freed.

    Memory that an operation uses within itself is not seen, nor is what an allocator rounds up or keeps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: Counter[str] = Counter()
        """Bytes now, by part."""
        self.at_peak: Counter[str] = Counter()
        """Bytes by part at the peak, since the last block that was followed began."""
        self._storages: dict[int, tuple[weakref.ref[Any], str, int]] = {}
        self._gathered: set[int] = set()
        """Storages of whole parameters, which FSDP empties and fills without an operation."""

    def add(self, tensors: Iterable[Tensor], part: str, *, rows: bool = False) -> None:
        """Count tensors as belonging to a part, whatever they counted as before.

        Args:
            tensors: whole or sharded.
            part: one of `PARTS`.
            rows: of sharded ones, count the rows that this rank holds and not their storage. transformers
                loads them as views of the mapped file, whose other rows are never read.
        """
        for tensor in tensors:
            storage = _storage(tensor)
            key, size = storage._cdata, storage.nbytes()
            if rows and is_distributed(tensor):
                size = min(size, local(tensor.detach()).nbytes)
            if key in self._storages:
                _, before, size = self._storages[key]
                self.alive[before] -= size
            # Storages rather than tensors: views share one, and counting them twice would double the
            # activations.
            reference = weakref.ref(storage, partial(self._freed, key))
            self._storages[key] = reference, part, size
            self.alive[part] += size
        self._note_peak()

    def _note_peak(self) -> None:
        if self.alive.total() > self.at_peak.total():
            self.at_peak = Counter(self.alive)

    def _measure_gathered(self) -> None:
        for key in self._gathered:
            reference, part, before = self._storages[key]
            storage = reference()
            size = 0 if storage is None else storage.nbytes()
            if size != before:
                self._storages[key] = reference, part, size
                self.alive[part] += size - before
        self._note_peak()

    def _freed(self, key: int, reference: weakref.ref[Any]) -> None:
        entry = self._storages.get(key)
        if entry is not None and entry[0] is reference:
            del self._storages[key]
            self._gathered.discard(key)
            self.alive[entry[1]] -= entry[2]

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        if self._gathered:
            self._measure_gathered()
        out = func(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        self.add([t for t in tensors if _storage(t)._cdata not in self._storages], BUFFERS)
        return out

    @contextmanager
    def following(self, model: nn.Module) -> Iterator["TensorBytes"]:
        """Count in the block, with the model's weights, what its backward pass saves, and its gradients."""
        weights = weights_of(model)
        for part, tensors in weights.items():
            self.add(tensors, part, rows=True)
        weight_keys = {_storage(tensor)._cdata for tensors in weights.values() for tensor in tensors}

        def save(tensor: Tensor) -> Tensor:
            if (key := _storage(tensor)._cdata) not in weight_keys and key not in self._gathered:
                self.add([tensor], ACTIVATIONS)
            return tensor

        learning = [p for p in model.parameters() if p.requires_grad]
        handles: list[Any] = [p.register_post_accumulate_grad_hook(self._gradient) for p in learning]
        # FSDP's own hooks, which gather, come before these.
        handles += [unit.register_forward_pre_hook(self._gather) for unit in units(model)]
        try:
            with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), self:
                self.at_peak = Counter(self.alive)
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def _gather(self, unit: nn.Module, _: object) -> None:
        whole = [p for p in unit.parameters() if not is_distributed(p)]
        self.add(whole, BUFFERS)
        self._gathered.update(_storage(p)._cdata for p in whole)

    def _gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.add([parameter.grad], GRADIENTS)


@torch.no_grad()  # where a part of a sharded tensor is no operation
def _storage(tensor: Tensor) -> torch.UntypedStorage:
    """What this rank holds a tensor in."""
    return local(tensor).untyped_storage()


def weights_of(model: nn.Module) -> dict[str, list[Tensor]]:
    """Parameters and buffers; input embeddings and head, which may share their weight, apart."""
    ends: set[int] = set()
    for name in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(AttributeError, NotImplementedError):
            ends |= {id(p) for p in getattr(model, name)().parameters()}
    weights = list(model.parameters())
    return {
        WEIGHTS: [*(p for p in weights if id(p) not in ends), *model.buffers()],
        ENDS: [p for p in weights if id(p) in ends],
    }
