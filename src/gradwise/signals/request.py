"""What a scoring run may compute, and the shape and type of each quantity."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from gradwise.errors import SignalError
from gradwise.settings import nearest
from gradwise.text import shown

Quantity = Literal["loss", "embedding", "grad_norm", "grad", "head_norm", "middle_embedding"]
QUANTITIES: tuple[Quantity, ...] = (
    "loss", "embedding", "grad_norm", "grad", "head_norm", "middle_embedding",
)  # fmt: skip
"""In the order of their flags in stores: new ones come last."""
DEFAULT_QUANTITIES: tuple[Quantity, ...] = ("loss", "embedding", "grad_norm", "grad")
"""What is computed if nothing is requested."""

MIDDLE = 1 / 2
"""Share of the blocks that a middle embedding has passed, rounded up to whole ones. Towards a target GRACE
chose as well by it as by the last hidden state (docs/log.md)."""


def middle_blocks(count: int) -> int:
    """How many of a model's blocks a middle embedding has passed.

    >>> middle_blocks(30), middle_blocks(5)
    (15, 3)
    """
    return math.ceil(count * MIDDLE)


Pooling = Literal["labels", "last", "all"]
POOLINGS: tuple[Pooling, ...] = ("labels", "last", "all")


@dataclass(frozen=True)
class SignalRequest:
    """What a scoring run computes of each sample.

    Attributes:
        quantities: which, in the order of `QUANTITIES`.
        grad_dim: k, numbers in a projected gradient; None for the unprojected one.
        seed: decides the projection.
        pooling: hidden states that embeddings are the mean of: those of the label tokens, the last token's,
            or all.
        layer: the block after which hidden states are taken for "embedding"; None for the last hidden state.
        grad_dtype: type that gradients are stored in.
    """

    quantities: tuple[Quantity, ...]
    grad_dim: int | None = 1024
    seed: int = 0
    pooling: Pooling = "labels"
    layer: int | None = None
    grad_dtype: Literal["float32", "float16"] = "float32"

    @classmethod
    def of(cls, want: Any, **options: Any) -> "SignalRequest":
        """Check what a user asked for: quantities by name, or the methods that need them; raises SignalError.

        Args:
            want: a name or a method, or a sequence of them.
            options: the other attributes.
        """
        parts = [want] if isinstance(want, str) or not isinstance(want, Iterable) else list(want)
        names = [name for part in parts for name in _names(part)]
        for name in names:
            if name not in QUANTITIES:
                raise SignalError(f"want: unknown quantity {name!r}{nearest(name, list(QUANTITIES))}")
        if not names:
            raise SignalError(f"want names nothing to measure; give some of {', '.join(QUANTITIES)}.")
        request = cls(tuple(name for name in QUANTITIES if name in names), **options)
        request._check()
        return request

    def _check(self) -> None:
        if self.pooling not in POOLINGS:
            raise SignalError(
                f"pooling: unknown {self.pooling!r}{nearest(str(self.pooling), list(POOLINGS))}"
            )
        if self.grad_dtype not in ("float32", "float16"):
            raise SignalError(f"grad_dtype must be float32 or float16; found {self.grad_dtype!r}.")

    @property
    def gradients(self) -> bool:
        """Whether a backward pass through the blocks is needed."""
        return "grad" in self.quantities or "grad_norm" in self.quantities

    @property
    def needs_mask(self) -> bool:
        """Whether padding must be distinguished from tokens."""
        return self.embeds and self.pooling != "labels"

    @property
    def embeds(self) -> bool:
        """Whether hidden states are pooled."""
        return "embedding" in self.quantities or "middle_embedding" in self.quantities

    @property
    def middle_alone(self) -> bool:
        """Whether the forward pass may end after the middle block."""
        return self.quantities == ("middle_embedding",)

    def __contains__(self, name: str) -> bool:
        return name in self.quantities


def _names(part: Any) -> list[str]:
    """A name, or the quantities that a method needs."""
    if isinstance(part, str):
        return [part]
    needs = getattr(part, "collected", getattr(part, "needs", None))
    if isinstance(part, type) or not isinstance(needs, frozenset):
        raise SignalError(
            f"want: give names of quantities ({', '.join(QUANTITIES)}) or methods that need some, such as "
            f"gradwise.Grace(fraction=0.1); found {shown(part)}."
        )
    names = (needs | getattr(part, "validation_needs", frozenset())) & set(QUANTITIES)
    if not names:
        raise SignalError(f"want: {part.method} needs nothing that is measured; call it without signals.")
    return sorted(names)
