"""Measures the gradient of every layer without holding any: each is folded as it appears and dropped."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradwise.numerics import fold_with_signs
from gradwise.training.sharding import local_part, sum_over_shards

SKETCH = 4096
"""Numbers per layer in the sketch of its gradients: norms come out within 1.1 % (one sigma)."""


class LayerProbe:
    """Hooks that turn backward passes into one linear sketch per layer.

    Scores are defined on the gradient accumulated over all passes and ranks, which nobody holds here. A
    sketch is linear: those of passes and ranks add up to that of the accumulated gradient, whose length
    theirs estimates. It is used for a single micro-batch as well, so that accumulation and ranks do not
    change what is drawn.

    Args:
        layers: the parameters of each layer.
        ranks: processes whose sketches are averaged; 1 for none but this.
    """

    def __init__(self, layers: Sequence[Sequence[nn.Parameter]], ranks: int) -> None:
        self.layers = layers
        self.ranks = ranks
        self.device = layers[0][0].device
        self.seen = False
        """Whether any gradient came since `attach`."""
        self._handles: list[Any] = []
        self._sketches = torch.zeros(0)

    def attach(self) -> None:
        """Start again: no gradient seen yet, and every one to come will be folded and dropped."""
        self.detach()
        self.seen = False
        self._sketches = torch.zeros(len(self.layers), SKETCH, device=self.device)
        for number, layer in enumerate(self.layers):
            offset = 0
            for place, parameter in enumerate(layer):
                # Another seed and start for each parameter: when all started at the same sum, small ones
                # collided there and norms were 9 % off (docs/log.md).
                hook = self._hook(number, seed=number * 1_000_003 + place, offset=offset)
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))
                offset = (offset + parameter.numel()) % SKETCH

    def detach(self) -> None:
        """Let gradients stay again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def squares(self) -> Tensor:
        """(L,) float32 squared norm of each layer's gradient, averaged over ranks before the norm is
        taken."""
        if self.ranks > 1:
            # The accumulated gradient is the ranks' mean; its sketch is the mean of their sketches, and only
            # then has it a norm.
            dist.all_reduce(self._sketches)
            self._sketches /= self.ranks
        # Sketches are linear, so that of a sharded layer is the sum of its shards' sketches.
        sum_over_shards(self._sketches, self.layers[0][0])
        return self._sketches.square().sum(dim=1)

    def _hook(self, layer: int, seed: int, offset: int) -> Callable[[Tensor], None]:
        def fold_and_drop(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.seen = True
                # Without a collective call: ranks reach this hook at different times, and one that waits here
                # would never be met.
                gradient, part = local_part(parameter.grad)
                mesh = getattr(parameter.grad, "device_mesh", None)
                if gradient.device.type == "cpu" and getattr(mesh, "device_type", "cpu") == "cuda":
                    # Before torch 2.13 FSDP2 with CPU offload calls hooks while the gradient still comes.
                    torch.cuda.current_stream().synchronize()
                sketch = fold_with_signs(gradient, SKETCH, seed, offset, part=part)
                self._sketches[layer] += sketch.to(self.device)
                parameter.grad = None

        return fold_and_drop
