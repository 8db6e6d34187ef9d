"""Records and gradients of stories260K for DiReCT's benchmarks of junk and of targets."""

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

import gradwise as gw
from benchmarks.common.folders import BUILD, DATA, build_folder
from benchmarks.common.records import TEXTS, as_prompt, chunks, instructions, shuffled
from benchmarks.common.smollm2 import STORIES

INSTRUCTIONS = ("gsm8k", "dolly", "commonsense")
SETS = (*TEXTS, *INSTRUCTIONS)
SEED = 20261129
FILES = {
    "svamp": "arithmetic/SVAMP.json", "piqa": "commonsense/test/piqa.json",
    "siqa": "commonsense/test/social_i_qa.json",
}  # fmt: skip
"""Sets of instructions with outputs that are targets only."""
JUNK = ("random tokens", "shuffled words", "repeated words", "fragments")
SENTENCES = [
    f"Once upon a time there was a little {child} named {name}. {word} liked to play with {whose} {toy}."
    for child, word, whose in (("girl", "She", "her"), ("boy", "He", "his"))
    for name in ("Lily", "Tom", "Sue", "Ben", "Anna", "Max")
    for toy in ("ball", "dog", "cat", "car", "doll", "book")
]
"""A target of formulaic sentences."""

Rows = dict[str, list[list[int]]]
"""Token ids by kind."""


def texts(name: str) -> list[str]:
    """All texts of a set, in one fixed random order."""
    if name in TEXTS:
        pieces = shuffled(chunks((DATA / TEXTS[name]).read_text(encoding="utf-8")))
        return [piece["text"] for piece in pieces if len(piece["text"]) > 100]
    if name == "sentences":
        return SENTENCES
    if name in FILES:
        records = json.loads((DATA / FILES[name]).read_text(encoding="utf-8"))
        return [f"{record['instruction']}\n{record['output']}" for record in shuffled(records)]
    if name == "mmlu":
        rows = [row for path in sorted((DATA / "mmlu" / "val").glob("*.csv")) for row in _rows(path)]
        made = ["{}\nA. {}\nB. {}\nC. {}\nD. {}\nAnswer: {}".format(*row) for row in rows]
        return [made[i] for i in np.random.default_rng(SEED).permutation(len(made))]
    prompts = [as_prompt(record, name) for record in shuffled(instructions(name))]
    return [record["prompt"] + record["completion"] for record in prompts]


def token_rows(name: str, count: int, length: int) -> list[list[int]]:
    """The first records of a set, cut to a length in tokens."""
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    return [tokenizer(text)["input_ids"][:length] for text in texts(name)[:count]]


def junk_rows(kind: str, count: int, length: int) -> list[list[int]]:
    """Rows of one kind of junk: tokens at random, the tokens of a record in random order, its first six over
    and over, or 2 to 12 of its tokens."""
    rng = np.random.default_rng(SEED)
    if kind == "random tokens":
        size = len(AutoTokenizer.from_pretrained(STORIES))
        return rng.integers(3, size, (count, length)).tolist()
    rows = token_rows("dolly", 1000 + count, length)[1000:]
    if kind == "shuffled words":
        return [[row[0], *rng.permutation(row[1:]).tolist()] for row in rows]
    if kind == "repeated words":
        return [(row[:6] * length)[:length] for row in rows]
    return [row[1 + number % 8 :][: 2 + number % 11] for number, row in enumerate(rows)]


def samples(rows: list[list[int]]) -> list[dict[str, list[int]]]:
    """Samples whose every token is learned."""
    return [{"input_ids": row, "labels": row} for row in rows]


def signals(name: str, rows: Rows) -> dict[str, gw.Signals]:
    """Projected gradients by kind, at the published weights; kept in `build`."""

    def fill(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(STORIES)
        for kind, kind_rows in rows.items():
            gw.collect(
                model, samples(kind_rows), want=("loss", "grad"), grad_dim=1024, store=folder / kind,
                progress=False, tell=lambda _: None,
            )  # fmt: skip

    folder = build_folder(BUILD / f"direct-{name}", partial(fill))
    return {kind: gw.Signals.open(folder / kind) for kind in rows}


def joined(parts: list[gw.Signals]) -> gw.Signals:
    """Several in one."""
    arrays: dict[str, Any] = {
        field: np.concatenate([np.asarray(getattr(part, field)) for part in parts])
        for field in ("grad", "loss", "num_tokens", "ok")
    }
    return gw.Signals(sum(map(len, parts)), **arrays)


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines))
