"""From samples to `input_ids` and `labels`.

A text is tokenised whole, never prompt and completion apart: the tokens are then those that the model meets
in use. A token is learned if any of its characters is, so one that straddles the border belongs to the
completion. Special tokens at the start and the end are there once, whoever writes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from gradwise.data.chat import ChatTemplate, Span
from gradwise.data.formats import Chat, Pair, Sample, Text
from gradwise.data.records import UnreadableError, reason

NO_LOSS = -100
"""The label of tokens that do not count, everywhere in transformers."""

_TAIL = 3  # learned tokens at the end among which an end token is looked for; a line feed may follow it
_LONG = 16  # characters to a token, below which a text is tokenised whole without further thought

_CHARACTERS_PER_TOKEN = 8
_SPARE = 16  # tokens beyond those compared: special ones may stand at the end

Encode = Callable[[list[str]], Sequence[Any]]
"""Gives the tokens of each text of a batch."""


class Tokens(NamedTuple):
    """One tokenised sample: (T,) int32 ids, and labels that are the ids or, where nothing is learned, -100.
    `cut` samples lost their end to `max_length`; `ended` ones end with a special token, or with the cut."""

    ids: np.ndarray
    labels: np.ndarray
    cut: bool
    ended: bool = True

    @property
    def learned(self) -> int:
        """How many tokens the model is asked to predict."""
        # Nothing comes before the first token, so that it is never predicted, whatever its label.
        return int(np.count_nonzero(self.labels[1:] != NO_LOSS))


class _Spelled(NamedTuple):
    text: str
    spans: list[Span] | None  # None: all of it
    chat: bool  # the template has written the special tokens


class _Encoded(NamedTuple):
    ids: np.ndarray
    offsets: np.ndarray | None  # (T, 2) characters


@dataclass(frozen=True)
class Tokeniser:
    """Settings of `gradwise.data.settings.Data`, bound to a tokenizer. `chat_template` is Jinja text here."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    loss_on: str = "completion"
    template: str = "plain"
    chat_template: str | None = None

    def __call__(self, samples: Sequence[Sample]) -> list[Tokens | UnreadableError]:
        """Tokenise a batch; where a sample cannot be tokenised, the reason stands in its place. Raises
        DataError if the chat template works for no sample."""
        spelled = [self._try_to_spell(sample) for sample in samples]
        done: dict[int, Tokens | UnreadableError] = {
            i: item for i, item in enumerate(spelled) if isinstance(item, UnreadableError)
        }
        for chat in (False, True):
            batch = {i: x for i, x in enumerate(spelled) if isinstance(x, _Spelled) and x.chat == chat}
            done |= zip(batch, self._try_to_tokenise(list(batch.values()), chat), strict=True)
        return [done[i] for i in range(len(spelled))]

    @cached_property
    def chat(self) -> ChatTemplate:
        """Writes the conversations."""
        return ChatTemplate(self.tokenizer, self.chat_template)

    @cached_property
    def _reach(self) -> int:
        """Characters of the longest token, twice over since normalizing may leave some out."""
        return 2 * max(map(len, self.tokenizer.get_vocab()), default=0) + 2

    @cached_property
    def _shortens(self) -> bool:
        """Whether tokens depend only on what is near them; WordPiece looks for the end of a word first."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return type(getattr(backend, "model", None)).__name__ != "WordPiece"

    @cached_property
    def _adds_end(self) -> bool:
        return list(self._encode(["a"], chat=False)[0].ids[-1:]) == [self._end]

    @cached_property
    def _ends(self) -> np.ndarray:
        """Ids of the tokens that can end a turn."""
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        others = (self.tokenizer.bos_token_id, self.tokenizer.unk_token_id)
        return np.array([token for token in special if token == self._end or token not in others], np.int64)

    @cached_property
    def _end(self) -> int | None:
        end = self.tokenizer.eos_token_id
        return end if isinstance(end, int) else None

    def _try_to_spell(self, sample: Sample) -> _Spelled | UnreadableError:
        try:
            return self._spell(sample)
        except UnreadableError as problem:
            return problem
        except UnicodeEncodeError:
            return UnreadableError("its text holds half a surrogate pair, which is no character")

    def _spell(self, sample: Sample) -> _Spelled:
        everything = self.loss_on == "all"
        if isinstance(sample, Pair) and self.template == "chat":
            turns = [
                {"role": "user", "content": sample.ask},
                {"role": "assistant", "content": sample.completion},
            ]
            sample = Chat(turns)
        if isinstance(sample, Chat):
            return self._spell_chat(sample, everything)
        if isinstance(sample, Text):
            return _Spelled(self._beginning(sample.text, chat=False), None, chat=False)
        text = self._beginning(sample.prompt + sample.completion, chat=False)
        span = (min(len(sample.prompt), len(text)), len(text))
        return _Spelled(text, None if everything else [span], chat=False)

    def _spell_chat(self, sample: Chat, everything: bool) -> _Spelled:
        written = self.chat.write(sample)
        text = self._beginning(written.text, chat=True)
        if not everything:
            spans = self.chat.spans(sample, written, len(text))
            return _Spelled(text, [(min(a, len(text)), min(b, len(text))) for a, b in spans], chat=True)
        if sample.unlearned:
            raise UnreadableError(
                f"message {min(sample.unlearned) + 1} says that it is not learned, but data.loss_on is `all`"
            )
        return _Spelled(text, None, chat=True)

    def _beginning(self, text: str, chat: bool) -> str:
        """As much of a text as its first `max_length` tokens need, and one more to know that it is cut."""
        text.encode()  # half a surrogate pair would be refused by tokenizers with less clear words
        if len(text) < _LONG * self.max_length or not self._shortens:
            return text
        encode = lambda batch: [encoded.ids for encoded in self._encode(batch, chat)]  # noqa: E731
        return start_of(text, self.max_length + 1, self._reach, encode)

    def _try_to_tokenise(self, batch: list[_Spelled], chat: bool) -> list[Tokens | UnreadableError]:
        if not batch:
            return []
        try:
            return list(self._tokens(batch, chat))
        except Exception as error:  # a word that a tokenizer without an unknown token does not know
            if len(batch) == 1:
                return [UnreadableError(f"the tokenizer refuses it ({reason(error)})")]
            # One by one, so that a single text that the tokenizer refuses does not take a batch with it.
            return [outcome for item in batch for outcome in self._try_to_tokenise([item], chat)]

    def _tokens(self, batch: list[_Spelled], chat: bool) -> list[Tokens]:
        """Tokenise texts that all want, or all do not want, the tokenizer's special tokens."""
        # Only fast tokenizers know which characters a token covers; for others prefixes are tokenised as
        # well.
        by_offset = bool(self.tokenizer.is_fast) and any(item.spans is not None for item in batch)
        done = []
        for item, encoded in zip(batch, self._encode([x.text for x in batch], chat, by_offset), strict=True):
            if encoded.offsets is not None:
                learned = _by_offset(item, encoded.offsets)
            else:
                learned = self._by_prefix(item, encoded.ids)
            done.append(self._finish(encoded.ids, learned, chat))
        return done

    def _encode(self, texts: list[str], chat: bool, offsets: bool = False) -> list[_Encoded]:
        # Not verbose, or transformers warns of each text longer than the model's positions, which is cut
        # later.
        encodings = self.tokenizer(
            texts,
            add_special_tokens=not chat,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            verbose=False,
        )
        ids = [np.asarray(row, dtype=np.int32) for row in encodings["input_ids"]]
        places = [None] * len(ids)
        if offsets:
            places = [np.asarray(row, dtype=np.int64).reshape(-1, 2) for row in encodings["offset_mapping"]]
        return [self._begun_once(_Encoded(row, place)) for row, place in zip(ids, places, strict=True)]

    def _begun_once(self, encoded: _Encoded) -> _Encoded:
        """Keep only the last of several begin tokens, which text, template and tokenizer may each add."""
        others = np.flatnonzero(encoded.ids != self.tokenizer.bos_token_id)
        extra = (int(others[0]) if len(others) else len(encoded.ids)) - 1
        if extra < 1:
            return encoded
        return _Encoded(encoded.ids[extra:], None if encoded.offsets is None else encoded.offsets[extra:])

    def _by_prefix(self, item: _Spelled, ids: np.ndarray) -> np.ndarray:
        """Which tokens to learn, for tokenizers without offsets: those after what text and prefix share."""
        if item.spans is None:
            return np.ones(len(ids), dtype=bool)
        mask = np.zeros(len(ids), dtype=bool)
        for start, end in item.spans:
            # What comes after the text's end, such as an end token, belongs to the completion.
            last = len(ids) if end == len(item.text) else self._shared(item.text[:end], ids, item.chat)
            mask[self._shared(item.text[:start], ids, item.chat) : last] = True
        return mask

    def _shared(self, prefix: str, ids: np.ndarray, chat: bool) -> int:
        prefix_ids = self._encode([prefix], chat)[0].ids
        size = min(len(prefix_ids), len(ids))
        differ = np.flatnonzero(prefix_ids[:size] != ids[:size])
        return int(differ[0]) if len(differ) else size

    def _finish(self, ids: np.ndarray, learned: np.ndarray, chat: bool) -> Tokens:
        """Close with one end token unless a chat template was applied, and cut to length."""
        if not chat and self._end is not None:
            # The text ends with an end token that the data wrote, and the tokenizer has added another.
            if len(ids) > 1 and ids[-1] == ids[-2] == self._end and self._adds_end:
                ids, learned = ids[:-1], learned[:-1]
            if len(ids) == 0 or ids[-1] != self._end:
                ids, learned = np.append(ids, np.int32(self._end)), np.append(learned, True)
            # The end token is always learned: a model that never sees it as a target does not stop.
            learned[-1] = True
        cut = len(ids) > self.max_length
        tail = ids[learned][-_TAIL:]
        labels = np.where(learned, ids, NO_LOSS).astype(np.int32)
        ended = cut or bool(np.isin(tail, self._ends).any())
        return Tokens(ids[: self.max_length], labels[: self.max_length], cut, ended)


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


def start_of(text: str, count: int, reach: int, encode: Encode) -> str:
    """A start of `text` with the same first `count` tokens, or all of it where that is no more work.

    Why a start can stand for the whole: let no token of the vocabulary have more than `reach` characters. The
    tokens of the whole text then end somewhere among the last `reach` characters of the start, say at q, and
    the tokens before q are those of the text up to q alone: a merge of byte-pair encoding across q would have
    lasted, and the best segmentation of a unigram model goes through q. So where the texts up to every such q
    agree on their first tokens, the whole text begins with them too.
    """
    size = _CHARACTERS_PER_TOKEN * count + reach
    while size * (reach + 1) < len(text):
        start = text[:size]
        (tokens,) = encode([start])
        if len(tokens) >= count + _SPARE:
            # One text for each place at which the tokens of the whole can be divided.
            ends = encode([start[: size - back] for back in range(1, reach)])
            if all(list(end[:count]) == list(tokens[:count]) for end in ends):
                return start
        # The start did not hold as many tokens as are kept, or its end changed them: twice as much is tried.
        size *= 2
    return text
