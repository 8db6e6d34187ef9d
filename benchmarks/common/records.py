"""Real data: instruction sets and texts, cut into parts that share no question.

The instruction sets (GSM8K, Dolly, four commonsense sets, train splits only) are each put into one fixed
random order, without repeats, and dealt out: some records for fine-tuning, of Dolly some for pre-training,
and for both some are held out. The texts are for pre-training only.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.folders import DATA
from gradwise.atomic import write_text

DEAL_SEED = 20261121
TEXTS = {
    "plays": "text/tinyshakespeare.txt",
    "stories": "text/tinystories.txt",
    "encyclopedia": "text/wikitext2-test.raw.txt",
}
COMMONSENSE = ("boolq", "openbookqa", "ARC-Easy", "ARC-Challenge")
CHUNK = 600
"""Characters of text in one record, approximately; some 190 tokens, so that two or three fill a packed
row."""
LARGEST = 320
"""Characters that a record for fine-tuning may have, so that runs take seconds."""

UNUSED = {"gsm8k": 800, "dolly": 180, "commonsense": 800}
"""Records among which `write_short` searches for short ones."""

Record = dict[str, str]


@dataclass(frozen=True)
class Parts:
    """Number of records of one instruction set in each part."""

    pretrain: int
    pretrain_check: int
    tune: int
    """Fine-tuning: the pool that arms select from."""
    rates: int
    """Held out for choosing learning rates."""
    check: int
    """Held out for the tables."""


INSTRUCTIONS = {
    "gsm8k": Parts(pretrain=0, pretrain_check=0, tune=180, rates=30, check=60),
    "dolly": Parts(pretrain=1800, pretrain_check=30, tune=180, rates=30, check=60),
    "commonsense": Parts(pretrain=0, pretrain_check=0, tune=120, rates=30, check=60),
}
"""Two of the three sets are new to the pre-trained model. With 1,300 records of each in the pre-training,
fine-tuning had nothing to teach: held-out losses of all rates from 3e-5 to 1e-3 were within 0.08."""


def write_parts(folder: Path) -> None:
    """Write every part as JSONL, a file per domain: `pretrain/gsm8k.jsonl`, `tune/dolly.jsonl`, and so on."""
    for domain, path in TEXTS.items():
        pieces = chunks((DATA / path).read_text(encoding="utf-8"))
        write_jsonl(folder / "pretrain" / f"{domain}.jsonl", [p for i, p in enumerate(pieces) if i % 40])
        write_jsonl(folder / "pretrain_check" / f"{domain}.jsonl", pieces[::40])
    for domain, parts in INSTRUCTIONS.items():
        for part, records in deal(instructions(domain), parts).items():
            if records:
                write_jsonl(folder / part / f"{domain}.jsonl", records)


def chunks(text: str) -> list[Record]:
    """Runs of whole lines of about `CHUNK` characters."""
    pieces, piece = [], ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > CHUNK:
            pieces.append(piece)
            piece = ""
        piece += line
    return [{"text": piece.strip()} for piece in [*pieces, piece] if piece.strip()]


@cache
def instructions(domain: str) -> list[Record]:
    """All training records of one instruction set, without bookkeeping fields; not to be changed in place."""
    if domain == "gsm8k":
        lines = (DATA / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        return [_fields(json.loads(line), ("question", "answer")) for line in lines]
    paths = [DATA / "commonsense" / "train" / f"{name}.json" for name in COMMONSENSE]
    if domain == "dolly":
        paths = [DATA / "dolly" / "dolly_3k.json"]
    records = [record for path in paths for record in json.loads(path.read_text(encoding="utf-8"))]
    return [_fields(record, ("instruction", "input", "output")) for record in records]


def deal(records: list[Record], parts: Parts) -> dict[str, list[Record]]:
    """Deal records out in a fixed random order; no two parts share a question.

    Short records go to the parts for fine-tuning first, because only those must be short.
    """
    unique = list({question_of(record): record for record in records}.values())
    mixed = shuffled(unique)
    short = [record for record in mixed if is_short(record)]
    dealt, start = {}, 0
    for part in ("check", "rates", "tune"):
        dealt[part] = short[start : start + getattr(parts, part)]
        start += getattr(parts, part)
    used = {question_of(record) for records in dealt.values() for record in records}
    rest = [record for record in mixed if question_of(record) not in used]
    dealt["pretrain_check"] = rest[: parts.pretrain_check]
    dealt["pretrain"] = rest[parts.pretrain_check : parts.pretrain_check + parts.pretrain]
    return dealt


def unused_records(name: str, count: int) -> list[Record]:
    """Short records of an instruction set: its part for fine-tuning, then records that no part has."""
    records = instructions(name)
    dealt = deal(records, INSTRUCTIONS[name])
    used = {question_of(record) for part, rows in dealt.items() if part != "tune" for record in rows}
    short = {question_of(r): r for r in [*dealt["tune"], *records] if is_short(r)}
    unused = [record for question, record in short.items() if question not in used]
    if len(unused) < count:
        raise SystemExit(f"{name} has {len(unused)} unused short records; {count} are needed.")
    return unused[:count]


def write_short(folder: Path, train: dict[str, int], check: int, largest: int) -> None:
    """Write short records for slow models: a file per domain to train on, and one that is held out.

    Args:
        folder: gets `gsm8k.jsonl`, `check-gsm8k.jsonl` and so on.
        train: records to train on, by domain.
        check: held-out records of each domain.
        largest: a record has fewer characters than this, as JSON.
    """
    for name, count in train.items():
        needed = count + check
        short = [r for r in unused_records(name, UNUSED[name]) if _length(r) < largest][:needed]
        if len(short) < needed:
            raise SystemExit(f"{name} has {len(short)} short records; {needed} are needed.")
        records = [as_prompt(record, name) for record in short]
        write_jsonl(folder / f"{name}.jsonl", records[check:])
        write_jsonl(folder / f"check-{name}.jsonl", records[:check])


def held_out_records(part: str, count: int | None = None) -> list[Record]:
    """Records of a held-out part, at most `count` of every instruction set, as prompt and completion."""
    dealt = {name: deal(instructions(name), parts)[part][:count] for name, parts in INSTRUCTIONS.items()}
    return [as_prompt(record, name) for name, records in dealt.items() for record in records]


def is_short(record: Record) -> bool:
    """At most `LARGEST` characters."""
    return sum(map(len, record.values())) <= LARGEST


def question_of(record: Record) -> str:
    """The question alone: the same question with another answer counts as a repeat."""
    texts = [record.get(name, "") for name in ("question", "instruction", "input")]
    return " ".join(" ".join(texts).lower().split())


def _length(record: Record) -> int:
    return len(json.dumps(record, ensure_ascii=False))


def as_prompt(record: Record, domain: str) -> Record:
    """A record as prompt, completion and domain."""
    if "question" in record:
        prompt, completion = record["question"], record["answer"]
    else:
        prompt = "\n".join(text for text in (record["instruction"], record["input"]) if text)
        completion = record["output"]
    return {"prompt": f"{prompt}\n", "completion": completion, "domain": domain}


def shuffled(records: list[Record]) -> list[Record]:
    """The records in one fixed random order."""
    return [records[i] for i in np.random.default_rng(DEAL_SEED).permutation(len(records))]


def write_jsonl(path: Path, records: list[Record]) -> None:
    """One record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _fields(record: dict[str, Any], names: Iterable[str]) -> Record:
    return {name: str(record[name]) for name in names}
