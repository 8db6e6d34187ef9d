"""Batches for a causal language model, from samples or from packed rows of samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gradwise.data.tokenise import NO_LOSS
from gradwise.errors import DataError

Row = Mapping[str, Any] | Sequence[Mapping[str, Any]]

DESCRIPTIVE = ("domain", "weight", "origin")
"""Columns of a `Pool` that describe a sample and are no input of a model."""

_INTEGERS = ("input_ids", "labels", "attention_mask", "position_ids")


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right to the longest, or to the next multiple of `pad_to_multiple_of`."""

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False, compare=False)
    """Turns tokens into words where a decision compares texts; batches do not depend on it."""

    @classmethod
    def for_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None
    ) -> "Collator":
        """Pad with the tokenizer's padding token, else its end token, else token 0."""
        # Padding is masked and has no label, so that any token of the vocabulary will do.
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return cls(
            next(token for token in candidates if isinstance(token, int)), pad_to_multiple_of, tokenizer
        )

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Collate rows, each a sample or a list of samples.

        A sample has `input_ids` and `labels`, and may have other inputs of the model, one number for each
        token: `attention_mask`, `position_ids`, `token_type_ids`, ... What describes a sample (`DESCRIPTIVE`)
        stays out of the batch.

        Returns:
            (B, T) tensors: `input_ids`, `labels`, `attention_mask`, and what else the samples have. If any
            row is a list, all are packed: `position_ids` start again at 0 with each sample and with the
            padding. There is no `attention_mask` then: transformers derives the mask from the positions only
            where none is given, and each sample sees itself alone. The same for samples that bring positions
            which start again within them.

        Raises:
            ValueError: no rows, or a row of no samples.
            DataError: a sample lacks ids or labels, or has a column that cannot be padded or packed.
        """
        if not rows or not all(rows):
            raise ValueError(f"cannot collate {len(rows)} rows; some are empty")
        if all(isinstance(row, Mapping) for row in rows):
            tensors = [_tensors(row) for row in rows]  # type: ignore[arg-type]
            if not any(_start_again(row) for row in tensors):
                for row in tensors:
                    # Only for plain samples. transformers derives the mask of packed ones from their
                    # positions, and only where no mask is given.
                    row.setdefault("attention_mask", torch.ones_like(row["input_ids"]))
        else:
            tensors = [_packed([row] if isinstance(row, Mapping) else row) for row in rows]
        _check_same_columns(tensors)
        width = max(len(row["input_ids"]) for row in tensors)
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        return {
            name: torch.stack([self._padded(name, row[name], width) for row in tensors])
            for name in tensors[0]
        }

    def _padded(self, name: str, values: Tensor, width: int) -> Tensor:
        rest = torch.arange(width - len(values))  # as positions: a sequence of its own, which no sample sees
        if name != "position_ids":
            rest = torch.full_like(rest, {"input_ids": self.pad_token_id, "labels": NO_LOSS}.get(name, 0))
        return torch.cat([values, rest.to(values.dtype)])


def _tensors(sample: Mapping[str, Any]) -> dict[str, Tensor]:
    """(T,) tensors of what goes into a batch."""
    for name in ("input_ids", "labels"):
        if sample.get(name) is None:
            raise DataError(
                f"A sample has no {name}; give every sample input_ids and labels, which are the same ids "
                "where every token is to be learned."
            )
    length, tensors = len(sample["input_ids"]), {}
    for name, values in sample.items():
        if values is None or name in DESCRIPTIVE:
            continue
        try:
            tensors[name] = torch.as_tensor(values, dtype=torch.int64 if name in _INTEGERS else None)
        except (TypeError, ValueError, RuntimeError):
            tensors[name] = torch.empty(0, 0)
        if tensors[name].shape != (length,):
            raise DataError(
                f"A sample has {length} input_ids, and its column {name!r} is not one number for each of "
                "them; leave the column out, or give a collator that knows it."
            )
    return tensors


def _packed(samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """(T,) tensors of samples put one behind the other."""
    tensors = [_tensors(sample) for sample in samples]
    for sample in tensors:
        order = torch.arange(len(sample["input_ids"]))
        masked = not sample.pop("attention_mask", order + 1).all()
        if masked or not torch.equal(sample.setdefault("position_ids", order), order):
            column = "attention_mask" if masked else "position_ids"
            raise DataError(
                f"A sample brings its own {column}, which packing replaces; leave out the column, or packing."
            )
        # Or the last token of the sample before would learn to predict the first.
        sample["labels"] = sample["labels"].clone()
        sample["labels"][:1] = NO_LOSS
    _check_same_columns(tensors)
    return {name: torch.cat([sample[name] for sample in tensors]) for name in tensors[0]}


def _start_again(sample: dict[str, Tensor]) -> bool:
    """Whether a sample is itself a packed row: positions that start again, and no mask beside them."""
    positions = sample.get("position_ids")
    return positions is not None and "attention_mask" not in sample and bool((positions.diff() != 1).any())


def _check_same_columns(samples: list[dict[str, Tensor]]) -> None:
    for sample in samples:
        if odd := sample.keys() ^ samples[0].keys():
            raise DataError(f"Some samples have the column {min(odd)!r} and others have not; give it to all.")
