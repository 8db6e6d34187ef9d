"""Data for comparing orders: a file for each domain, so that the given order is one domain after the
other."""

from pathlib import Path

from benchmarks.common import small_llama
from benchmarks.common.folders import BUILD, build_folder
from benchmarks.common.records import as_prompt, unused_records, write_jsonl, write_short
from benchmarks.grace import pools
from gradwise.atomic import write_text

FOLDER = BUILD / "d3"
PRETRAIN = {"plays": 200, "encyclopedia": 200, "stories": 200, "dolly": 200}
TUNE = {"gsm8k": 200, "dolly": 176, "commonsense": 200}
SMOLLM2 = {"gsm8k": 32, "dolly": 32, "commonsense": 32}
SMOLLM2_CHECK = 12
"""Held-out records of each domain."""
SMOLLM2_LARGEST = 400
"""Characters of a record as JSON."""


def pretrain(folder: Path = FOLDER / "pretrain") -> Path:
    """Texts of the small Llama's own pre-training."""
    return build_folder(folder, _write_pretrain)


def tune(folder: Path = FOLDER / "tune") -> Path:
    """Instructions that share no question with held-out data."""
    pools.build()
    return build_folder(folder, _write_tune)


def smollm2(folder: Path = FOLDER / "smollm2") -> Path:
    """Short instructions, and others that are held out."""
    return build_folder(folder, _write_smollm2)


def _write_pretrain(folder: Path) -> None:
    source = small_llama.build() / "data" / "pretrain"
    for name, count in PRETRAIN.items():
        lines = (source / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(folder / f"{name}.jsonl", "".join(lines[:count]))


def _write_tune(folder: Path) -> None:
    for name, count in TUNE.items():
        write_jsonl(folder / f"{name}.jsonl", [as_prompt(r, name) for r in unused_records(name, count)])


def _write_smollm2(folder: Path) -> None:
    write_short(folder, SMOLLM2, SMOLLM2_CHECK, SMOLLM2_LARGEST)
