"""Own-mean loss of every sample in one forward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from gradwise.data import token_lengths
from gradwise.errors import SignalError
from gradwise.signals.quantities import Signals

Batch = dict[str, Tensor]


def collect_losses(
    model: nn.Module,
    dataset: Sequence[dict[str, Any]],
    collator: Callable[[list[dict[str, Any]]], Batch],
    *,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> Signals:
    """Measure l_i = (1/|L_i|) sum over label tokens of the cross entropy, at the model's present weights.

    Without dropout and without gradients. Every sample's loss is its own: it does not depend on what it is
    batched with beyond float rounding. Under torch.distributed each rank measures its share of the batches
    and all ranks return the same arrays, the same as one rank would.

    Args:
        model: a causal language model returning `.logits` of shape (B, T, V).
        dataset: anything indexable of {"input_ids": [...], "labels": [...]}; labels of -100 do not count.
        collator: makes a padded batch with "input_ids", "attention_mask" and "labels" out of samples.
        batch_tokens: padded tokens per batch; at least one sample goes in whatever its length.
        progress: show a bar on the first rank when standard error is a terminal.

    Returns:
        Signals with `loss` (N,) in nats per label token, `num_tokens` (N,) and `ok` (N,), False where the
        loss is not finite or the sample has no label token.

    Raises:
        SignalError: when no sample of the data set has a finite loss.
    """
    lengths = token_lengths(dataset)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batches = list(batches_by_length(lengths, batch_tokens))
    loss = np.full(len(lengths), np.nan, dtype=np.float32)
    tokens = np.zeros(len(lengths), dtype=np.int32)
    device = next(model.parameters()).device
    bar = tqdm(batches[rank::ranks], "losses", unit="batch", disable=None if progress and rank == 0 else True)
    with _evaluating(model), torch.inference_mode():
        for rows in bar:
            for part in _collated(dataset, rows, collator):
                batch = {name: _moved(value, device) for name, value in part.batch.items()}
                loss[part.rows], tokens[part.rows] = _own_mean_losses(model, batch)
    if ranks > 1:
        _merge(loss, tokens, batches, ranks)
    ok = np.isfinite(loss)
    if not ok.any():
        cause = "the model's weights are unusable" if tokens.any() else "none has a token to learn"
        raise SignalError(f"None of the {len(loss)} samples has a finite loss; {cause}.")
    return Signals(len(loss), num_tokens=tokens, loss=loss, ok=ok)


def batches_by_length(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Cut the samples, longest first, into batches of at most `batch_tokens` padded tokens.

    Longest first, so that running out of memory happens at once or not at all.
    """
    by_length = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(by_length):
        rows = max(1, batch_tokens // max(1, int(lengths[by_length[start]])))
        yield by_length[start : start + rows]
        start += rows


class _Part(NamedTuple):
    rows: NDArray[np.int64]
    batch: dict[str, Any]


def _collated(dataset: Any, rows: NDArray[np.int64], collator: Callable[..., Batch]) -> Iterator[_Part]:
    """One batch, or one per sample where the collator strings samples together in one row (TRL's
    padding_free)."""
    batch = collator([dataset[int(i)] for i in rows])
    if len(batch["labels"]) == len(rows):
        yield _Part(rows, batch)
        return
    for row in rows:
        yield _Part(np.array([row]), collator([dataset[int(row)]]))


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _own_mean_losses(
    model: nn.Module, batch: dict[str, Any]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    labels_BT = batch.pop("labels")[:, 1:]
    logits_BTV = model(**batch, use_cache=False).logits[:, :-1]
    tokens_B = (labels_BT != -100).sum(dim=1)
    # One sample at a time: the float32 copy of the logits is then T x V, not B x T x V.
    sums = [
        nn.functional.cross_entropy(logits_TV.float(), labels_T, ignore_index=-100, reduction="sum")
        for labels_T, logits_TV in zip(labels_BT, logits_BTV, strict=True)
    ]
    losses_B = torch.stack(sums) / tokens_B  # 0 / 0 = NaN: no label token
    return losses_B.cpu().numpy(), tokens_B.cpu().numpy().astype(np.int32)


def _merge(loss: NDArray, tokens: NDArray, batches: list[NDArray], ranks: int) -> None:
    shares: list[Any] = [None] * ranks
    dist.all_gather_object(shares, (loss, tokens))
    for other, (their_loss, their_tokens) in enumerate(shares):
        for rows in batches[other::ranks]:
            loss[rows], tokens[rows] = their_loss[rows], their_tokens[rows]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, given back module by module as it was found."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
