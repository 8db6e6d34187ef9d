"""Real data for the small Llama, cut into parts that share no record: pre-training, fine-tuning, checking.

The instruction sets (GSM8K, Dolly, four commonsense sets, train splits only) are each put into one fixed
random order, without repeats, and dealt out: some records for fine-tuning, of Dolly some for pre-training,
and for each of the two some held out. The texts are for pre-training alone.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from frame import DATA

from gradwise.atomic import write_text

DEAL_SEED = 20261121
TEXTS = {
    "plays": "text/tinyshakespeare.txt",
    "stories": "text/tinystories.txt",
    "encyclopedia": "text/wikitext2-test.raw.txt",
}
COMMONSENSE = ("boolq", "openbookqa", "ARC-Easy", "ARC-Challenge")
CHUNK = 600
"""Characters of text in one record, about; some 190 tokens, so that two or three fill a packed row."""


@dataclass(frozen=True)
class Parts:
    """How many records of one instruction set go where."""

    pretrain: int
    pretrain_check: int
    tune: int
    """Fine-tuning: the pool that arms choose from."""
    rates: int
    """Held out for choosing learning rates."""
    check: int
    """Held out for the tables."""


LARGEST = 320
"""Characters a record for fine-tuning may have, so that runs take seconds."""

INSTRUCTIONS = {
    "gsm8k": Parts(pretrain=0, pretrain_check=0, tune=180, rates=30, check=60),
    "dolly": Parts(pretrain=1800, pretrain_check=30, tune=180, rates=30, check=60),
    "commonsense": Parts(pretrain=0, pretrain_check=0, tune=120, rates=30, check=60),
}
"""Two of the three are new to the pre-trained model. With 1,300 records of each in the pre-training,
fine-tuning had nothing to teach: held-out losses of all rates from 3e-5 to 1e-3 were within 0.08."""


def write_parts(folder: Path) -> None:
    """Write every part as JSONL, a file per domain: `pretrain/gsm8k.jsonl`, `tune/dolly.jsonl`, and so on."""
    for domain, path in TEXTS.items():
        pieces = chunks((DATA / path).read_text(encoding="utf-8"))
        _write(folder / "pretrain" / f"{domain}.jsonl", [p for i, p in enumerate(pieces) if i % 40])
        _write(folder / "pretrain_check" / f"{domain}.jsonl", pieces[::40])
    for domain, parts in INSTRUCTIONS.items():
        for part, records in deal(instructions(domain), parts).items():
            if not records:
                continue
            _write(folder / part / f"{domain}.jsonl", records)


def chunks(text: str) -> list[dict[str, str]]:
    """Runs of whole lines of about `CHUNK` characters."""
    found, piece = [], ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > CHUNK:
            found.append(piece)
            piece = ""
        piece += line
    return [{"text": piece.strip()} for piece in [*found, piece] if piece.strip()]


def instructions(domain: str) -> list[dict[str, str]]:
    """All training records of one instruction set, as the files have them but without bookkeeping fields."""
    if domain == "gsm8k":
        lines = (DATA / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        return [_only(json.loads(line), ("question", "answer")) for line in lines]
    paths = [DATA / "commonsense" / "train" / f"{name}.json" for name in COMMONSENSE]
    if domain == "dolly":
        paths = [DATA / "dolly" / "dolly_3k.json"]
    records = [record for path in paths for record in json.loads(path.read_text(encoding="utf-8"))]
    return [_only(record, ("instruction", "input", "output")) for record in records]


def deal(records: list[dict[str, str]], parts: Parts) -> dict[str, list[dict[str, str]]]:
    """Deal records out in a fixed random order; no two parts share a question.

    Short ones go to the fine-tuning parts first, since only those must be short.
    """
    unique = list({asked(record): record for record in records}.values())
    order = np.random.default_rng(DEAL_SEED).permutation(len(unique))
    mixed = [unique[place] for place in order]
    short = [record for record in mixed if sum(map(len, record.values())) <= LARGEST]
    dealt, start = {}, 0
    for part in ("check", "rates", "tune"):
        dealt[part] = short[start : start + getattr(parts, part)]
        start += getattr(parts, part)
    taken = {asked(record) for records in dealt.values() for record in records}
    rest = [record for record in mixed if asked(record) not in taken]
    dealt["pretrain_check"] = rest[: parts.pretrain_check]
    dealt["pretrain"] = rest[parts.pretrain_check : parts.pretrain_check + parts.pretrain]
    return dealt


def asked(record: dict[str, str]) -> str:
    """The question alone, so that the same question with another answer is not dealt twice."""
    texts = [record.get(name, "") for name in ("question", "instruction", "input")]
    return " ".join(" ".join(texts).lower().split())


def _only(record: dict[str, Any], names: Iterable[str]) -> dict[str, str]:
    return {name: str(record[name]) for name in names}


def _write(path: Path, records: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
