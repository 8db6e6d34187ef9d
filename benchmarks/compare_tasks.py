"""What `compare.py` compares: models, data, recipes, arms, budgets; and making what the recipes name."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import d3_pools
import grace_pools
import numpy as np
import small_llama
from frame import DATA, ROOT, made_whole
from small_data import COMMONSENSE, DEAL_SEED, INSTRUCTIONS, LARGEST

from gradwise.atomic import write_text
from gradwise.comparison.arms import parse_arms
from gradwise.demo import smollm2_recipe
from gradwise.recipe import Model, Recipe
from gradwise.recipe.tree import anchor_paths, merged
from gradwise.recipe.yaml_text import read_yaml
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
    folder: str = ""
    """Of the recipe, in `compare`; the task's name unless given."""
    words: dict[str, str] = field(default_factory=dict)
    """Arms as `gradwise compare` is told them, by name, where all have the recipe's learning rate; otherwise
    every arm has a file with its own."""
    fraction: float | None = None
    """Share of the pool that selections keep, where the arms' files do not say."""

    @property
    def recipe_path(self) -> Path:
        return HERE / "compare" / (self.folder or self.name) / "recipe.yaml"

    @property
    def tuning_steps(self) -> int:
        """Half as many as in the tables; as many where a small selection is gone over again and again, for
        which half as long wants twice the rate."""
        steps = read_yaml(self.recipe_path)["train"]["max_steps"]
        return steps if self.words else steps // 2

    def arm_path(self, arm: str) -> Path:
        return HERE / "compare" / self.name / "arms" / f"{arm}.yaml"

    def rate_path(self, arm: str) -> Path:
        """The file that has the learning rate of an arm."""
        return self.recipe_path if self.words else self.arm_path(arm)

    def word(self, arm: str) -> str:
        """An arm as `gradwise compare` is told it."""
        return self.words[arm] if self.words else str(self.arm_path(arm).relative_to(ROOT))

    def recipe(self, arm: str, changes: dict[str, Any]) -> Recipe:
        """The recipe of one run: the task's, an arm's, and further changes over it."""
        values = read_yaml(self.recipe_path)
        anchor_paths(values, self.recipe_path.parent)
        if self.words:
            changed = Recipe.from_dict(merged(values, changes), source=str(self.recipe_path))
            return parse_arms([self.words[arm]], changed, fraction=self.fraction)[0].recipe
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
            f"of at most {SMOLLM2_LARGEST} characters; held out: {SMOLLM2_CHECK} such problems of its test "
            "set."
        ),
    )


def prepare_smollm2(folder: Path = SMOLLM2) -> None:
    """The model and its data."""
    made_whole(folder / "data", _smollm2_data)
    smollm2_model(folder)


def smollm2_model(folder: Path = SMOLLM2) -> Path:
    """The model as safetensors, which load in a second where GGUF takes ten."""
    return made_whole(folder / "model", _unpack_smollm2)


def _unpack_smollm2(folder: Path) -> None:
    source = smollm2_recipe().model
    assert isinstance(source, Model)
    load_model(source).save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)


def _smollm2_data(folder: Path) -> None:
    train, start = _short_problems("train"), 0
    for part, count in SMOLLM2_PARTS.items():
        write_text(folder / f"{part}.jsonl", "".join(train[start : start + count]))
        start += count
    write_text(folder / "check.jsonl", "".join(_short_problems("test")[:SMOLLM2_CHECK]))


GRACE_SMOLLM2 = ROOT / "build" / "grace-smollm2"
GRACE_SMOLLM2_DIRT = grace_pools.Dirt(distinct=60, copied=6, copies=8, garbage=6)


def prepare_grace_smollm2(folder: Path = GRACE_SMOLLM2) -> None:
    """The model, and a dirty pool of short problems."""
    prepare_smollm2()
    made_whole(folder, _write_grace_smollm2)


def _write_grace_smollm2(folder: Path) -> None:
    train, check = (
        [grace_pools.told(json.loads(line), "gsm8k") for line in _short_problems(split)]
        for split in ("train", "test")
    )
    grace_pools.write(folder / "dirty.jsonl", grace_pools.dirty(train, GRACE_SMOLLM2_DIRT)[0])
    grace_pools.write(folder / "check.jsonl", check[:SMOLLM2_CHECK])


