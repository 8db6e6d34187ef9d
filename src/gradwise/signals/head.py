"""The output head, applied at label positions only, and the losses that come of it.

Shapes: B samples of up to T tokens, n label tokens in all, V the vocabulary, h the width of the model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwise.data.tokenise import NO_LOSS
from gradwise.errors import SignalError
from gradwise.signals.rows import wide
from gradwise.signals.shards import class_of, is_distributed

if TYPE_CHECKING:
    from gradwise.signals.plain_head import AtHead


@dataclass(frozen=True)
class LabelPositions:
    """Where the tokens are that the loss counts, and which predict them."""

    labels_BT: Tensor

    @classmethod
    def of(cls, labels_BT: Tensor) -> "LabelPositions":
        """From a batch's labels; the first token is never predicted."""
        return cls(labels_BT)

    @property
    def samples(self) -> int:
        """B."""
        return len(self.labels_BT)

    @cached_property
    def mask(self) -> Tensor:
        """(B, T - 1) where the next token counts."""
        return self.labels_BT[:, 1:] != NO_LOSS

    @cached_property
    def all_count(self) -> bool:
        """Whether every token but the first of each sample counts, and none is padding."""
        return bool(self.mask.all())

    @cached_property
    def owner(self) -> Tensor:
        """(n,) sample of each label token."""
        return self.mask.nonzero()[:, 0]

    @cached_property
    def targets(self) -> Tensor:
        """(n,) the label tokens."""
        return self.labels_BT[:, 1:][self.mask]

    @cached_property
    def counts(self) -> Tensor:
        """(B,) label tokens of each sample."""
        return self.mask.sum(dim=1)

    def gather(self, hidden_BTh: Tensor) -> Tensor:
        """(1, n, h) the hidden states that predict label tokens, sample by sample."""
        self._check_shape(hidden_BTh)
        predicting_BTh = hidden_BTh[:, :-1]
        if self.all_count:  # a reshape, whose backward pass need not scatter
            return predicting_BTh.flatten(0, 1)[None]
        return predicting_BTh[self.mask][None]

    def _check_shape(self, hidden_BTh: Tensor) -> None:
        if hidden_BTh.shape[:2] != self.labels_BT.shape:
            raise SignalError(
                f"There are hidden states of shape {tuple(hidden_BTh.shape)} where labels have "
                f"{tuple(self.labels_BT.shape)}; a model that adds or drops tokens cannot be measured."
            )

    def mean_losses(self, logits_nV: Tensor) -> Tensor:
        """(B,) mean cross entropy of each sample's label tokens; NaN for a sample without any."""
        losses_n = functional.cross_entropy(wide(logits_nV), self.targets, reduction="none")
        sums_B = losses_n.new_zeros(self.samples).index_add(0, self.owner, losses_n)
        # Divided by the sample's own label tokens: the batch's number would scale each gradient by its
        # neighbours' lengths.
        return sums_B / self.counts

    def pooled(self, hidden_BTh: Tensor, pooling: str, batch: dict[str, Any]) -> Tensor:
        """(B, h) mean of hidden states over the label tokens, all tokens, or the last one."""
        self._check_shape(hidden_BTh)
        real_BT = batch.get("attention_mask")
        real_BT = torch.ones_like(self.labels_BT) if real_BT is None else real_BT
        if pooling == "labels":
            chosen_BT = functional.pad(self.mask, (1, 0))
        elif pooling == "last":
            order = torch.arange(real_BT.shape[1], device=real_BT.device)
            # The last real token, whichever side is padded.
            last = (real_BT * (order + 1)).argmax(dim=1)
            chosen_BT = order == last[:, None]
        else:
            chosen_BT = real_BT.bool()
        # A product with a mask would carry a padding row's NaN into the mean: 0 * NaN.
        selected = wide(hidden_BTh).masked_fill(~chosen_BT[..., None], 0.0)
        return selected.sum(dim=1) / chosen_BT.sum(dim=1, keepdim=True)


