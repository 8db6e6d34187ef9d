"""What `compare.py` compares: models, data, recipes, arms, budgets; and making what the recipes name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import small_llama
from frame import DATA, ROOT
from small_data import COMMONSENSE, DEAL_SEED, INSTRUCTIONS, LARGEST

from gradwise.atomic import sync_files, write_text
from gradwise.demo import smollm2_recipe
from gradwise.recipe import Model, Recipe
from gradwise.recipe.tree import anchor_paths, merged, read_yaml
from gradwise.run.model import load_model, load_tokenizer

HERE = Path(__file__).resolve().parent
ARMS = ("random", "full", "loss_top", "length_top", "easy_first", "lisa", "grass", "lora")
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Learning rates to choose from, half a decade apart."""

SMOLLM2 = ROOT / "build" / "smollm2"
SMOLLM2_PARTS = {"rates": 16, "tune": 80}
SMOLLM2_CHECK = 24
SMOLLM2_LARGEST = 260
"""Characters of a problem with its answer; some 90 tokens."""


@dataclass(frozen=True)
class Comparison:
    """One table: a folder of `gradwise compare`."""

    budget: str
    rounds: tuple[tuple[str, ...], ...]
    """Arms that are run together, one call after the other in the same folder; a call keeps the earlier
    arms."""
    references: tuple[str, ...]
    """Arms that the others are compared with; `gradwise compare` is given the first."""

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(arm for together in self.rounds for arm in together)


@dataclass(frozen=True)
class Task:
    """A model with its data, and what is asked of them."""

    name: str
    prepare: Callable[[], Any]
    first_rates: dict[str, tuple[float, ...]]
    """The rates each arm tries before any others, neighbours in `RATES`."""
    check_rates: dict[str, str]
    """Files the learning rates are judged by, by domain."""
    comparisons: tuple[Comparison, ...]
    seeds: int
    told: str
    """Model and data in a sentence, for the page."""

    @property
    def recipe_path(self) -> Path:
        return HERE / "compare" / self.name / "recipe.yaml"

    @property
    def tuning_steps(self) -> int:
        """Half as many as in the tables."""
        return read_yaml(self.recipe_path)["train"]["max_steps"] // 2

    def arm_path(self, arm: str) -> Path:
        return HERE / "compare" / self.name / "arms" / f"{arm}.yaml"

    def recipe(self, arm: str, changes: dict[str, Any]) -> Recipe:
        """The recipe of one run: the task's, an arm's, and further changes over it."""
        values = read_yaml(self.recipe_path)
        anchor_paths(values, self.recipe_path.parent)
        for over in (read_yaml(self.arm_path(arm)), changes):
            values = merged(values, over)
        return Recipe.from_dict(values, source=str(self.arm_path(arm)))


def task(name: str) -> Task:
    """`small_llama` (9 M parameters, mixed pool) or `smollm2` (135 M parameters, GSM8K)."""
    return TASKS[name]()


def _both_budgets(*rounds: tuple[str, ...]) -> tuple[Comparison, ...]:
    return tuple(Comparison(budget, rounds, ("random", "full")) for budget in ("steps", "time"))


# ---- the small Llama ---------------------------------------------------------------------------------------


def _small_llama() -> Task:
    heavy = dict.fromkeys(("random", "full", "loss_top", "length_top", "easy_first"), (1e-3, 3e-3, 1e-2))
    light = dict.fromkeys(("lisa", "grass", "lora"), (3e-3, 1e-2, 3e-2))
    data = small_llama.FOLDER / "data" / "rates"
    return Task(
        name="small_llama",
        prepare=small_llama.made,
        first_rates={**heavy, **light},
        check_rates={domain: str(data / f"{domain}.jsonl") for domain in INSTRUCTIONS},
        comparisons=_both_budgets(ARMS),
        seeds=5,
        told=(
            "The small Llama (`benchmarks/small_llama.py`: 8.9 M parameters, six blocks), fine-tuned on "
            f"{sum(parts.tune for parts in INSTRUCTIONS.values())} records of GSM8K, Dolly and commonsense "
            f"({', '.join(COMMONSENSE)}) of at most {LARGEST} characters; held out: "
            f"{sum(parts.check for parts in INSTRUCTIONS.values())} others."
        ),
    )


# ---- SmolLM2 -----------------------------------------------------------------------------------------------


def _smollm2() -> Task:
    heavy = dict.fromkeys(("random", "full", "loss_top", "length_top", "easy_first"), (3e-4, 1e-3))
    light = dict.fromkeys(("lisa", "grass", "lora"), (1e-3, 3e-3))
    return Task(
        name="smollm2",
        prepare=prepare_smollm2,
        first_rates={**heavy, **light},
        check_rates={"gsm8k": str(SMOLLM2 / "data" / "rates.jsonl")},
        comparisons=_both_budgets(
            ("random", "full", "loss_top"), ("length_top", "lora", "grass"), ("lisa", "easy_first")
        ),
        seeds=3,
        told=(
            f"SmolLM2-135M-Instruct, fine-tuned on {SMOLLM2_PARTS['tune']} problems of GSM8K's training set "
            f"of at most {SMOLLM2_LARGEST} characters; held out: {SMOLLM2_CHECK} such problems of its "
            "test set."
        ),
    )


def prepare_smollm2(folder: Path = SMOLLM2) -> None:
    """The model as safetensors, which load in a second where GGUF takes ten, and its data."""
    if not (folder / "data").is_dir():
        _smollm2_data(folder)
    if not (folder / "model").is_dir():
        source = smollm2_recipe().model
        assert isinstance(source, Model)
        partial = folder / ".model"
        shutil.rmtree(partial, ignore_errors=True)
        load_model(source).save_pretrained(partial)
        load_tokenizer(source).save_pretrained(partial)
        sync_files(partial)
        partial.rename(folder / "model")


def _smollm2_data(folder: Path) -> None:
    partial, start = folder / ".data", 0
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    train = _short_problems("train")
    for part, count in SMOLLM2_PARTS.items():
        write_text(partial / f"{part}.jsonl", "".join(train[start : start + count]))
        start += count
    write_text(partial / "check.jsonl", "".join(_short_problems("test")[:SMOLLM2_CHECK]))
    partial.rename(folder / "data")


def _short_problems(split: str) -> list[str]:
    """Short problems of a split in one fixed random order, as JSON lines."""
    lines = (DATA / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    mixed = [lines[place] for place in np.random.default_rng(DEAL_SEED).permutation(len(lines))]
    return [line for line in mixed if sum(map(len, json.loads(line).values())) <= SMOLLM2_LARGEST]


TASKS: dict[str, Callable[[], Task]] = {"small_llama": _small_llama, "smollm2": _smollm2}
