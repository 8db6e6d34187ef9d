"""From samples to `input_ids` and `labels`.

A text is tokenised whole, never prompt and completion apart: the tokens are then those the model meets in
use. A token is learned if any of its characters is, so one that straddles the border belongs to the
completion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from gradwise.data.chat import ChatTemplate, Span
from gradwise.data.formats import Chat, Pair, Sample, Text
from gradwise.data.records import UnreadableError

NO_LOSS = -100


class Tokens(NamedTuple):
    """One tokenised sample.

    ids: (T,) int32.
    labels: (T,) int32; the token itself, or -100 where there is nothing to learn. Of a sequence's first token
    nothing
        is learned whatever its label, since nothing comes before it.
    cut: whether the end was lost to `max_length`.
    """

    ids: np.ndarray
    labels: np.ndarray
    cut: bool

    @property
    def learned(self) -> int:
        """How many tokens the model is asked to predict."""
        return int(np.count_nonzero(self.labels[1:] != NO_LOSS))


class _Spelled(NamedTuple):
    text: str
    spans: list[Span] | None  # None: all of it
    chat: bool  # the template has written the special tokens


@dataclass(frozen=True)
class Tokeniser:
    """Settings of `gradwise.data.settings.Data`, bound to a tokenizer. `chat_template` is Jinja text here."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    loss_on: str = "completion"
    template: str = "plain"
    chat_template: str | None = None

    def __call__(self, samples: Sequence[Sample]) -> list[Tokens | UnreadableError]:
        """Tokenise a batch; where a sample cannot be, the reason stands in its place.

        Raises:
            DataError: the chat template is of no use for any sample.
        """
        spelled = [self._try_to_spell(sample) for sample in samples]
        done: dict[int, Tokens | UnreadableError] = {
            i: item for i, item in enumerate(spelled) if isinstance(item, UnreadableError)
        }
        for chat in (False, True):
            batch = {i: x for i, x in enumerate(spelled) if isinstance(x, _Spelled) and x.chat == chat}
            done |= zip(batch, self._tokens(list(batch.values()), chat), strict=True)
        return [done[i] for i in range(len(spelled))]

    def _try_to_spell(self, sample: Sample) -> _Spelled | UnreadableError:
        try:
            spelled = self._spell(sample)
            spelled.text.encode()
        except UnreadableError as problem:
            return problem
        except UnicodeEncodeError:
            return UnreadableError("its text holds half a surrogate pair, which is no character")
        return spelled

    def _spell(self, sample: Sample) -> _Spelled:
        if isinstance(sample, Pair) and self.template == "chat":
            turns = [
                {"role": "user", "content": sample.ask},
                {"role": "assistant", "content": sample.completion},
            ]
            sample = Chat(turns)
        everything = self.loss_on == "all"
        if isinstance(sample, Text):
            return _Spelled(sample.text, None, chat=False)
        if isinstance(sample, Pair):
            text = sample.prompt + sample.completion
            return _Spelled(text, None if everything else [(len(sample.prompt), len(text))], chat=False)
        text, spans = ChatTemplate(self.tokenizer, self.chat_template).spell(sample, locate=not everything)
        return _Spelled(text, None if everything else spans, chat=True)

    def _tokens(self, batch: list[_Spelled], chat: bool) -> list[Tokens]:
        """Tokenise texts that all want, or all do not want, the tokenizer's special tokens."""
        if not batch:
            return []
        by_offset = bool(self.tokenizer.is_fast) and any(item.spans is not None for item in batch)
        encoded = self.tokenizer(
            [item.text for item in batch],
            add_special_tokens=not chat,
            return_offsets_mapping=by_offset,
            return_attention_mask=False,
            verbose=False,
        )
        ids = [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
        if by_offset:
            offsets = [np.asarray(row, dtype=np.int64).reshape(-1, 2) for row in encoded["offset_mapping"]]
            learned = [_by_offset(item, offset) for item, offset in zip(batch, offsets, strict=True)]
        else:
            learned = [self._by_prefix(item, row) for item, row in zip(batch, ids, strict=True)]
        return [self._finish(row, mask, chat) for row, mask in zip(ids, learned, strict=True)]

    def _by_prefix(self, item: _Spelled, ids: np.ndarray) -> np.ndarray:
        """Which tokens to learn, for tokenizers without offsets: those after what text and prefix share."""
        if item.spans is None:
            return np.ones(len(ids), dtype=bool)
        mask = np.zeros(len(ids), dtype=bool)
        for start, end in item.spans:
            last = len(ids) if end == len(item.text) else self._shared(item.text[:end], ids, item.chat)
            mask[self._shared(item.text[:start], ids, item.chat) : last] = True
        return mask

    def _shared(self, prefix: str, ids: np.ndarray, chat: bool) -> int:
        found = np.asarray(self.tokenizer(prefix, add_special_tokens=not chat, verbose=False)["input_ids"])
        size = min(len(found), len(ids))
        differ = np.flatnonzero(found[:size] != ids[:size])
        return int(differ[0]) if len(differ) else size

    def _finish(self, ids: np.ndarray, learned: np.ndarray, chat: bool) -> Tokens:
        """Close with the end token unless a chat template has had its say, and cut to length."""
        end = self.tokenizer.eos_token_id
        if not chat and isinstance(end, int):
            if len(ids) == 0 or ids[-1] != end:
                ids, learned = np.append(ids, np.int32(end)), np.append(learned, True)
            learned[-1] = True
        labels = np.where(learned, ids, NO_LOSS).astype(np.int32)
        return Tokens(ids[: self.max_length], labels[: self.max_length], cut=len(ids) > self.max_length)


def _by_offset(item: _Spelled, offsets: np.ndarray) -> np.ndarray:
    """Which tokens to learn, from their (T, 2) character offsets."""
    if item.spans is None:
        return np.ones(len(offsets), dtype=bool)
    learned = np.zeros(len(item.text) + 1, dtype=np.int64)
    for start, end in item.spans:
        learned[start + 1 : end + 1] = 1
    before = np.cumsum(learned)
    start, end = offsets[:, 0], offsets[:, 1]
    # Byte-level tokenizers trim white space: a token of nothing else has start == end, just after its
    # character.
    start = np.maximum(np.minimum(start, end - 1), 0)
    return before[end] > before[start]
