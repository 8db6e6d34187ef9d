"""Per-sample weights in the loss: the loss of a step is sum_i w_i (sum of the token losses of i) / T.

T is the step's plain number of label tokens, over all micro-batches and ranks, as without weights. Divided by
the weighted number instead, a sample would only be weighed against those of its own step: in a batch of one,
its weight would have no effect. With T and weights of mean 1, the expected gradient is that of seeing each
sample as often as its weight says.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers.loss.loss_utils import ForCausalLMLoss

from gradwise.data.tokenise import NO_LOSS
from gradwise.errors import DataError, RecipeError
from gradwise.training.sharding import TrainerParts

KEY = "gradwise_loss_weights"
"""Name under which a micro-batch carries its weights; taken out before the model sees it."""


def token_weights(batch: dict[str, Any], weights: Sequence[Sequence[float]], *, packed: bool) -> Tensor:
    """(B, T) float32 weight of each token.

    Args:
        batch: as the collator made it.
        weights: of the samples of each of its B rows.
        packed: whether a row may hold several samples, each of whose positions starts at 0.

    Raises:
        DataError: the collator returns no row of labels for each sample.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 2 or len(labels) != len(weights):
        shape = tuple(labels.shape) if isinstance(labels, Tensor) else "none"
        raise DataError(
            f"weights: loss needs a collator that returns one row of labels for each of {len(weights)} "
            f"samples; found labels of shape {shape}. Use such a collator, or weights: repeat."
        )
    if not packed:
        return torch.tensor(weights, dtype=torch.float32).expand(labels.shape)
    longest = max(map(len, weights)) + 1  # padding, if any, is the last sequence of its row
    table = torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in weights], dtype=torch.float32)
    # A packed row's samples begin where positions start again at 0: counting these gives each token its
    # sample.
    return table.gather(1, (batch["position_ids"] == 0).cumsum(1) - 1)


class WeightedLoss:
    """The causal loss of a model's forward pass, with every token's loss multiplied by a weight.

    Args:
        model: whose `loss_function` is replaced while weights are in use.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._weights = torch.ones(())
        self._called = False

    @contextmanager
    def using(self, weights: Tensor | None) -> Iterator[None]:
        """Forward passes within use these (B, T) weights; with None the model's own loss.

        Raises:
            RecipeError: the model computed a loss of its own, in which the weights had no effect.
        """
        with self._replaced(weights) if weights is not None else nullcontext():
            yield

    @contextmanager
    def _replaced(self, weights: Tensor) -> Iterator[None]:
        before = vars(self.model).get("_loss_function")
        self._weights, self._called = weights, False
        self.model.loss_function = self._loss
        try:
            yield
        finally:
            del self.model._loss_function
            if before is not None:
                self.model.loss_function = before
        # A model that never calls `loss_function` would train without the weights, and nothing would show it.
        if not self._called:
            raise RecipeError(
                f"weights: loss has no effect in {type(self.model).__name__}, whose forward pass computes a "
                "loss of its own; use weights: repeat."
            )

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = NO_LOSS,
        shift_labels: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """As transformers' `ForCausalLMLoss`, token by token."""
        self._called = True
        if shift_labels is None:
            assert labels is not None
            shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        targets = shift_labels.reshape(-1).to(logits.device)
        weights = functional.pad(self._weights, (0, 1))[..., 1:].reshape(-1).to(logits.device)
        if len(weights) != len(targets):
            raise RecipeError(
                f"weights: loss cannot be used here: the model computes its loss over {len(targets)} tokens "
                f"of a batch of {len(weights)}, as with prompts that are learned. Use weights: repeat."
            )
        losses = functional.cross_entropy(
            logits.float().view(-1, vocab_size), targets, ignore_index=ignore_index, reduction="none"
        )
        # The step's plain number of tokens, not the weighted one, see the top of this file.
        tokens = (targets != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch
        return (losses * weights).sum() / torch.as_tensor(tokens, device=losses.device)


def check_weighted(trainer: TrainerParts) -> None:
    """Raise RecipeError where weights could not act in a trainer's loss."""
    args, model = trainer.args, WeightedLoss(trainer.model).model
    name = type(trainer).__name__
    problems = {
        f"{name} computes its own loss": type(trainer).compute_loss is not transformers.Trainer.compute_loss,
        f"{name} was given a compute_loss_func": trainer.compute_loss_func is not None,
        "label_smoothing_factor replaces the model's loss": trainer.label_smoother is not None,
        "use_liger_kernel fuses the loss into the output head": bool(args.use_liger_kernel),
        "DataParallel splits a batch within a process": args.n_gpu > 1,
        f"{type(model).__name__} computes its own loss": getattr(model, "loss_function", None)
        is not ForCausalLMLoss,
        f"{type(model).__name__} does not divide its loss by the step's label tokens": (
            not trainer.model_accepts_loss_kwargs
        ),
        "average_tokens_across_devices: false divides by the tokens of each rank": (
            args.world_size > 1 and not args.average_tokens_across_devices
        ),
    }
    for reason, applies in problems.items():
        if applies:
            raise RecipeError(f"weights: loss cannot be used here: {reason}. Use weights: repeat.")
