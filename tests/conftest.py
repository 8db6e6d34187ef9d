"""What all tests share. The suite runs offline, with one thread per process: xdist brings the second core."""

import os

os.environ.update(
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUBLAS_WORKSPACE_CONFIG=":4096:8"
)

import copy
import gc
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainingArguments

from gradwise import Data, Source

torch.set_num_threads(1)
# No deadlines: the machine is shared. The same examples each time: a failure must be one that others see too.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests skip themselves on a machine without one. The slow tests come first, so that short ones fill
    both processes up to the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def some(values: Iterable[Any], every: int = 2) -> list[Any]:
    """Parameters of a test: each `every`-th value in the ordinary suite, all in the exhaustive one."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=[pytest.mark.exhaustive])
        if number % every
        else value
        for number, value in enumerate(values)
    ]


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> None:
    """`Trainer.train` calls `gc.collect`, which would take half a second to traverse all imported modules and
    test items; frozen, they are left out."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data beside the repository; tests that need them are skipped where they are missing."""
    if not (ROOT.parent / "shared").is_dir():
        pytest.skip("needs the reference data in ../shared")
    return ROOT.parent / "shared"


@pytest.fixture(scope="session")
def stories() -> Path:
    """A real language model of 260 thousand parameters, five layers, with its tokenizer."""
    return ROOT / "src" / "gradwise" / "demo" / "assets" / "stories260K"


@pytest.fixture(scope="session")
def tokenizer(stories: Path) -> Any:
    return AutoTokenizer.from_pretrained(stories)


@pytest.fixture(scope="session")
def _story_model(stories: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(stories)


@pytest.fixture
def story_model(_story_model: Any) -> Callable[[], Any]:
    """Makes a new copy of the same pretrained model at each call."""
    return lambda: copy.deepcopy(_story_model)


@pytest.fixture(scope="session")
def speeches(tokenizer: Any) -> Dataset:
    """80 real samples of at most 32 tokens, in three domains."""
    path = ROOT / "src" / "gradwise" / "demo" / "assets" / "plays_train.jsonl"
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()[:80]]
    rows = [tokenizer(text)["input_ids"][:32] for text in texts]
    return Dataset.from_list(
        [{"input_ids": ids, "labels": ids, "domain": f"d{number % 3}"} for number, ids in enumerate(rows)]
    )


@pytest.fixture
def few_speeches(tmp_path: Path, stories: Path) -> Callable[..., Data]:
    """Makes the `data` of a recipe, with changes: twenty real speeches to train on, eight to validate on."""
    lines = (stories.parent / "plays_train.jsonl").read_text().splitlines()[:28]
    train, valid = (tmp_path / f"{name}.jsonl" for name in ("train", "valid"))
    train.write_text("\n".join(lines[:20]) + "\n")
    valid.write_text("\n".join(lines[20:]) + "\n")
    sources: dict[str, Any] = {"train": Source(path=str(train)), "validation": Source(path=str(valid))}
    return lambda **changes: Data(**(sources | changes))


@pytest.fixture
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    """Makes a random Llama, by default with four layers of 16 dimensions; the same weights each time."""

    def make(layers: int = 4, **changes: Any) -> LlamaForCausalLM:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "vocab_size": 64,
        }
        given: Any = sizes | {"num_hidden_layers": layers, "max_position_embeddings": 64} | changes
        config = LlamaConfig(**given)
        return LlamaForCausalLM(config)

    return make


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """Makes TrainingArguments for short, quiet runs below the test's own folder."""

    return lambda name="out", **changes: short_run(tmp_path / name, **changes)


def short_run(folder: Path, **changes: Any) -> TrainingArguments:
    """TrainingArguments for a short, quiet run on the CPU."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), **(defaults | changes))


def numbered_stories(folder: Path) -> Data:
    """A pool of 24 texts, with 8 target and 4 validation texts, in files of a folder."""
    sources: dict[str, Any] = {}
    for part, count in (("train", 24), ("target", 8), ("validation", 4)):
        path = folder / f"{part}.jsonl"
        texts = [f"{'once upon a time ' * (1 + n % 3)}{part} {n}" for n in range(count)]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        sources[part] = Source(path=str(path))
    return Data(**sources, max_length=32)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Bit for bit."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
