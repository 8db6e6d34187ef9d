"""Packing is tried on a model before its first step: no sample of a row may see another.

transformers derives a mask from positions that start again, but not in about a third of its architectures:
recurrent and convolutional ones carry their state on, others take positions from the row. The test looks from
outside: a neighbour is changed, and each sample is computed alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.data import Collator
from gradwise.errors import RecipeError
from gradwise.precision import autocasting
from gradwise.ranks import on_first
from gradwise.signals.model_state import evaluating
from gradwise.text import described

LENGTHS = (5, 7, 6)
"""Tokens of the samples that are tried; short convolutions reach over four."""

EXACT, COARSE = (1e-4, 1e-3), (1e-2, 0.05)
"""Relative differences of a token's logits that rounding explains, in float32 and in half precision: where a
neighbour's tokens differ, and where the sample is computed alone."""

Ids = list[int]


def reason_not_to_pack(collate: object, problem: Callable[[], str | None], *, unpack: bool) -> str | None:
    """Why a run trains unpacked; None if packing gives each sample what it has alone. A collective call.

    Args:
        collate: the trainer's.
        problem: finds why the model cannot learn from packed rows.
        unpack: train unpacked in that case, instead of refusing.

    Raises:
        RecipeError: packing cannot be used.
    """
    if not isinstance(collate, Collator):
        raise RecipeError(f"packed_length needs gradwise's own Collator; found {type(collate).__name__}.")
    reason = on_first(problem)
    if reason is not None and not unpack:
        raise RecipeError(
            f"{reason}; set packing: false, or packing: auto to train unpacked where that is so (with a "
            "gradwise.Trainer, unpack_if_needed)."
        )
    return reason


def check_packed_rows(dataset: object, collate: object, problem: Callable[[], str | None]) -> None:
    """Refuse samples that are packed rows themselves where the model does not keep them apart."""
    if not isinstance(collate, Collator) or not starts_again(dataset):
        return
    if reason := on_first(problem):
        raise RecipeError(
            f"The training data are packed rows (their position_ids start again), and {reason}; give one "
            "sample for each row."
        )


def problem(
    model: nn.Module, samples: object, collate: Collator, *, rows: int, autocast: torch.dtype | None
) -> str | None:
    """Why a model cannot learn from packed rows, in a sentence without its full stop; None if it can, or if
    no process holds the whole model and nothing can be tried.

    Args:
        model: that trains.
        samples: the training data.
        collate: makes a batch of packed rows.
        rows: that the batches of the run have.
        autocast: what training computes in; None for the weights' own type.
    """
    attention = getattr(model.config, "_attn_implementation", None) or ""
    if "flash" in attention:
        # transformers passes packed samples to flash attention only for batches of a single row.
        return f"{attention} would let packed samples see each other; use attention: sdpa"
    if not _is_whole(model):
        return None
    return influence(model, _some_tokens(samples), collate, rows=rows, autocast=autocast)


def influence(
    model: nn.Module, tokens: Sequence[int], collate: Collator, *, rows: int, autocast: torch.dtype | None
) -> str | None:
    """How packed samples influence each other in a model, in a sentence without its full stop; None if they
    do not.

    Args:
        model: on its device; given back as it was.
        tokens: some of the training data, from which samples are made.
        collate: makes a batch of samples, and of packed rows of samples.
        rows: that the batches of the run have.
        autocast: what training computes in; None for the weights' own type.
    """
    name, compute = type(model).__name__, next(p for p in model.parameters() if p.is_floating_point())
    exact = (autocast or compute.dtype) in (torch.float32, torch.float64)
    beside_other, by_itself = EXACT if exact else COARSE
    first, middle, last, other = _samples(tokens)
    # A second row, where the run has several: some models are right for a single row only.
    more = [[last, first]] if rows > 1 else []

    def logits(*packed: list[Ids]) -> list[Tensor]:
        """(T, V) logits of each sample, minus their mean over the vocabulary."""
        batch = collate([[_sample(ids) for ids in row] for row in packed])
        row_logits = _logits(model, batch, compute.device, autocast)
        parts = [
            row_logits[i, : sum(map(len, row))].split([len(ids) for ids in row])
            for i, row in enumerate(packed)
        ]
        return [sample for row in parts for sample in row]

    try:
        with evaluating(model), torch.no_grad():
            # Logits, not the loss: of 48 architectures whose packed samples see each other, 8 changed the
            # summed loss by less than 1e-4, while single logits moved by 0.1 to 13 % (docs/log.md).
            together = logits([first, middle, last], *more)
            beside = logits([first, other, last], *more)
            alone = [
                _logits(model, collate([_sample(ids)]), compute.device, autocast)[0]
                for ids in (first, middle, last)
            ]
    except Exception as error:
        return f"{name} cannot take packed rows ({described(error, 200)})"
    if (moved := max(_difference(together[i], beside[i]) for i in (0, 2))) > beside_other:
        return f"packed samples see each other in {name}: changing one moved another's logits by {moved:.1%}"
    if (moved := max(map(_difference, together, alone))) > by_itself:
        return f"packed samples give {name} other logits than they give alone, by {moved:.1%}"
    return None


def starts_again(samples: Any) -> bool:
    """Whether some of a data set's first samples are packed rows: their positions start again."""
    positions = [samples[place].get("position_ids", [0]) for place in range(min(len(samples), 8))]
    return any(bool((torch.as_tensor(each).diff() != 1).any()) for each in positions)


def _is_whole(model: nn.Module) -> bool:
    return all(not p.is_meta and p.numel() and type(p).__name__ != "DTensor" for p in model.parameters())


def _some_tokens(samples: Any) -> Ids:
    tokens: Ids = []
    for place in range(min(len(samples), sum(LENGTHS))):
        tokens += [int(token) for token in samples[place]["input_ids"]]
        if len(tokens) >= sum(LENGTHS):
            break
    return tokens


def _samples(tokens: Sequence[int]) -> list[Ids]:
    """Three samples, and what the second becomes: each of its tokens is another one."""
    stream = (list(tokens) * sum(LENGTHS))[: sum(LENGTHS)]
    distinct = sorted(set(stream))
    # Every token of the neighbour changes, so that a leak through any of them shows.
    following = dict(
        zip(
            distinct,
            [*distinct[1:], distinct[0] if len(distinct) > 1 else max(0, distinct[0] - 1)],
            strict=True,
        )
    )
    first, second, third = (stream[sum(LENGTHS[:i]) : sum(LENGTHS[: i + 1])] for i in range(len(LENGTHS)))
    return [first, second, third, [following[token] for token in second]]


def _sample(ids: Ids) -> dict[str, Ids]:
    return {"input_ids": ids, "labels": ids}


def _logits(
    model: nn.Module, batch: dict[str, Any], device: torch.device, autocast: torch.dtype | None
) -> Tensor:
    """(B, T, V), each token's without their mean, as training computes them."""
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    with autocasting(device, autocast):
        logits = model(**inputs).logits.float()
    # Their mean over the vocabulary changes no probability, and would hide differences beside its size.
    return logits - logits.mean(dim=-1, keepdim=True)


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of a token's logits, relative to their size."""
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1).clamp(min=1e-6)).max())
