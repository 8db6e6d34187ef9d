"""What D3's benchmarks put in order: a file for each domain, so that the order given is one domain after
another."""

import json
from pathlib import Path

import grace_pools
import small_llama
from frame import ROOT, made_whole
from small_data import INSTRUCTIONS

from gradwise.atomic import write_text

FOLDER = ROOT / "build" / "d3"
PRETRAIN = {"plays": 200, "encyclopedia": 200, "stories": 200, "dolly": 200}
TUNE = {"gsm8k": 200, "dolly": 176, "commonsense": 200}
SMOLLM2 = {"gsm8k": 32, "dolly": 32, "commonsense": 32}
SMOLLM2_CHECK = 12
"""Of each domain."""
FREE = {"gsm8k": 800, "dolly": 180, "commonsense": 800}
"""Records that the short ones are looked for among."""
SMOLLM2_LARGEST = 400
"""Characters of a record."""


def pretrain(folder: Path = FOLDER / "pretrain") -> Path:
    """Texts of the small Llama's own pre-training."""
    return made_whole(folder, lambda partial: _first_lines(partial, PRETRAIN))


def tune(folder: Path = FOLDER / "tune") -> Path:
    """Instructions that share no question with what is held out."""
    grace_pools.made()
    return made_whole(folder, lambda partial: _instructions(partial, TUNE))


def smollm2(folder: Path = FOLDER / "smollm2") -> Path:
    """Short instructions, and others to be held out."""

    def make(partial: Path) -> None:
        wanted = {name: count + SMOLLM2_CHECK for name, count in SMOLLM2.items()}
        for name, count in wanted.items():
            free = grace_pools.free_records(name, INSTRUCTIONS[name], FREE[name])
            short = [record for record in free if _length(record) < SMOLLM2_LARGEST]
            told = [grace_pools.told(record, name) for record in short[:count]]
            if len(told) < count:
                raise SystemExit(f"{name} has only {len(told)} short records of {count}.")
            grace_pools.write(partial / f"{name}.jsonl", told[SMOLLM2_CHECK:])
            grace_pools.write(partial / f"check-{name}.jsonl", told[:SMOLLM2_CHECK])

    return made_whole(folder, make)


def _instructions(partial: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        records = grace_pools.free_records(name, INSTRUCTIONS[name], count)
        grace_pools.write(partial / f"{name}.jsonl", [grace_pools.told(record, name) for record in records])


def _first_lines(partial: Path, counts: dict[str, int]) -> None:
    source = small_llama.made() / "data" / "pretrain"
    for name, count in counts.items():
        lines = (source / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(partial / f"{name}.jsonl", "".join(lines[:count]))


def _length(record: dict[str, str]) -> int:
    return len(json.dumps(record, ensure_ascii=False))
