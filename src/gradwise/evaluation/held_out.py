"""Held-out loss of a model: overall and per domain, exact whatever the batches."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from gradwise.console import say
from gradwise.data import Collator
from gradwise.evaluation.scores import Score, finite
from gradwise.evaluation.settings import HELD_OUT_LOSS
from gradwise.signals import Signals, collect

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def held_out_loss(
    model: "PreTrainedModel",
    tokenizer: PreTrainedTokenizerBase,
    validation: Any,
    *,
    batch_tokens: int = 4096,
    progress: bool = True,
    tell: Callable[[str], None] = say,
) -> dict[str, Score]:
    """Cross entropy in nats per label token: sum over all label tokens / number of them; also by domain, as
    `held_out_loss/<domain>`, if there are several. Under torch.distributed every rank must call it; each
    measures its share. Samples without a finite loss are left out with a warning. Raises SignalError if none
    is left."""
    signals = _losses(model, tokenizer, validation, batch_tokens, progress)
    assert signals.loss is not None and signals.num_tokens is not None and signals.ok is not None
    # Samples without a label token have nothing to measure, and are no reason for a warning.
    bad = np.flatnonzero(~signals.ok & (signals.num_tokens > 0))
    if len(bad):
        first = validation[int(bad[0])].get("origin", f"number {bad[0]}")
        tell(
            f"Warning: {len(bad)} of {len(validation)} held-out samples have no finite loss and are left "
            f"out of the score (first: {first})."
        )
    domains = np.asarray([row.get("domain", "") for row in _without_tokens(validation)])
    scores = {HELD_OUT_LOSS: _mean(HELD_OUT_LOSS, signals, signals.ok)}
    names = list(dict.fromkeys(domains.tolist()))
    for domain in names if len(names) > 1 else []:
        rows = signals.ok & (domains == domain)
        if rows.any():
            name = f"{HELD_OUT_LOSS}/{domain}"
            scores[name] = _mean(name, signals, rows)
    return scores


def _losses(
    model: "PreTrainedModel",
    tokenizer: PreTrainedTokenizerBase,
    validation: Any,
    batch_tokens: int,
    progress: bool,
) -> Signals:
    collator = Collator.for_tokenizer(tokenizer)
    # Samples without a finite loss are named by domain and origin, above.
    return collect(
        model,
        validation,
        collator,
        want="loss",
        batch_tokens=batch_tokens,
        progress=progress,
        tell=lambda _: None,
    )


def _without_tokens(validation: Any) -> Any:
    """The same rows, without the long columns if the data set can leave them out unread."""
    names = getattr(validation, "column_names", None)
    if names is None:
        return (validation[number] for number in range(len(validation)))
    if "domain" not in names:
        return ({} for _ in range(len(validation)))
    return validation.select_columns(["domain"])


def _mean(name: str, signals: Signals, rows: NDArray[np.bool_]) -> Score:
    """The mean loss per label token; in float64, a sample's mean times its tokens is its sum again."""
    assert signals.loss is not None and signals.num_tokens is not None
    tokens = signals.num_tokens[rows].astype(np.float64)
    mean = float(signals.loss[rows].astype(np.float64) @ tokens / tokens.sum())
    return Score(finite(name, mean), "lower", int(rows.sum()))