def _short_problems(split: str) -> list[str]:
    """Short problems of a split in one fixed random order, as JSON lines."""
    lines = (DATA / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    mixed = [lines[place] for place in np.random.default_rng(DEAL_SEED).permutation(len(lines))]
    return [line for line in mixed if sum(map(len, json.loads(line).values())) <= SMOLLM2_LARGEST]


# ---- GRACE -------------------------------------------------------------------------------------------------

GRACE = "benchmarks/compare/grace"
GRACE_WORDS = {
    "random": "random",
    "full": "full",
    "grace": "grace",
    "grace_half": f"grace_half=grace+{GRACE}/half.yaml",
    "grace_static": f"grace_static=grace+{GRACE}/static.yaml",
    "grace_full_refresh": f"grace_full_refresh=grace+{GRACE}/full_refresh.yaml",
    "loss_top": "loss_top",
    "length_top": "length_top",
    "grad_norm_top": "grad_norm_top",
    "k_center": "k_center",
}
FEW = ("random", "full", "grace", "grace_half")
GRACE_LLAMA_WORDS = {arm: GRACE_WORDS[arm] for arm in ("random", "full", "grace")} | {
    "grace_proxy": f"grace_proxy=grace+{GRACE}/proxy.yaml",
}
IMPORTANCE = ("loss", "alignment", "norm", "head_norm", "coverage")
TRADE_OFFS = ("alignment_80", "alignment_90", "head_length_90")
"""Of the kinds that do not buy garbage, how much coverage to weigh them against."""
GRACE_TOLD = {
    "clean": "1,200 records of GSM8K, Dolly and commonsense, none twice",
    "dirty": (
        "1,200 records, of which 600 of GSM8K, Dolly and commonsense are distinct, 480 are copies of 24 of "
        "them, 60 are random characters and 60 are snippets of two words"
    ),
}


def _grace(
    pool: str,
    fraction: float,
    arms: tuple[str, ...],
    *,
    tuned: bool = False,
    seeds: int = 5,
) -> Task:
    """stories260K on a pool of `grace_pools.py`; all arms have the rate that is best for `random`."""
    return Task(
        name=f"grace_{pool}_{fraction * 100:02.0f}",
        folder=f"grace_{pool}",
        prepare=grace_pools.made,
        first_rates={"random": (3e-4, 1e-3)} if tuned else {},
        check_rates={"mixed": str(grace_pools.FOLDER / "rates.jsonl")},
        comparisons=_both_budgets(arms),
        seeds=seeds,
        told=f"stories260K, fine-tuned on {GRACE_TOLD[pool]}; held out: 180 other records, clean.",
        words={arm: GRACE_WORDS[arm] for arm in arms},
        fraction=fraction,
    )


def _grace_llama() -> Task:
    return Task(
        name="grace_llama",
        prepare=lambda: (grace_pools.made(), small_llama.made()),
        first_rates={},
        check_rates={},
        comparisons=(Comparison("time", (tuple(GRACE_LLAMA_WORDS),), ("random", "full")),),
        seeds=5,
        told=(
            f"The small Llama (8.9 M parameters), fine-tuned on {GRACE_TOLD['dirty']}; held out: 180 other "
            "records, clean. `grace_proxy` measures with stories260K in the model's place."
        ),
        words=GRACE_LLAMA_WORDS,
        fraction=0.3,
    )


def _grace_smollm2() -> Task:
    arms = ("random", "full", "grace_proxy")
    dirt = GRACE_SMOLLM2_DIRT
    return Task(
        name="grace_smollm2",
        prepare=prepare_grace_smollm2,
        first_rates={},
        check_rates={},
        comparisons=(Comparison("time", (arms,), ("random", "full")),),
        seeds=3,
        told=(
            f"SmolLM2-135M-Instruct, fine-tuned on {dirt.distinct} short problems of GSM8K's training set, "
            f"{dirt.copied * dirt.copies} copies of {dirt.copied} of them, {dirt.garbage} records of random "
            f"characters and {dirt.garbage} snippets of two words; held out: {SMOLLM2_CHECK} short problems "
            "of its test set. `grace_proxy` measures with stories260K in the model's place."
        ),
        words={arm: {**GRACE_WORDS, **GRACE_LLAMA_WORDS}[arm] for arm in arms},
        fraction=0.25,
    )


def _grace_importance() -> Task:
    """What is worth most: all of the pool looked at, once, so that importance alone makes the difference."""
    words = {kind: f"{kind}=grace+{GRACE}/{kind}.yaml" for kind in (*IMPORTANCE, *TRADE_OFFS)}
    return Task(
        name="grace_importance",
        folder="grace_dirty",
        prepare=grace_pools.made,
        first_rates={},
        check_rates={},
        comparisons=(Comparison("steps", (("random", *IMPORTANCE), TRADE_OFFS), ("random", "coverage")),),
        seeds=5,
        told=f"stories260K, fine-tuned on {GRACE_TOLD['dirty']}; held out: 180 other records, clean.",
        words={"random": "random", **words},
        fraction=0.1,
    )


# ---- D3 ----------------------------------------------------------------------------------------------------

D3 = "benchmarks/compare/d3"
D3_WORDS = {
    "random": "random=shuffle",
    "interleave": "interleave",
    "herding": "herding=order.herding",
    "d3": "d3",
    "d3_domains": f"d3_domains=d3+{D3}/domains.yaml",
    "d3_mixed": f"d3_mixed=d3+{D3}/mixed.yaml",
    "given": "given",
    "easy_first": "easy_first",
    "influence": "influence",
    "d3_first_order": f"d3_first_order=d3+{D3}/first_order.yaml",
    "d3_lookahead": f"d3_lookahead=d3+{D3}/lookahead.yaml",
    "d3_batches": f"d3_batches=d3+{D3}/batches.yaml",
    "d3_dear": f"d3_dear=d3+{D3}/dear.yaml",
}
D3_FEW = ("random", "interleave", "d3")
D3_FIRST = ("random", "interleave", "d3", "d3_domains")
"""Run before the others, so that a stopped benchmark has all seeds of these."""
D3_REST = tuple(arm for arm in D3_WORDS if arm not in D3_FIRST)


def _d3(name: str, prepare: Callable[[], Any], told: str, *rounds: tuple[str, ...], seeds: int = 5) -> Task:
    """One pass over the same data in every arm; all have the recipe's learning rate."""
    return Task(
        name=f"d3_{name}",
        prepare=prepare,
        first_rates={},
        check_rates={},
        comparisons=(Comparison("steps", rounds, ("random", "interleave")),),
        seeds=seeds,
        told=f"{told} Every arm sees each record once.",
        words={arm: D3_WORDS[arm] for arms in rounds for arm in arms},
    )


def _d3_pretrain() -> Task:
    told = "The small Llama (8.9 M parameters), from random weights on 800 texts of four domains."
    return _d3("pretrain", d3_pools.pretrain, told, D3_FIRST, D3_REST)


def _d3_tune() -> Task:
    told = "stories260K, fine-tuned on 576 records of GSM8K, Dolly and commonsense; held out: 180 others."
    return _d3("tune", d3_pools.tune, told, D3_FIRST, D3_REST)


def _d3_smollm2() -> Task:
    told = "SmolLM2-135M-Instruct, fine-tuned on 96 short records of GSM8K, Dolly and commonsense."
    return _d3("smollm2", lambda: (prepare_smollm2(), d3_pools.smollm2()), told, D3_FEW, seeds=3)


TASKS: dict[str, Callable[[], Task]] = {
    "small_llama": _small_llama,
    "smollm2": _smollm2,
    "grace_importance": _grace_importance,
    "grace_clean_10": lambda: _grace("clean", 0.1, tuple(GRACE_WORDS), tuned=True, seeds=3),
    "grace_dirty_05": lambda: _grace("dirty", 0.05, FEW),
    "grace_dirty_10": lambda: _grace("dirty", 0.1, tuple(GRACE_WORDS), tuned=True),
    "grace_dirty_30": lambda: _grace("dirty", 0.3, FEW),
    "grace_llama": _grace_llama,
    "grace_smollm2": _grace_smollm2,
    "d3_pretrain": _d3_pretrain,
    "d3_tune": _d3_tune,
    "d3_smollm2": _d3_smollm2,
}
