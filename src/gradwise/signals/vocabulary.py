"""The tokens of a model: its padding, and ids without an embedding, which end its first forward pass in an
index error."""

from typing import Any

import numpy as np

from gradwise.data import Collator, ragged
from gradwise.errors import DataError


def vocabulary_size(model: Any) -> int:
    """Number of tokens that a model has embeddings for."""
    embeddings = model.get_input_embeddings()
    # Under ZeRO-3 the weight itself is empty.
    return int(getattr(embeddings, "num_embeddings", None) or embeddings.weight.shape[0])


def padding_collator(model: Any) -> Collator:
    """What makes batches of a model's samples, padded with its own padding token, or with token 0."""
    token = getattr(model.config, "pad_token_id", None)
    return Collator(token if isinstance(token, int) and token >= 0 else 0)


def check_tokens(model: Any, dataset: Any, collate: Any = None) -> None:
    """Refuse samples with tokens that the model does not know.

    Only a `datasets.Dataset` is read; of others, the tokens may be made when a sample is fetched.

    Args:
        model: a causal language model.
        dataset: with a column `input_ids`.
        collate: what makes batches; its `pad_token_id` is checked too.

    Raises:
        DataError: names the first such sample and its token.
    """
    try:
        size = vocabulary_size(model)
    except (AttributeError, NotImplementedError):  # embeddings of its own kind
        return
    if (padding := getattr(collate, "pad_token_id", None)) is not None and not 0 <= padding < size:
        raise DataError(
            f"The padding token is number {padding}, and the model has embeddings for 0 to {size - 1}; give "
            "the tokenizer another pad_token, its end token for example."
        )
    if "input_ids" not in (getattr(dataset, "column_names", None) or ()) or not hasattr(
        dataset, "with_format"
    ):
        return
    start = 0
    for offsets, ids in ragged(dataset, "input_ids"):
        if len(wrong := np.flatnonzero((ids < 0) | (ids >= size))):
            row = start + int(np.searchsorted(offsets, wrong[0], side="right")) - 1
            origin = dataset[row].get("origin", f"sample {row}")
            raise DataError(
                f"{origin} has token {ids[wrong[0]]}, and the model has embeddings for 0 to {size - 1}; use "
                "the model's own tokenizer, or a model whose embeddings fit it."
            )
        start += len(offsets) - 1
