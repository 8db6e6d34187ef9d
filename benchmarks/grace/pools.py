"""The pools that GRACE selects from: 1,200 real records, once clean, once with copies and garbage.

The clean pool is GSM8K, Dolly and commonsense without repeats. The dirty one has half of those records; 24 of
them are repeated 20 times (40 % of the pool), and 10 % is garbage: random characters as question and answer,
and snippets of a few words. Every record is a prompt, a completion and a domain; garbage has the domains of
the other records, so that no domain identifies it. Held-out records come from the same three sets, share no
question with either pool, and are clean.
"""

import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import small_llama, smollm2
from benchmarks.common.folders import BUILD, build_folder
from benchmarks.common.records import (
    DEAL_SEED,
    Record,
    as_prompt,
    held_out_records,
    shuffled,
    unused_records,
    write_jsonl,
)
from gradwise.atomic import write_text
from gradwise.recipe import Recipe

FOLDER = BUILD / "grace"
SMOLLM2 = BUILD / "grace-smollm2"
CLEAN = {"gsm8k": 500, "dolly": 180, "commonsense": 520}


@dataclass(frozen=True)
class Dirt:
    """Composition of a dirty pool."""

    distinct: int
    copied: int
    """Records that are repeated."""
    copies: int
    """Repeats of each of them, besides the original."""
    garbage: int
    """Records of each of the two kinds of garbage."""


DIRT = Dirt(distinct=600, copied=24, copies=20, garbage=60)
SMOLLM2_DIRT = Dirt(distinct=60, copied=6, copies=8, garbage=6)

KINDS = ("distinct", "copy", "random characters", "snippet")
"""Kinds of records in the dirty pool, as `kinds.json` numbers them."""


def build(folder: Path = FOLDER) -> Path:
    """The folder with `clean.jsonl`, `dirty.jsonl`, `kinds.json`, `check.jsonl`, `rates.jsonl`."""
    return build_folder(folder, _write_all)


def build_smollm2(folder: Path = SMOLLM2) -> None:
    """SmolLM2 and a dirty pool of short problems."""
    smollm2.build()
    build_folder(folder, _write_smollm2)


def kinds(folder: Path = FOLDER) -> Any:
    """(1200,) the kind of each line of the dirty pool, as an index into `KINDS`."""
    return np.array(json.loads((folder / "kinds.json").read_text()))


def clean_recipe(steps: int, select: dict[str, Any], seed: int, **train: Any) -> Recipe:
    """The small Llama on the clean pool; `select` and further keys of `train` as in a recipe."""
    pool = build()
    return Recipe.from_dict(
        {
            "model": {"name": str(small_llama.build() / "annealed")},
            "data": {"train": str(pool / "clean.jsonl"), "validation": str(pool / "check.jsonl"),
                     "max_length": 192},
            "train": {
                "max_steps": steps, "batch_size": 6, "per_device_train_batch_size": 6, "learning_rate": 3e-3,
                "schedule": "cosine", "warmup_steps": 0.1, "eval_strategy": "no", "eval_on_start": False,
                "use_cpu": True, "report_to": "none", **train,
            },
            "select": select,
            "seed": seed,
        }
    )  # fmt: skip


def _write_all(folder: Path) -> None:
    for part in ("check", "rates"):
        write_jsonl(folder / f"{part}.jsonl", held_out_records(part))
    clean = [as_prompt(r, name) for name, count in CLEAN.items() for r in unused_records(name, count)]
    write_jsonl(folder / "clean.jsonl", shuffled(clean))
    mixed, kind = dirty(clean, DIRT)
    write_jsonl(folder / "dirty.jsonl", mixed)
    write_text(folder / "kinds.json", json.dumps(kind))


def _write_smollm2(folder: Path) -> None:
    train, check = (
        [as_prompt(json.loads(line), "gsm8k") for line in smollm2.short_problems(split)]
        for split in ("train", "test")
    )
    write_jsonl(folder / "dirty.jsonl", dirty(train, SMOLLM2_DIRT)[0])
    write_jsonl(folder / "check.jsonl", check[: smollm2.CHECK])


def dirty(clean: list[Record], dirt: Dirt) -> tuple[list[Record], list[int]]:
    """Some of the records, copies of a few of them and garbage, in random order; and the kind of each."""
    rng = np.random.default_rng(DEAL_SEED)
    distinct = [clean[i] for i in rng.permutation(len(clean))[: dirt.distinct]]
    copies = [distinct[i] for i in range(dirt.copied) for _ in range(dirt.copies)]
    domains = list(dict.fromkeys(record["domain"] for record in clean))
    noise = [
        {"prompt": _noise(rng, 80), "completion": _noise(rng, 80), "domain": domains[i % len(domains)]}
        for i in range(dirt.garbage)
    ]
    snippets = [_snippet(clean[int(rng.integers(len(clean)))], rng) for _ in range(dirt.garbage)]
    records = [*distinct, *copies, *noise, *snippets]
    kind = np.repeat(np.arange(4), [len(distinct), len(copies), len(noise), len(snippets)])
    order = rng.permutation(len(records))
    return [records[i] for i in order], kind[order].tolist()


def _noise(rng: np.random.Generator, length: int) -> str:
    letters = np.array(list(string.ascii_letters + string.digits + string.punctuation + " "))
    return "".join(rng.choice(letters, length))


def _snippet(record: Record, rng: np.random.Generator) -> Record:
    words = record["completion"].split()
    start = int(rng.integers(max(1, len(words) - 2)))
    return {"prompt": "", "completion": " ".join(words[start : start + 2]), "domain": record["domain"]}
