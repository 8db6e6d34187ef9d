"""What the data tests share: the real tokenizer, one that trims offsets, one without any, a writer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

ASSETS = Path(__file__).parents[2] / "src" / "gradwise" / "demo" / "assets"


@pytest.fixture(scope="session")
def shared(shared: Path) -> Path:
    return shared / "data"


@pytest.fixture(scope="session")
def head_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, int], Path]:
    """Copies the first lines of a file, under the same name."""

    def copy(path: Path, lines: int) -> Path:
        copied = tmp_path_factory.mktemp("head") / path.name
        copied.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))
        return copied

    return copy


@pytest.fixture(scope="session")
def stories():
    """The real tokenizer: SentencePiece-like, with an end token and no chat template."""
    return AutoTokenizer.from_pretrained(ASSETS / "stories260K")


@pytest.fixture(scope="session")
def trimming() -> PreTrainedTokenizerFast:
    """Byte-level, trained here; offsets leave out white space, as GPT-2's do."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor = processors.ByteLevel(trim_offsets=True)
    raw.decoder = decoders.ByteLevel()
    text = (ASSETS / "plays_train.jsonl").read_text()[:100_000]
    special = ["<|eos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(text.split("\n\n"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|eos|>", clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="session")
def slow() -> ByT5Tokenizer:
    """A tokenizer without offsets; it writes its own end token."""
    return ByT5Tokenizer()


@pytest.fixture(params=["stories", "trimming", "slow"])
def tokenizer(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes records, one object to a line; strings are written as they are."""

    def write(records: list[Any], name: str = "train.jsonl") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("".join(line + "\n" for line in lines))
        return str(path)

    return write
