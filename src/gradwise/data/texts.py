"""The texts of samples as rows of words, a chunk at a time: what n-grams are counted in."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gradwise.numerics.ngrams import Chunk, token_ids, word_ids


class TextDecoder(Protocol):
    """What a tokenizer is used for here."""

    def batch_decode(self, sequences: Any, *, skip_special_tokens: bool) -> Any:
        """The text of each row of tokens."""
        ...


class Texts:
    """Texts of tokenised samples, all of them or those at `rows`, read when they are asked for. Without a
    tokenizer the tokens count as words; with a small vocabulary they are pieces of words, and say less.

    >>> texts = Texts([{"input_ids": [5, 6, 7]}, {"input_ids": [5]}])
    >>> len(texts), [offsets.tolist() for offsets, _ in texts.take(np.array([1])).chunks()]
    (2, [[0, 1]])
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: TextDecoder | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self.dataset, self.tokenizer, self.rows = dataset, tokenizer, rows

    def __len__(self) -> int:
        return len(self.dataset) if self.rows is None else len(self.rows)

    def take(self, rows: NDArray[np.int64]) -> "Texts":
        """Some of them, in the order of `rows`."""
        return Texts(self.dataset, self.tokenizer, rows if self.rows is None else self.rows[rows])

    def chunks(self) -> Iterator[Chunk]:
        """Offsets and word ids of one stretch of samples after another."""
        if self.tokenizer is None:
            yield from token_ids(self._tokens())
            return
        for offsets, tokens in self._tokens():
            parts = np.split(tokens, offsets[1:-1])
            texts = self.tokenizer.batch_decode([part.tolist() for part in parts], skip_special_tokens=True)
            yield word_ids(texts)

    def _tokens(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        from gradwise.data.pool import ragged  # here, since it brings `datasets`

        samples = self.dataset
        if self.rows is not None and hasattr(samples, "select"):
            samples = samples.select(self.rows)
        elif self.rows is not None:
            from torch.utils.data import Subset

            samples = Subset(samples, self.rows.tolist())
        return ragged(samples, "input_ids")
