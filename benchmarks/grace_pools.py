"""The pools that GRACE's benchmarks choose from: 1,200 real records, once clean, once as found in the wild.

The clean pool is GSM8K, Dolly and commonsense, no record twice. The dirty one has half of those records; 24
of them stand there 20 times more (40 % of the pool), and 10 % is garbage: random characters in place of a
question and its answer, and snippets of a few words. Every record is a prompt, a completion, a domain, and a
place in a file that says what it is, so that no domain gives the garbage away. What is held out comes from
the same three sets, shares no question with either pool, and is clean.
"""

import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import small_llama
from frame import ROOT, made_whole
from small_data import DEAL_SEED, INSTRUCTIONS, LARGEST, Parts, asked, deal, instructions

from gradwise.atomic import write_text
from gradwise.recipe import Recipe

FOLDER = ROOT / "build" / "grace"
CLEAN = {"gsm8k": 500, "dolly": 180, "commonsense": 520}


@dataclass(frozen=True)
class Dirt:
    """How many records of a dirty pool are what."""

    distinct: int
    copied: int
    copies: int
    """How often each of the copied stands there besides once."""
    garbage: int
    """Of each of two kinds."""


DIRT = Dirt(distinct=600, copied=24, copies=20, garbage=60)

KINDS = ("distinct", "copy", "random characters", "snippet")
"""What a record of the dirty pool is, as `kinds.json` numbers it."""

Record = dict[str, str]


def made(folder: Path = FOLDER) -> Path:
    """The folder with `clean.jsonl`, `dirty.jsonl`, `kinds.json`, `check.jsonl`, `rates.jsonl`."""
    return made_whole(folder, _write_all)


def kinds(folder: Path = FOLDER) -> Any:
    """(1200,) the kind of each line of the dirty pool, as a place in `KINDS`."""
    return np.array(json.loads((folder / "kinds.json").read_text()))


def clean_recipe(steps: int, select: dict[str, Any], seed: int, **train: Any) -> Recipe:
    """The small Llama on the clean pool; `select` and further keys of `train` as in a recipe."""
    pool = made()
    return Recipe.from_dict(
        {
            "model": {"name": str(small_llama.made() / "annealed")},
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
    dealt = {name: deal(instructions(name), parts) for name, parts in INSTRUCTIONS.items()}
    for part in ("check", "rates"):
        write(folder / f"{part}.jsonl", [told(r, name) for name, d in dealt.items() for r in d[part]])
    clean = [
        told(r, name) for name, count in CLEAN.items() for r in free_records(name, INSTRUCTIONS[name], count)
    ]
    write(folder / "clean.jsonl", shuffled(clean))
    mixed, kind = dirty(clean, DIRT)
    write(folder / "dirty.jsonl", mixed)
    write_text(folder / "kinds.json", json.dumps(kind))


def free_records(name: str, parts: Parts, count: int) -> list[Record]:
    """Short records of an instruction set that no other part has: those for fine-tuning, then others."""
    records = instructions(name)
    dealt = deal(records, parts)
    taken = {asked(record) for part, rows in dealt.items() if part != "tune" for record in rows}
    free = {asked(r): r for r in [*dealt["tune"], *records] if sum(map(len, r.values())) <= LARGEST}
    kept = [record for question, record in free.items() if question not in taken]
    if len(kept) < count:
        raise SystemExit(f"{name} has {len(kept)} free short records; {count} are wanted.")
    return kept[:count]


def dirty(clean: list[Record], dirt: Dirt) -> tuple[list[Record], list[int]]:
    """Some of the records, copies of a few of them and garbage, in random order; and each one's kind."""
    rng = np.random.default_rng(DEAL_SEED)
    some = [clean[i] for i in rng.permutation(len(clean))[: dirt.distinct]]
    copies = [some[i] for i in range(dirt.copied) for _ in range(dirt.copies)]
    domains = list(dict.fromkeys(record["domain"] for record in clean))
    noise = [
        {"prompt": _noise(rng, 80), "completion": _noise(rng, 80), "domain": domains[i % len(domains)]}
        for i in range(dirt.garbage)
    ]
    snippets = [_snippet(clean[int(rng.integers(len(clean)))], rng) for _ in range(dirt.garbage)]
    records = [*some, *copies, *noise, *snippets]
    kind = np.repeat(np.arange(4), [len(some), len(copies), len(noise), len(snippets)])
    order = rng.permutation(len(records))
    return [records[i] for i in order], kind[order].tolist()


def _noise(rng: np.random.Generator, length: int) -> str:
    letters = np.array(list(string.ascii_letters + string.digits + string.punctuation + " "))
    return "".join(rng.choice(letters, length))


def _snippet(record: Record, rng: np.random.Generator) -> Record:
    words = record["completion"].split()
    start = int(rng.integers(max(1, len(words) - 2)))
    return {"prompt": "", "completion": " ".join(words[start : start + 2]), "domain": record["domain"]}


def told(record: Record, domain: str) -> Record:
    """A record as prompt and completion."""
    if "question" in record:
        prompt, completion = record["question"], record["answer"]
    else:
        prompt = "\n".join(text for text in (record["instruction"], record["input"]) if text)
        completion = record["output"]
    return {"prompt": f"{prompt}\n", "completion": completion, "domain": domain}


def shuffled(records: list[Record]) -> list[Record]:
    """The records in one fixed random order."""
    return [records[i] for i in np.random.default_rng(DEAL_SEED).permutation(len(records))]


def write(path: Path, records: list[Record]) -> None:
    """As JSON lines."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
