"""Long texts: the tokens that are kept are those of the whole text, although only its start is tokenised."""

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gradwise.data import tokenise as module
from gradwise.data.formats import Chat, Pair, Text
from gradwise.data.tokenise import Tokeniser, Tokens

from .templates import MARKED, UNMARKED

SPECIAL = ["<unk>", "<s>", "</s>"]


def wrapped(raw: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module")
def unigram(shared) -> PreTrainedTokenizerFast:
    """Its best segmentation depends on the whole text, which it does not split into words."""
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.Replace(" ", "\u2581")
    lines = (shared / "text" / "tinyshakespeare.txt").read_text()[:10_000].split("\n")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    raw.train_from_iterator(lines, trainer)
    return wrapped(raw)


@pytest.fixture(scope="module")
def thirds() -> PreTrainedTokenizerFast:
    """`aaaa...` becomes threes and one or two more, whose place depends on the end of the text."""
    pieces = [*((token, 0.0) for token in SPECIAL), ("a", -10.0), ("aaa", -6.0), ("b", -3.0)]
    return wrapped(Tokenizer(models.Unigram(pieces, 0)))


@pytest.fixture(scope="module")
def word_pieces(shared) -> PreTrainedTokenizerFast:
    """A word is unknown as a whole if it is too long, or if its end is unknown."""
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))  # type: ignore[call-arg]
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    lines = (shared / "text" / "tinyshakespeare.txt").read_text()[:60_000].split("\n")
    raw.train_from_iterator(
        lines, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    )
    return wrapped(raw)


def long_text(shake: str, seed: int) -> str:
    """A text of some 30,000 characters: prose, one letter, hexadecimal digits, spaces, rare characters."""
    draw = random.Random(seed)
    kinds = [
        lambda n: shake[(start := draw.randrange(50_000)) : start + n],
        lambda n: draw.choice("a .\n\u6f22") * n,
        lambda n: "".join(draw.choices("0123456789abcdef", k=n)),
        lambda n: "".join(draw.choices(" \n\t", k=n)),
        lambda n: "".join(draw.choices("ab\u00e9\u0301\ufb01\u200b\U0001f600", k=n)),
        lambda n: draw.choice(["<s>", "</s>", " <s> "]) * (n // 100 + 1),
    ]
    several = "".join(draw.choice(kinds)(draw.randrange(1, 500)) for _ in range(20))
    return (several if draw.random() < 0.7 else several[:70]) * (30_000 // len(several) + 1)


@pytest.mark.filterwarnings("ignore:This sequence already has")
@pytest.mark.parametrize("name", ["stories", "trimming", "slow", "unigram", "thirds", "word_pieces"])
def test_the_kept_tokens_are_those_of_the_whole_text(name, request, shared, monkeypatch):
    tokenizer = request.getfixturevalue(name)
    shake = (shared / "text" / "tinyshakespeare.txt").read_text()
    monkeypatch.setattr(module, "_LONG", 0)
    shortened = 0
    for seed in range(6):
        text = long_text(shake, seed)
        samples = [Text(text), Pair(text[:40], text, text[:40])]
        tokenise = Tokeniser(tokenizer, 2 + 3 * seed)
        shortened += len(tokenise._beginning(text, chat=False)) < len(text)
        short = tokenise(samples)
        with monkeypatch.context() as patch:
            patch.setattr(module, "start_of", lambda text, *_: text)
            whole = Tokeniser(tokenizer, 2 + 3 * seed)(samples)
        for found, right in zip(short, whole, strict=True):
            assert isinstance(found, Tokens)
            assert isinstance(right, Tokens)
            assert np.array_equal(found.ids, right.ids)
            assert np.array_equal(found.labels, right.labels)
            assert found.cut == right.cut
    assert shortened > 0 or name == "word_pieces"


def test_a_huge_record_costs_no_more_than_what_is_kept(stories, monkeypatch):
    """Megabytes as text, pair and conversation: cut and counted, and little of them tokenised."""
    seen = []
    encode = Tokeniser._encode
    monkeypatch.setattr(
        Tokeniser, "_encode", lambda self, texts, *rest: seen.extend(texts) or encode(self, texts, *rest)
    )
    huge = "no end in sight " * 300_000
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}] * 10_000
    samples = [Text(huge), Pair("a ", huge, "a "), Chat([turns[0], {"role": "assistant", "content": huge}])]
    samples.append(Chat(turns))
    for template in (MARKED, UNMARKED):
        found = Tokeniser(stories, 64, chat_template=template)(samples)
        assert [isinstance(item, Tokens) and (item.cut, len(item.ids)) for item in found] == [(True, 64)] * 4
        labels = [token for token in found[3].labels.tolist() if token >= 0]  # type: ignore[union-attr]
        assert stories.decode(labels).startswith("ho<|end|>\n")
    assert sum(map(len, seen)) < 3_000_000
