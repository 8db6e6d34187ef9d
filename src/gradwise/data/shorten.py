"""Tokenise no more of a long text than is kept: a start that has the same first tokens as the whole.

Why a start can stand for the whole: let no token of the vocabulary have more than `reach` characters. The
tokens of the whole text then end somewhere among the last `reach` characters of the start, say at q, and the
tokens before q are those of the text up to q alone: a merge of byte-pair encoding across q would have lasted,
and the best segmentation of a unigram model goes through q. So where the texts up to every such q agree on
their first tokens, the whole text begins with them too.
"""

from collections.abc import Callable, Sequence
from typing import Any

Encode = Callable[[list[str]], Sequence[Any]]
"""Gives the tokens of each text of a batch."""

_CHARACTERS_PER_TOKEN = 8
_SPARE = 16  # tokens beyond those compared: special ones may stand at the end


def start_of(text: str, count: int, reach: int, encode: Encode) -> str:
    """A start of `text` with the same first `count` tokens, or all of it where that is no more work.

    Args:
        text: any text.
        count: how many tokens must be the same.
        reach: characters of the longest token.
        encode: tokenises a batch.
    """
    size = _CHARACTERS_PER_TOKEN * count + reach
    while size * (reach + 1) < len(text):
        start = text[:size]
        (tokens,) = encode([start])
        if len(tokens) >= count + _SPARE:
            ends = encode([start[: size - back] for back in range(1, reach)])
            if all(list(end[:count]) == list(tokens[:count]) for end in ends):
                return start
        size *= 2
    return text
