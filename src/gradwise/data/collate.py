"""Batches for a causal language model, from samples or from packed rows of samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from gradwise.data.tokenise import NO_LOSS

Row = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right to the longest, or to the next multiple of `pad_to_multiple_of`."""

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    @classmethod
    def for_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None
    ) -> "Collator":
        """Pad with the tokenizer's padding token, else its end token, else token 0."""
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return cls(next(token for token in known if isinstance(token, int)), pad_to_multiple_of)

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Collate rows, each a sample (`input_ids`, `labels`; other columns are ignored) or a list of
        samples.

        Returns:
            (B, T) int64 tensors. Samples: `input_ids`, `attention_mask`, `labels`. If any row is a list, all
            are packed: `input_ids`, `labels`, and `position_ids` that start again at 0 with each sample and
            with the padding. There is no `attention_mask` then: transformers derives the mask from the
            positions only where none is given, and each sample sees itself alone.

        Raises:
            ValueError: no rows, or a row of no samples.
        """
        if not rows or not all(rows):
            raise ValueError(f"cannot collate {len(rows)} rows of which some are empty")
        packed = not all(isinstance(row, Mapping) for row in rows)
        joined = [_joined([row] if isinstance(row, Mapping) else row, packed) for row in rows]
        width = max(len(row["input_ids"]) for row in joined)
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        padded = [self._pad(row, width) for row in joined]
        return {name: torch.stack([row[name] for row in padded]) for name in padded[0]}

    def _pad(self, row: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
        rest = torch.arange(width - len(row["input_ids"]))
        fill = {
            "input_ids": torch.full_like(rest, self.pad_token_id),
            "labels": torch.full_like(rest, NO_LOSS),
            "position_ids": rest,  # a sequence of its own, which no sample sees
            "attention_mask": torch.zeros_like(rest),
        }
        return {name: torch.cat([tensor, fill[name]]) for name, tensor in row.items()}


def _joined(samples: Sequence[Mapping[str, Any]], packed: bool) -> dict[str, torch.Tensor]:
    """(T,) tensors of samples put one behind the other."""
    ids = [torch.as_tensor(sample["input_ids"], dtype=torch.int64) for sample in samples]
    labels = [torch.as_tensor(sample["labels"], dtype=torch.int64).clone() for sample in samples]
    if not packed:
        return {"input_ids": ids[0], "labels": labels[0], "attention_mask": torch.ones_like(ids[0])}
    for label in labels:
        label[:1] = NO_LOSS  # or the last token of the sample before would learn to predict it
    positions = torch.cat([torch.arange(len(sample)) for sample in ids])
    return {"input_ids": torch.cat(ids), "labels": torch.cat(labels), "position_ids": positions}