class Head:
    """A model's output head.

    Args:
        model: a causal language model.

    Raises:
        SignalError: when it has no output embeddings.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        head = self.model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if not isinstance(head, nn.Module):
            raise SignalError(
                f"{type(model).__name__} has no output head; signals need a causal language model."
            )
        self.module = head

    @property
    def weight(self) -> nn.Parameter:
        """(V, h)."""
        weight = getattr(self.module, "weight", None)
        if not isinstance(weight, nn.Parameter):
            raise SignalError(
                f"The output head {type(self.module).__name__} has no weight of its own; head_norm needs it."
            )
        return weight

    def logits(
        self, batch: dict[str, Any], positions: LabelPositions, captures: Sequence[Any], hidden: object
    ) -> Tensor:
        """(n, V) logits that predict the label tokens.

        What the model does to logits after the head (soft caps, scales) it does to each on its own, so it is
        given those that count and no others: with prompts masked, most of the head's work falls away.
        """
        with self._at_label_positions(positions, captures, hidden) as calls:
            logits = self.model(**batch, use_cache=False).logits
        self._check(len(calls), logits, len(positions.targets))
        return logits.flatten(0, 1)  # a view both ways; an index would fill a block of zeros on the way back

    def in_pieces(
        self,
        batch: dict[str, Any],
        positions: LabelPositions,
        hidden: object,
        compute: "Callable[[Tensor], AtHead]",
    ) -> "tuple[Tensor, Tensor, AtHead]":
        """The model's forward pass with the head's part left to `compute`, for a head that `returns_product`.

        `compute` gets the (n, h) hidden states that predict label tokens, at the moment when the model calls
        its head: only then does a sharded model have the head's weight in one piece. The head itself runs on
        the first of these rows.

        Returns:
            These hidden states, the (1, 1, V) logits, and what was computed.
        """
        results: list[tuple[Tensor, AtHead]] = []

        def before(_: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if hidden_state.from_head:
                hidden_state.keep(args[0])
            rows = positions.gather(args[0])
            results.append((rows[0], compute(rows[0].detach())))
            return rows[:, :1], *args[1:]

        hidden_state: Any = hidden
        handle = self.module.register_forward_pre_hook(before)
        try:
            logits = self.model(**batch, use_cache=False).logits
        finally:
            handle.remove()
        self._check(len(results), logits, min(1, len(positions.targets)))
        return results[0][0], logits, results[0][1]

    def returns_product(self, batch: dict[str, Any]) -> bool:
        """Whether the head only multiplies, and the model hands on the very tensor it gives: no soft cap, no
        scale, no cast. One forward pass, collective for a model that is sharded.

        Args:
            batch: of one sample, on the model's device.
        """
        if not multiplies(self.module):
            return False
        outputs: list[Any] = []

        def after(_: object, __: object, out: object) -> None:
            outputs.append(out)

        handle = self.module.register_forward_hook(after)
        try:
            with torch.no_grad():
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                logits = self.model(**inputs, use_cache=False).logits
        finally:
            handle.remove()
        return len(outputs) == 1 and logits is outputs[0]

    def _check(self, calls: int, logits: Tensor, rows: int) -> None:
        if calls != 1 or logits.shape[:2] != (1, rows):
            raise SignalError(
                f"The head of {type(self.model).__name__} was called {calls} times and gave logits of "
                f"shape {tuple(logits.shape)}, expected one call and (1, {rows}, V); this "
                "model's forward pass does more than predict the next token."
            )

    @contextmanager
    def _at_label_positions(
        self, positions: LabelPositions, captures: Sequence[Any], hidden: Any
    ) -> Iterator[list[int]]:
        calls: list[int] = []
        inside = ExitStack()

        def before(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            calls.append(1)
            if hidden.from_head:
                hidden.keep(args[0])
            for capture in captures:
                inside.enter_context(capture.rows_owned_by(positions.owner))
            # With prompts masked most positions count for nothing, and the head is the largest matrix of a
            # small model.
            return positions.gather(args[0]), *args[1:]

        # `always_call`, so that captures let go of these rows after an error in the head as well.
        handles = [
            self.module.register_forward_pre_hook(before),
            self.module.register_forward_hook(lambda *_: inside.close(), always_call=True),
        ]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()


def multiplies(module: nn.Module) -> bool:
    """Whether a head computes x W^T + b and nothing that anybody added to it. What FSDP2 adds, which gathers
    the weight, does not count."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return (
        class_of(module) is nn.Linear
        and "forward" not in vars(module)
        and not any(class_of(getattr(hook, "__self__", None)).__name__ != "FSDPState" for hook in hooks)
        and all(type(p) is nn.Parameter or is_distributed(p) for p in module.parameters())
    )
