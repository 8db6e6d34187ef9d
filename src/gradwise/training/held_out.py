"""Held-out loss of an evaluation: cross-entropy in nats per label token, each sample once.

The Trainer's own `eval_loss` averages the means of batches, so it depends on how samples fall into batches.
Under several ranks it is wrong as well: each sum is divided by all ranks' label tokens, and samples are
repeated so that every rank has as many. While a loop is measured here, each rank divides by its own tokens,
and repeated samples have no labels. So `eval_loss` is then what one process finds.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

from gradwise.data.tokenise import NO_LOSS
from gradwise.evaluation.settings import HELD_OUT_LOSS


class HeldOutLoss:
    """Adds up the loss over an evaluation loop, from what the model puts out rather than from the loss that a
    trainer makes of it, which may be smoothed, regularised or another one altogether.

    Args:
        args: of the trainer whose loop it is.
        accelerator: of the same.
    """

    def __init__(self, args: TrainingArguments, accelerator: Accelerator) -> None:
        self._args, self._accelerator = args, accelerator
        self._sum, self._tokens, self._complete = 0.0, 0, False

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Around one evaluation loop; a collective call."""
        self._sum, self._tokens, self._complete = 0.0, 0, True
        args = self._args
        # With it on, transformers divides each rank's sum by all ranks' label tokens, and the loss comes out
        # too small.
        before, args.average_tokens_across_devices = args.average_tokens_across_devices, False
        try:
            yield
        finally:
            args.average_tokens_across_devices = before

    @contextmanager
    def batch(self, model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[Any]:
        """Around the forward pass of one batch; gives the inputs to use."""
        inputs = self._without_repeated(inputs)
        labels = _labels(inputs)
        sums: list[float] = []

        def read(_: object, __: object, output: Mapping[str, Any]) -> None:
            if labels is not None and not sums and isinstance(output, Mapping):
                sums.extend(_summed_loss(output, labels))

        hook = model.register_forward_hook(read)
        try:
            yield inputs
        finally:
            hook.remove()
        if labels is not None and sums:
            self._sum += sums[0]
            self._tokens += _count(labels)
        else:
            self._complete = False

    def total(self) -> float | None:
        """Nats per label token over all ranks; None if a batch could not be read. A collective call."""
        loss, tokens, unread = self._sum, float(self._tokens), float(not self._complete)
        if dist.is_initialized() and dist.get_world_size() > 1:
            sums = torch.tensor([loss, tokens, unread], dtype=torch.float64, device=self._args.device)
            dist.all_reduce(sums)
            loss, tokens, unread = sums.tolist()
        # The mean of batch means, which the Trainer takes, was 3.5 where all label tokens alike gave 4.43,
        # over 180 records of three sets (docs/log.md, 2026-11-21).
        return loss / tokens if tokens and not unread else None

    def _without_repeated(self, inputs: Mapping[str, Any]) -> Any:
        """The batch with nothing to learn of the samples that only fill up the last round over the ranks."""
        accelerator = self._accelerator
        state, ranks = accelerator.gradient_state, accelerator.num_processes
        labels = _labels(inputs)
        if ranks == 1 or not state.end_of_dataloader or state.remainder <= 0 or labels is None:
            return inputs
        rows = len(labels)
        dispatched = isinstance(state.active_dataloader, DataLoaderDispatcher)
        if not dispatched and rows != self._args.eval_batch_size:
            self._complete = False  # a layout of its own, where rows are not samples
            return inputs
        real_rows = min(max(state.remainder - accelerator.process_index * rows, 0), rows)
        labels = labels.clone()
        labels[real_rows:] = NO_LOSS
        return {**inputs, "labels": labels}


def _labels(inputs: Mapping[str, Any]) -> Tensor | None:
    """(B, T) labels of a batch, if it has such."""
    labels = inputs.get("labels") if hasattr(inputs, "get") else None
    return labels if isinstance(labels, Tensor) and labels.ndim == 2 else None


def _count(labels: Tensor) -> int:
    return int((labels[:, 1:] != NO_LOSS).sum())


def _summed_loss(output: Mapping[str, Any], labels: Tensor) -> list[float]:
    """The loss summed over a batch's label tokens; empty if the output does not hold it.

    Args:
        output: what the model put out.
        labels: (B, T).
    """
    logits, loss = output.get("logits"), output.get("loss")
    if output.get("log_probs") is not None:  # TRL's head, which makes no logits
        return [-float(output["log_probs"].float().sum())]
    if isinstance(logits, Tensor) and logits.ndim == 3:
        labels = labels.to(logits.device)
        # A row at a time, since all at once would need the memory of the logits again. Counted from the end,
        # since prompt tuning adds tokens in front.
        rows = zip(logits[:, -labels.shape[1] : -1], labels[:, 1:], strict=True)
        each = [
            cross_entropy(row[mask].float(), targets[mask], reduction="sum")
            for row, targets in rows
            for mask in [targets != NO_LOSS]
        ]
        return [sum(torch.stack(each).tolist())]
    # An auxiliary loss, of a mixture of experts for example, is in `loss` and is no held-out loss.
    if loss is not None and output.get("aux_loss") is None:  # a fused kernel's, the mean over label tokens
        tokens = _count(labels)
        return [float(loss) * tokens if tokens else 0.0]
    return []


def record_name(metric: str) -> str:
    """The held-out loss by its own name, of several evaluation sets with the set's after it."""
    match = re.fullmatch(f"eval_(?:(.+)_)?{HELD_OUT_LOSS}", metric)
    return metric if match is None else "/".join([HELD_OUT_LOSS, *filter(None, match.groups())])
